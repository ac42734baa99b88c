"""The exceptions that end a command, and how a command line shows them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
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


def run_command(main: Callable[[], None]) -> None:
    """Run a script's `main` and exit: 0, 2 with the sentence of an `InputError`, or 130/143 after a signal."""
    code = 0
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        code = stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code)
