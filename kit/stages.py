"""What a GPU is asked for while there is one, in stages: tests, speed, the published settings, then further cells.

A call takes minutes. It works through the stages that are not finished, and stops the last one as a signal would: that
one saves, and goes on at the next call. kit.json says how far each stage has come, summary.md what came out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import pytest
import torch

from common.report.record import read_run
from common.schemas import door
from common.system.devices import describe_hardware
from common.system.errors import InputError, Stopped
from common.system.files import write_atomically, write_json
from common.system.scripts import ROOT, Script
from common.system.signals import raising_on_signals
from common.system.text import describe_seconds, hardware_in_words, in_percent
from common.system.version import code_version
from reproduction import listing, results, tabulate
from reproduction.plan import Plan
from reproduction.tables import Cell, select

Scale = Literal["full", "smoke"]
State = Literal["to do", "stopped", "finished", "failed"]
STATE, SUMMARY = "kit.json", "summary.md"
_KEPT = "finished stages are kept, and the same command goes on with the others"
_SIGNALLED = (130, 143)  # exit codes of a script that a signal has asked to save
_GRACE = 20.0  # seconds for a stage to save and end
_LEAST = 30.0  # seconds below which no further stage is begun
_FIRST = "tm-lowres/CIFAR10/1"
_TINY = ("--model", "ConvNetD1W16", "--Iteration", "4", "--eval_it", "0", "--num_eval", "1", "--epoch_eval_train", "1")


@dataclass(frozen=True)
class Stage:
    """A command of the kit. continues: it goes on where a signal stopped it; others start anew."""

    name: str
    what: str
    script: str
    words: tuple[str, ...]
    continues: bool = True


@dataclass
class Record:
    """How far a stage has come. seconds: of all its calls. said: why it failed. version, hardware: of the last call."""

    state: State = "to do"
    seconds: float = 0.0
    calls: int = 0
    said: str = ""
    version: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)


class Kit:
    """The kit in a folder.

    authors: a checkout of the authors' code to be timed beside ours, None to leave that out. data_path: folder of the
    datasets. Raises InputError for a folder with a kit of another scale.
    """

    def __init__(
        self, output: Path, device: torch.device, scale: Scale = "full", authors: str | None = None,
        data_path: str | None = None,
    ) -> None:  # fmt: skip
        self.output, self.device, self.scale, self._authors = output, device, scale, authors
        self.plan = Plan(scale, str(output / "tables"), data_path, device=str(device))
        self._hardware = describe_hardware(device)
        self.records, self._order = self._read()
        self._cells = self._ordered()
        self.stages = [*self._first(), *map(self._cell, self._cells.values())]

    def work(self, minutes: float) -> None:
        """Work through the stages for at most so many minutes. Raises Stopped after SIGINT or SIGTERM."""
        begun, whole = time.monotonic(), 60 * minutes
        try:
            for stage in self.stages:
                left = whole - (time.monotonic() - begun)
                if left < _LEAST:
                    break
                if self.records[stage.name].state != "finished":
                    self._run(stage, left - _GRACE, alone=left > whole - 1)
        finally:
            self.write_summary()

    @property
    def left(self) -> list[Stage]:
        """The stages that are not finished."""
        return [stage for stage in self.stages if self.records[stage.name].state != "finished"]

    # -- stages ------------------------------------------------------------------------------------------------

    def _first(self) -> Iterator[Stage]:
        smoke, device = self.scale == "smoke", ("--device", str(self.device))
        words = ("-q", "-m", "cuda", f"--junitxml={self.output / 'tests.xml'}")
        files = str(ROOT / ("tests/test_devices.py" if smoke else "tests"))
        start = str(Path(pytest.__file__).with_name("__main__.py"))
        yield Stage("tests", "every step beside the CPU", start, (*words, files), continues=False)
        quick = ("--repeats", "1", "--memory", "False") if smoke else ()
        few = ("--only", "variance_32") if smoke else ()
        yield self._timing("steps", "the parts of a distillation", "steps.py", *device, *quick, *few)
        small = (
            ("--model", "ConvNetD1W16", "--images", "10", "--syn_steps", "2", "--compiled", "False") if smoke else ()
        )
        yield self._timing("trajectory", "TM's gradient, two ways", "trajectory.py", *device, *quick, *small)
        if self._authors is not None:
            few = ("--only", "decode") if smoke else ()
            yield self._timing(
                "versus_authors", "ours beside the authors' code", "versus_authors.py", "--authors", self._authors,
                *device, *quick, *few,
            )  # fmt: skip
        yield self._set("dm", "DM, CIFAR-10 at ipc 2 as published", "DM/distill.py", "--ipc", "2")
        yield self._set(
            "coded", "DM through the codec, CIFAR-10 in the bits of ipc 1", "DM/distill.py", "--storage", "coded"
        )

    def _timing(self, name: str, what: str, script: str, *words: str) -> Stage:
        file = str(self.output / f"{name}.json")
        return Stage(name, what, f"benchmarks/{script}", (*words, "--output", file), continues=False)

    def _set(self, name: str, what: str, script: str, *words: str) -> Stage:
        data = ("--data_path", self.plan.data_path) if self.plan.data_path else ()
        some = ("--dataset", "digits", *_TINY) if self.scale == "smoke" else ("--dataset", "CIFAR10", *data)
        place = ("--save_path", str(self.output / "runs"), "--name", name, "--device", str(self.device))
        return Stage(name, what, script, (*some, *words, *place))

    def _ordered(self) -> dict[str, Cell]:
        """The cells of the tables by name: TM on CIFAR-10, then in the order of gain per minute.

        Cells whose published accuracy is known and whose images are here come first, the quicker before the slower.
        """
        names = [_FIRST] if self.scale == "full" else ["tm-lowres/MNIST/1", "dm-lowres/MNIST/1"]
        chosen = {cell.name: cell for cell in select(None, [] if self.scale == "full" else names)}
        if not self._order:
            worth = {name: self._worth(cell) for name, cell in chosen.items()}
            self._order = sorted(chosen, key=lambda name: (name != names[0], worth[name]))
        return {name: chosen[name] for name in self._order if name in chosen}

    def _worth(self, cell: Cell) -> tuple[bool, bool, float]:
        options, _ = listing.options_of(cell, self.plan)
        cost = listing.cost_of(cell, self.plan, options, "cuda")
        return listing.data_of(cell, self.plan) == "missing", cell.published is None, cost.flops

    def _cell(self, cell: Cell) -> Stage:
        data = ("--data_path", self.plan.data_path) if self.plan.data_path else ()
        words = ("run", "--table", cell.table, "--cells", "/".join(cell.parts), "--scale", self.scale)
        place = ("--output", self.plan.output, "--device", str(self.device))
        return Stage(cell.name, "a cell of the published tables", "reproduce.py", (*words, *data, *place))

    # -- a stage -----------------------------------------------------------------------------------------------

    def _run(self, stage: Stage, limit: float, alone: bool) -> None:
        """Run a stage for at most `limit` seconds. alone: whether that is the whole time of a call."""
        print(f"\n== {stage.name}: {stage.what}", flush=True)
        begun, late = time.monotonic(), threading.Event()
        with raising_on_signals(_KEPT):
            script = Script(stage.script, stage.words)

            def stop() -> None:
                late.set()
                script.ask_to_stop()

            timer = threading.Timer(limit, stop)
            timer.start()
            try:
                code = script.wait()
            except BaseException:
                script.stop()
                self._keep(stage, begun, "stopped")
                raise
            finally:
                timer.cancel()
        if code == 0:
            self._keep(stage, begun, "finished")
        elif late.is_set() and not stage.continues and alone:
            told = f"takes longer than {describe_seconds(limit)}: give more --minutes"
            self._keep(stage, begun, "failed", told)
        elif late.is_set():
            self._keep(stage, begun, "stopped")
        elif code in _SIGNALLED:
            self._keep(stage, begun, "stopped")
            raise Stopped(code - 128, _KEPT)
        else:
            self._keep(stage, begun, "failed", script.reason)

    def _keep(self, stage: Stage, begun: float, state: State, said: str = "") -> None:
        before = self.records[stage.name]
        seconds = round(before.seconds + time.monotonic() - begun, 1)
        self.records[stage.name] = Record(state, seconds, before.calls + 1, said, code_version(), self._hardware)
        told = {name: vars(record) for name, record in self.records.items()}
        write_json(self.output / STATE, {"scale": self.scale, "cells": self._order, "stages": told})

    def _read(self) -> tuple[_Records, list[str]]:
        from common.schemas.results import Kit as Schema

        path, records = self.output / STATE, _Records()
        if not path.exists():
            return records, []
        found = door.read(path, Schema, "remove it; what its runs have made is kept")
        if found["scale"] != self.scale:
            raise InputError(f"{self.output} holds a kit of scale {found['scale']}: give another --output")
        records.update({name: Record(**record) for name, record in found["stages"].items()})
        return records, found["cells"]

    # -- what came out -----------------------------------------------------------------------------------------

    def table(self) -> list[tuple[str, str, str, str]]:
        """(stage, state, time, what came out) of each stage."""
        rows: list[tuple[str, str, str, str]] = []
        for stage in self.stages:
            record = self.records[stage.name]
            took = describe_seconds(record.seconds) if record.calls else ""
            rows.append((stage.name, record.state, took, record.said or self._result(stage)))
        return rows

    def _result(self, stage: Stage) -> str:
        file = self.output / f"{stage.name}.json"
        if stage.name == "tests":
            return _tested(self.output / "tests.xml")
        if stage.name in self._cells:
            ours = results.row_of(self._cells[stage.name], self.plan).ours
            return f"{ours} %" if ours else ""
        if file.is_file():
            return file.name
        folder = next(iter(sorted((self.output / "runs").glob(f"*/*/*/{stage.name}"))), None)
        run = None if folder is None else read_run(folder)
        return "" if run is None or run.summary is None else in_percent(run.summary["last"])

    def write_summary(self) -> None:
        """Write <output>/summary.md: the stages, the machine, and the cells beside their published accuracies."""
        used = {record.version: hardware_in_words(record.hardware) for record in self.records.values() if record.calls}
        lines = [
            f"# What was measured, scale {self.scale}", "",
            *(f"- code {version}: {hardware}" for version, hardware in used.items()), "",
            "| stage | state | time | result |", "| --- | --- | --- | --- |",
            *("| " + " | ".join(each.replace("|", "\\|") for each in row) + " |" for row in self.table()), "",
        ]  # fmt: skip
        rows = results.collect(self._cells.values(), [self.plan])
        text = "\n".join([*lines, *([tabulate.as_markdown(rows)] if rows else [])])
        write_atomically(self.output / SUMMARY, lambda file: file.write_text(text, encoding="utf-8"))


class _Records(dict[str, Record]):
    """The records by stage; one that has not begun is to do."""

    def __missing__(self, name: str) -> Record:
        return Record()


def _tested(file: Path) -> str:
    """What pytest's XML file counts: "31 passed, 2 skipped"; "" without a file."""
    if not file.is_file():
        return ""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(file).getroot().iter("testsuite"):
        for key in counts:
            counts[key] += int(suite.get(key, 0))
    passed = counts.pop("tests") - sum(counts.values())
    return ", ".join(f"{count} {key}" for key, count in {"passed": passed, **counts}.items() if count)


def shown(rows: Sequence[tuple[str, ...]]) -> str:
    """The rows as a table in columns, below their heads."""
    table = [("stage", "state", "time", "result"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in table
    )
