"""The one exception for what a user can put right, and how a command line shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Something the user gave is wrong: one sentence that says what, and what to do about it."""


def run_command(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and exit: an `InputError` becomes its sentence on stderr and exit code 2."""
    try:
        code = main()
    except InputError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)
