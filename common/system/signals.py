"""Records SIGINT and SIGTERM, so that the work can stop at a point where nothing is lost."""

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
    """Work that a signal can stop. `received` is the number of the signal, or None before one arrives.

    `doing` says, for people, what has to end before the work can stop; whoever does the work sets it.
    announcement: what happens next; printed when the signal arrives.
    kept: what has been saved; printed when the command ends.
    kept_anyway: replaces `kept` if another process of the job has ended.
    """

    def __init__(self, announcement: str, kept: str, kept_anyway: str | None = None) -> None:
        self.received: int | None = None
        self.doing = "what has begun"
        self._announcement, self._kept, self._kept_anyway = announcement, kept, kept_anyway or kept

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Context in which the first SIGINT or SIGTERM only sets `received`.

        A second signal says what is waited for, and a third has its usual effect.
        In a job of several processes, further signals are ignored, because torchrun may forward a signal that has
        already reached the processes. torchrun kills processes that have not stopped after half a minute. If another
        process is lost, raises Stopped if a signal had arrived and ProcessLost otherwise; the message says what has
        been saved. Outside the main thread, signals are not caught.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        several = parallel.world() > 1

        def first(number: int, frame: FrameType | None) -> None:
            self.received = number
            for each in before:
                signal.signal(each, signal.SIG_IGN if several else second)
            hint = "" if several else " (a second signal says what is waited for)"
            tqdm.write(f"{signal.Signals(number).name}: {self._announcement}{hint}")

        def second(number: int, frame: FrameType | None) -> None:
            for each, handler in before.items():
                signal.signal(each, handler)
            tqdm.write(f"{signal.Signals(number).name}: waiting until {self.doing} ends (a third signal stops at once)")

        for number in before:
            signal.signal(number, first)
        try:
            yield
        except ProcessLost as lost:
            told = ProcessLost(lost.reason, self._kept_anyway)
            raise (told if self.received is None else Stopped(self.received, str(told))) from lost
        finally:
            if not several:  # torchrun may send another signal while the command is ending
                for number, handler in before.items():
                    signal.signal(number, handler)

    def is_stopped(self) -> bool:
        """Whether this process or another one of the job has received a signal; all processes must call this together.

        The signal reaches the processes at different moments, but all must stop at the same point. Otherwise one
        process would wait in an exchange for another that has already left.
        """
        self.received = parallel.largest(self.received or 0) or None
        return self.received is not None

    def raise_if_stopped(self) -> None:
        """Raises Stopped if `received` is set."""
        if self.received is not None:
            raise Stopped(self.received, self._kept)


@contextmanager
def raising_on_signals(kept: str) -> Iterator[None]:
    """Inside the block, SIGINT and SIGTERM raise Stopped; whoever started a script then stops it.

    kept: what has been saved; printed when the command ends. Outside the main thread, signals are not caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, kept)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
