"""Runs cases in children forked from this process, some at a time, and collects how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.kind import Different, Kind, enter

_MEMORY = 4 << 30  # bytes that a child may take beyond what this process has
_MOST = 40  # cases per child


@dataclass
class Tally:
    """What came of the cases of a kind: how many ended how, and (number, what was wrong) of the faults.

    seconds: that they took. processor: seconds of a core, of this process and all its children.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    processor: float = 0.0


def tell(seed: int, name: str, number: int) -> str:
    """The command that repeats a case."""
    return f"python -m tests.faults --seed {seed} --only {name} --number {number}"


def run_kind(name: str, kind: Kind, numbers: Sequence[int], seed: int, folder: Path, jobs: int) -> Tally:
    """Run these cases, `jobs` at a time."""
    begun, used, tally = time.monotonic(), _processor(), Tally()
    prepared = kind.prepare(enter(folder / "prepared"), numbers)
    size = max(1, min(_MOST, len(numbers) // (4 * jobs)))
    waiting = [list(numbers[at : at + size]) for at in range(0, len(numbers), size)][::-1]
    children: dict[int, _Batch] = {}
    try:
        while waiting or children:
            while waiting and len(children) < jobs:
                batch = _Batch(name, kind, prepared, waiting.pop(), seed, folder)
                children[batch.pid] = batch
            pid, status = _waited(children)
            rest = children.pop(pid).ended(os.waitstatus_to_exitcode(status), tally)
            if rest:
                waiting.append(rest)
    finally:
        for batch in children.values():
            batch.kill()
    tally.seconds, tally.processor = time.monotonic() - begun, _processor() - used
    return tally


def _waited(children: dict[int, _Batch]) -> tuple[int, int]:
    """The next of these children that ends, and its status."""
    while True:
        for pid in children:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return pid, status
        time.sleep(0.01)


class _Batch:
    """A child that runs cases one after the other, and writes down how each ended."""

    _count = 0

    def __init__(self, name: str, kind: Kind, prepared: Any, numbers: list[int], seed: int, folder: Path) -> None:
        _Batch._count += 1
        self._name, self._kind, self._numbers, self._seed = name, kind, numbers, seed
        self._folder = folder / f"batch{_Batch._count}"
        self._folder.mkdir()
        self._said = self._folder / "said.jsonl"
        self._said.touch()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(prepared)
            finally:
                os._exit(0)
        with contextlib.suppress(OSError):  # the child does the same, whoever is first
            os.setpgid(self.pid, self.pid)

    def _run(self, prepared: Any) -> None:
        os.setpgid(0, 0)  # its own children end with it
        limit = _virtual_memory() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
        with self._said.open("a") as said, (self._folder / "output.txt").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            for number in self._numbers:
                signal.alarm(self._kind.limit)  # which ends this process, wherever it hangs
                told = self._case(prepared, number)
                signal.alarm(0)
                said.write(json.dumps({"number": number, **told}) + "\n")
                said.flush()

    def _case(self, prepared: Any, number: int) -> dict[str, str]:
        folder = enter(self._folder / str(number))
        try:
            outcome = self._kind.case(prepared, number, Random(f"{self._seed} {self._name} {number}"))
        except Different as error:
            return {"outcome": "different", "fault": str(error)}
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return {"outcome": "fault", "fault": f"{_chain(error)} ({Path(where.filename).name}:{where.lineno})"}
        finally:
            os.chdir(self._folder)
        shutil.rmtree(folder, ignore_errors=True)
        return {"outcome": outcome}

    def ended(self, code: int, tally: Tally) -> list[int]:
        """Count what it has written down; the cases that are left to another child."""
        left = list(self._numbers)
        for line in self._said.read_text().splitlines():
            told = json.loads(line)
            left.remove(told["number"])
            self._count_one(told["number"], told["outcome"], told.get("fault"), tally)
        self.kill()
        if left:
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            how = f"takes longer than {self._kind.limit} s" if code == -signal.SIGALRM else how
            self._count_one(left[0], "fault", f"the process of the case {how}", tally)
        return left[1:]

    def _count_one(self, number: int, outcome: str, fault: str | None, tally: Tally) -> None:
        tally.outcomes[outcome] += 1
        if fault is not None:
            tally.faults.append((number, fault))
            print(f"{self._name} {number}: {fault}\n    {tell(self._seed, self._name, number)}", flush=True)

    def kill(self) -> None:
        """End what is left of the child's own children, and the child."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _chain(error: BaseException | None) -> str:
    """An error and what it came from, in one line."""
    return " <- ".join(" ".join(f"{type(each).__name__}: {each}".split())[:600] for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _processor() -> float:
    """Seconds of a core that this process, and those of its children that have ended, have taken."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _virtual_memory() -> int:
    """Bytes of this process's address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 1 << 22
    return pages * resource.getpagesize()
