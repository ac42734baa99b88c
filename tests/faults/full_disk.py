"""A disk that is full once a file has some size, and the same command when there is room again."""

from __future__ import annotations

import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace

from tests.faults.commands import COMMANDS, OUT, Undisturbed
from tests.faults.kind import REFUSED, Fault, Kind, assert_same, judged
from tests.forks import forked, told_of

_NAMES = tuple(COMMANDS)
# Bytes; the last ones are more than the largest file of some commands, and less than that of others.
SIZES = (
    0, 1, 10, 50, 100, 200, 400, 700, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12_000, 16_000, 24_000, 48_000, 96_000,
)  # fmt: skip


def _limited(name: str, size: int) -> SimpleNamespace:
    """How a command ends where no file may grow beyond a size: EFBIG, as ENOSPC on a disk without room."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return COMMANDS[name].run()


def full(undisturbed: Undisturbed, number: int, draws: Random) -> str:
    """Refused with one sentence, or as ever where the room is enough; then it ends as if there had always been room."""
    undisturbed.link()
    name, size = _NAMES[number % len(_NAMES)], SIZES[number // len(_NAMES) % len(SIZES)]
    after = f"{name} with a disk full at {size} bytes"
    outcome = judged(forked(lambda: _limited(name, size)))
    if outcome == REFUSED:
        again = forked(COMMANDS[name].run)
        if judged(again) == REFUSED:
            raise Fault(f"after {after} the same command is refused: {told_of(again)}")
    assert_same(undisturbed.left(name), OUT, after)
    return outcome


def kinds(undisturbed: Undisturbed) -> dict[str, Kind]:
    """By name."""
    about = f"a disk full at {len(SIZES)} sizes, over all scripts"

    def prepare(_: Path, numbers: Sequence[int]) -> Undisturbed:
        return undisturbed.prepare({_NAMES[number % len(_NAMES)] for number in numbers})

    return {"disk": Kind(about, len(SIZES) * len(_NAMES), prepare, full)}
