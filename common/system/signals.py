"""SIGINT and SIGTERM, noted so that work ends at a point of its own choosing and nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

from common.system import parallel
from common.system.errors import ProcessLost, Stopped


class Stoppable:
    """Work that a signal asks to stop: `received` is its number, None until then.

    announcement: what happens next, said when the signal arrives. kept: what is left, said when the command ends.
    kept_anyway: what is left where another process of the job has ended, in place of `kept`.
    """

    def __init__(self, announcement: str, kept: str, kept_anyway: str | None = None) -> None:
        self.received: int | None = None
        self._announcement, self._kept, self._kept_anyway = announcement, kept, kept_anyway or kept

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Inside, the first SIGINT or SIGTERM is noted in `received`; a second one acts at once.

        Several processes act on the first alone: torchrun hands on what may have reached them before, and after half a
        minute it ends those that have not stopped. Raises Stopped or ProcessLost, with what is kept, where one of them
        is gone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        several = parallel.world() > 1

        def note(number: int, frame: FrameType | None) -> None:
            self.received = number
            for each, handler in before.items():
                signal.signal(each, signal.SIG_IGN if several else handler)
            hint = "" if several else " (once more stops at once)"
            tqdm.write(f"{signal.Signals(number).name}: {self._announcement}{hint}")

        for number in before:
            signal.signal(number, note)
        try:
            yield
        except ProcessLost as lost:
            told = ProcessLost(lost.reason, self._kept_anyway)
            raise (told if self.received is None else Stopped(self.received, str(told))) from lost
        finally:
            if not several:  # torchrun may signal once more, while the command ends as asked
                for number, handler in before.items():
                    signal.signal(number, handler)

    def is_stopped(self) -> bool:
        """Whether a signal has been noted, by this process or by another of the job; all of them have to ask together.

        They get it at different moments, and none may wait in a sum for one that has left.
        """
        self.received = parallel.largest(self.received or 0) or None
        return self.received is not None

    def raise_if_stopped(self) -> None:
        """Raises Stopped once a signal has been noted."""
        if self.received is not None:
            raise Stopped(self.received, self._kept)
