"""What a kind of fault is, and how one case of it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from tests.forks import told_of
from tests.outcomes import everything

RIGHT, REFUSED = "right", "refused"


class Fault(AssertionError):
    """A case ended otherwise than right or refused."""


class Different(Fault):
    """Results are silently others than without the disturbance."""


@dataclass(frozen=True)
class Kind:
    """Cases of one kind, each in an empty folder that is the current one.

    count: cases of a whole run. prepare: makes what these cases need, once, before the children are forked; its
    arguments are an empty folder and their numbers. case: returns RIGHT or REFUSED, and raises anything for a fault;
    its arguments are what `prepare` returned, the number of the case and its own random numbers. limit: seconds that a
    case may take.
    """

    about: str
    count: int
    prepare: Callable[[Path, Sequence[int]], Any]
    case: Callable[[Any, int, Random], str]
    limit: int = 120


def judged(result: SimpleNamespace) -> str:
    """RIGHT for exit code 0 and REFUSED for 2 with one sentence. Raises Fault for anything else."""
    told = result.err + result.out
    if "Traceback (most recent call last)" in told:
        raise Fault(f"a traceback: {told_of(result)}")
    if result.code == 0:
        return RIGHT
    sentences = [line for line in result.err.splitlines() if line.startswith("error: ")]
    if result.code == 2 and len(sentences) == 1:
        return REFUSED
    raise Fault(f"{told_of(result)} ({len(sentences)} sentences)")


def assert_same(before: Mapping[str, Any], folder: Path, after: str) -> None:
    """Raise Different unless a folder holds these results. after: what happened to the command."""
    found = everything(folder)
    names = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    if names:
        raise Different(f"after {after} these are not as without it: {', '.join(names)}")


def enter(folder: Path) -> Path:
    """Make a folder the current one; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    return folder
