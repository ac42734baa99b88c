"""Progress: a bar on a terminal, and in a log file one line when a phase ends and at most one a minute before that."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, ClassVar

from tqdm import tqdm

EVERY = 60.0  # seconds between two lines
# Set for a process whose stderr is a pipe that ends at a terminal.
ON_TERMINAL = "FRED_TERMINAL"
_LINE = "{l_bar} {n_fmt}/{total_fmt} {unit} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"  # l_bar ends with 50%|


def draws_bars() -> bool:
    """Whether bars can be drawn over and over on stderr: it is a terminal, or ends at one, or in a notebook."""
    return sys.stderr.isatty() or ON_TERMINAL in os.environ or "ipykernel" in sys.modules


class Progress(tqdm):
    """A tqdm bar, which writes lines where `draws_bars` says that no bar can be drawn.

    All bars share the minute: while a phase within another one writes lines, the outer one writes none.
    """

    _last_line: ClassVar[float] = float("-inf")  # of any bar of this process

    def __init__(self, *positional: Any, **named: Any) -> None:
        self._lines = not draws_bars()
        self._last_line_here = time.monotonic()
        self._initial = named.get("initial", 0)
        more = (
            {"bar_format": _LINE, "mininterval": 1.0, "maxinterval": EVERY} if self._lines else {"dynamic_ncols": True}
        )
        super().__init__(*positional, **(more | named))

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if not self._lines:
            return bool(super().display(msg, pos))
        if time.monotonic() - max(self._last_line_here, Progress._last_line) >= EVERY:
            self._write_line()
        return True

    def clear(self, nolock: bool = False) -> None:
        if not self._lines:
            super().clear(nolock)

    def close(self) -> None:
        if self._lines and not self.disable:
            if self.n > self._initial:  # a phase in which there was nothing to do has no line
                self._write_line()
            self.sp = None  # without a printer tqdm has nothing to clear
        super().close()

    def _write_line(self) -> None:
        self._last_line_here = Progress._last_line = time.monotonic()
        self.fp.write(f"{str(self).lstrip(' :')}\n")
        self.fp.flush()
