"""Commands that are killed, stopped or sent signals at any of their events, and the same commands again."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace

from tests.faults.commands import COMMANDS, OUT, Undisturbed
from tests.faults.events import disturbed
from tests.faults.kind import REFUSED, RIGHT, Fault, Kind, assert_same, judged
from tests.forks import Child, forked, told_of

_NAMES = tuple(COMMANDS)
_SIGNALS = (signal.SIGHUP, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT)


def _killed(number: int) -> str:
    """The command that a case kills."""
    return _NAMES[number % len(_NAMES)]


def _signalled(number: int) -> tuple[signal.Signals, str]:
    """The signal of a case, and the command that gets it."""
    return _SIGNALS[number % len(_SIGNALS)], _NAMES[number // len(_SIGNALS) % len(_NAMES)]


def _drawn(undisturbed: Undisturbed, name: str, draws: Random) -> int:
    return draws.randint(1, undisturbed.events(name))


def _sent(name: str, event: int, number: int) -> SimpleNamespace:
    """How a command ends that sends itself a signal at an event."""
    return forked(lambda: disturbed(COMMANDS[name].run, event, lambda: os.kill(os.getpid(), number)))


def _goes_on(undisturbed: Undisturbed, name: str, after: str) -> str:
    """The same command once more makes of what is there what it would have made without the disturbance."""
    again = forked(COMMANDS[name].run)
    if judged(again) == REFUSED:
        raise Fault(f"after {after} the same command is refused: {told_of(again)}")
    assert_same(undisturbed.left(name), OUT, after)
    return RIGHT


def kill(undisturbed: Undisturbed, number: int, draws: Random) -> str:
    """SIGKILL at an event, half of the time again while the same command goes on."""
    undisturbed.link()
    name = _killed(number)
    event = _drawn(undisturbed, name, draws)
    events = [event] if draws.random() < 0.5 else [event, _drawn(undisturbed, name, draws)]
    for each in events:
        ended = _sent(name, each, signal.SIGKILL)
        if ended.code != -signal.SIGKILL:  # what was there left it fewer events
            judged(ended)
    return _goes_on(undisturbed, name, f"SIGKILL of {name} at event {' and '.join(map(str, events))}")


def send(undisturbed: Undisturbed, number: int, draws: Random) -> str:
    """Another signal at an event: it ends as that signal ends programs, or goes on and ends as ever."""
    undisturbed.link()
    sent, name = _signalled(number)
    event = _drawn(undisturbed, name, draws)
    after = f"{sent.name} of {name} at event {event}"
    if sent == signal.SIGSTOP:
        ended = _continued(name, event)
        if judged(ended) == REFUSED:
            raise Fault(f"after {after} and SIGCONT: {told_of(ended)}")
        assert_same(undisturbed.left(name), OUT, after)
        return RIGHT
    ended = _sent(name, event, sent)
    usual = {signal.SIGHUP: -signal.SIGHUP, signal.SIGTERM: 143, signal.SIGINT: 130}[sent]
    if ended.code not in (usual, 0):
        raise Fault(f"after {after}: {told_of(ended)}")
    if "Traceback" in ended.err:
        raise Fault(f"after {after} a traceback: {told_of(ended)}")
    return _goes_on(undisturbed, name, after)


def _continued(name: str, event: int) -> SimpleNamespace:
    """How a command ends that stops itself at an event, until SIGCONT."""
    child = Child(lambda: disturbed(COMMANDS[name].run, event, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    if child.until_stopped():
        child.send(signal.SIGCONT)
    return child.wait()


def kinds(undisturbed: Undisturbed) -> dict[str, Kind]:
    """By name."""

    def to_kill(_: Path, numbers: Sequence[int]) -> Undisturbed:
        return undisturbed.prepare(set(map(_killed, numbers)), events=True)

    def to_signal(_: Path, numbers: Sequence[int]) -> Undisturbed:
        return undisturbed.prepare({name for _, name in map(_signalled, numbers)}, events=True)

    return {
        "kill": Kind("SIGKILL, over all scripts", 60, to_kill, kill),
        "signal": Kind("SIGHUP, SIGSTOP and SIGCONT, SIGTERM, SIGINT", 60, to_signal, send),
    }
