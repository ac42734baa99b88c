"""Two of every command at once in one folder, and locks that were left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace

from tests.faults.commands import COMMANDS, OUT, Undisturbed
from tests.faults.kind import REFUSED, RIGHT, Fault, Kind, assert_same, judged
from tests.forks import Child, forked, told_of

_NAMES = tuple(COMMANDS)
_LOCKED = tuple(name for name in COMMANDS if COMMANDS[name].locks)
_LONGEST = 0.5  # seconds that the second command begins later
_LONGEST_ANSWER = 20  # seconds in which a command that does not wait ends


def two_at_once(undisturbed: Undisturbed, number: int, draws: Random) -> str:
    """Both end as alone, or one of them is refused; what they leave is what one leaves."""
    undisturbed.link()
    name = _NAMES[number % len(_NAMES)]
    first = Child(COMMANDS[name].run)
    time.sleep(draws.choice((0.0, draws.uniform(0, _LONGEST))))
    second = Child(COMMANDS[name].run)
    ended = [first.wait(), second.wait()]
    outcomes = [judged(each) for each in ended]
    if outcomes == [REFUSED, REFUSED]:
        raise Fault(f"both of two {name} are refused: {told_of(ended[0])} / {told_of(ended[1])}")
    assert_same(undisturbed.left(name), OUT, f"two {name} at once")
    return REFUSED if REFUSED in outcomes else RIGHT


# -- a lock left behind ------------------------------------------------------------------------------------------


def _hold(path: Path) -> Child:
    """A process that holds a lock, and is stopped."""
    import fcntl

    def action() -> None:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.kill(os.getpid(), signal.SIGSTOP)

    child = Child(action)
    assert child.until_stopped()
    return child


_LEFT = {
    "empty": lambda path: path.touch(),
    "with a process number": lambda path: path.write_text(f"{2**22 - 1}\n"),
    "read-only": lambda path: (path.touch(), path.chmod(0o400)),
    "of no known time": lambda path: (path.touch(), os.utime(path, (0, 0))),
    "half a file": lambda path: path.with_name(".summary.json.123.tmp").write_text("{"),
}

# What is no lock but in the place of one, and how it is removed.
_BLOCKING: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a folder": (Path.mkdir, Path.rmdir),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), Path.unlink),
}


def lock_left_behind(undisturbed: Undisturbed, number: int, draws: Random) -> str:
    """A lock that nobody holds keeps nobody out; one that a stopped process holds does, until it is gone."""
    undisturbed.link()
    name = _LOCKED[number % len(_LOCKED)]
    lock = OUT / draws.choice(undisturbed.locks(name))
    lock.parent.mkdir(parents=True)
    how = draws.choice((*_LEFT, *_BLOCKING, "held"))
    after = f"{name} with a lock left behind ({how}, {lock.name})"
    outcome = RIGHT
    if how in _BLOCKING:
        put, remove = _BLOCKING[how]
        put(lock)
        _assert_refused(forked(COMMANDS[name].run), after)
        remove(lock)
        outcome = REFUSED
    elif how == "held":
        outcome = _beside_a_holder(name, lock, after)
    else:
        _LEFT[how](lock)
    ended = forked(COMMANDS[name].run)
    if judged(ended) == REFUSED:
        raise Fault(f"{after}: {told_of(ended)}")
    assert_same(undisturbed.left(name), OUT, after)
    return outcome


def _beside_a_holder(name: str, lock: Path, after: str) -> str:
    """While a stopped process holds the lock: refused, or it waits and says so, and goes on in the end."""
    holder = _hold(lock)
    try:
        child = Child(COMMANDS[name].run)
        if child.ends_within(_LONGEST_ANSWER):
            _assert_refused(child.wait(), after)
            return REFUSED
    finally:
        holder.send(signal.SIGKILL)
        holder.wait()
    ended = child.wait()
    if judged(ended) == REFUSED or "wait" not in ended.out + ended.err:
        raise Fault(f"{after}, of a process that is gone: {told_of(ended)}")
    return RIGHT


def _assert_refused(ended: SimpleNamespace, after: str) -> None:
    if judged(ended) != REFUSED:
        raise Fault(f"it goes on: {after}")


def kinds(undisturbed: Undisturbed) -> dict[str, Kind]:
    """By name."""

    def prepare(names: tuple[str, ...]) -> Callable[[Path, Sequence[int]], Undisturbed]:
        return lambda _, numbers: undisturbed.prepare({names[number % len(names)] for number in numbers})

    return {
        "two": Kind("two of every command at once", 45, prepare(_NAMES), two_at_once),
        "lock": Kind("a lock left behind, or held", 48, prepare(_LOCKED), lock_left_behind),
    }
