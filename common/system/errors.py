"""The exceptions that end a command, and how a command line shows them."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that says what, and what to do about it."""


def close_names(name: str, known: Iterable[str]) -> str:
    """Those of the known names that a misspelt one may mean, as "A or B"; "" where none is close. Case is ignored."""
    by_lower_case = {each.lower(): each for each in known}
    return " or ".join(by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case))


class Stopped(Exception):
    """SIGINT or SIGTERM arrived, and the work has ended where nothing is lost. kept: what is left, and how to go on."""

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {kept}")
        self.exit_code = 128 + number


class ProcessLost(Exception):
    """Another process of the job has ended, and this one cannot go on. kept: what is left, and how to continue."""

    def __init__(self, reason: str, kept: str = "see above, and run the same command again") -> None:
        super().__init__(f"another process of this job has ended: {kept} ({reason})")
        self.reason = reason
