"""The exceptions that end a command, and how a command line shows them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that says what, and what to do about it."""


class Stopped(Exception):
    """SIGINT or SIGTERM arrived, and what was done so far has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
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
        print(f"{stop}: everything is saved, --resume auto (the default) continues", file=sys.stderr)
        code = stop.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code)
