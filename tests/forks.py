"""Children forked from a process that has imported torch: each costs milliseconds in place of seconds."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

CRASHED = 70
"""The exit code of a child whose action ended with an exception."""


class Child:
    """Calls an action in a fork of this process.

    The action returns something that can be pickled, such as what `command_line.call` returns.
    """

    def __init__(self, action: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _answer(action, writer)
        os.close(writer)

    def send(self, number: int) -> None:
        """Send it a signal; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def until_stopped(self) -> bool:
        """Wait until it is stopped (SIGSTOP); False if it has ended instead, which `wait` then tells."""
        told = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return told is not None and told.si_code == os.CLD_STOPPED

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends so soon."""
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def wait(self) -> Any:
        """What the action returned. Of one that a signal ended: code = -signal; of one that failed: code = CRASHED."""
        with os.fdopen(self._reader, "rb") as stream:
            told = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code == 0 and told:
            return pickle.loads(told)
        return SimpleNamespace(code=code, out="", err=told.decode(errors="replace"))


def _answer(action: Callable[[], Any], writer: int) -> None:
    """Call the action, send what it returns, and end this process without what the parent has yet to write."""
    code = 0
    try:
        told = pickle.dumps(action())
    except BaseException:
        told, code = traceback.format_exc().encode(errors="backslashreplace"), CRASHED
    with os.fdopen(writer, "wb") as stream:
        stream.write(told)
    os._exit(code)


def forked(action: Callable[[], Any]) -> Any:
    """What an action returns in a fork of this process; see `Child.wait`."""
    return Child(action).wait()


def told_of(ended: SimpleNamespace) -> str:
    """How a child ended, in a few words."""
    last = (ended.err.strip().splitlines() or ["nothing was said"])[-1]
    if ended.code < 0:
        return f"ended by {signal.Signals(-ended.code).name}"
    return f"{'a traceback' if ended.code == CRASHED else f'exit code {ended.code}'}: {last}"
