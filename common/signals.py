"""SIGINT and SIGTERM, noted so that work ends at a point of its own choosing and nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

from common.errors import Stopped


class Stoppable:
    """Work that a signal asks to stop: `received` is its number, None until then.

    announcement: what happens next, said when the signal arrives. kept: what is left, said when the command ends.
    """

    def __init__(self, announcement: str, kept: str) -> None:
        self.received: int | None = None
        self._announcement, self._kept = announcement, kept

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Inside, the first SIGINT or SIGTERM is noted in `received`; a second one acts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def note(number: int, frame: FrameType | None) -> None:
            self.received = number
            for each, handler in before.items():
                signal.signal(each, handler)
            tqdm.write(f"{signal.Signals(number).name}: {self._announcement} (once more stops at once)")

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_stopped(self) -> None:
        """Raises Stopped once a signal has been noted."""
        if self.received is not None:
            raise Stopped(self.received, self._kept)
