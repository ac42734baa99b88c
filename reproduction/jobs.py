"""A cell as a job, which runs the cell's commands, keeps a record of them, and may be interrupted at any time.

The record, <output>/<scale>/cells/<table>/<cell>.json, holds what is known before there is a summary: commands, state,
errors and times. A process that works on the cell holds a lock beside the record.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.disk.locks import take_lock, wait_for_lock
from common.schemas import door
from common.system.errors import InputError, Stopped
from common.system.files import json_checksum, write_json
from common.system.scripts import Script
from common.system.version import code_version
from reproduction.cells import Command, check_target, folder_of, steps
from reproduction.plan import Plan, images_of
from reproduction.tables import Cell

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

State = Literal["not started", "queued", "running", "interrupted", "failed", "finished"]
KEPT = "finished cells and the last checkpoint are kept, the same command continues"
_OUTPUT = ("the folder", "--output")  # what `take_lock` calls the folder, and its flag, in error messages


_REMEDY = "remove it; the results of its runs are kept"  # of a damaged record


def record_file(cell: Cell, plan: Plan) -> Path:
    """The path of the record of a cell."""
    return plan.root / "cells" / cell.table / f"{'-'.join(cell.parts)}.json"


def read_record(cell: Cell, plan: Plan) -> dict[str, Any]:
    """The record of a cell with its current state; {"state": "not started"} if there is no record.

    Raises InputError if the record is damaged.
    """
    file = record_file(cell, plan)
    if not file.exists():
        return {"state": "not started"}
    record = _read(file)
    if record["state"] == "running" and not _is_held(file):
        record["state"] = "interrupted"  # it was killed before it could write its state
    return record


def write_record(cell: Cell, plan: Plan, **entries: Any) -> None:
    """Change the given entries of a cell's record, and keep all others."""
    file = record_file(cell, plan)
    before = _read(file) if file.exists() else {}
    record = {**before, "cell": cell.name, "scale": plan.scale, **entries}
    write_json(file, record | {"checksum": json_checksum(record)})


def _read(file: Path) -> dict[str, Any]:
    from common.schemas.results import Record

    record = door.read(file, Record, _REMEDY)
    if "checksum" in record and record.pop("checksum") != json_checksum(record):
        raise InputError(f"{file} is damaged (wrong checksum): {_REMEDY}")
    return record


def is_finished(cell: Cell, plan: Plan) -> bool:
    """Whether the results of a cell exist."""
    todo = steps(cell, plan)
    return all(step.is_done for step in todo if step.script == todo[-1].script)


class CellJob:
    """A callable that runs the unfinished commands of a cell. submitit interrupts and requeues it by `checkpoint`."""

    def __init__(self, cell: Cell, plan: Plan) -> None:
        self.cell, self.plan = cell, plan
        self._script: Script | None = None

    def __call__(self) -> None:
        """Run the cell. Raises InputError if a command fails, and Stopped if it was stopped; the record says so too."""
        with self._held():
            if self.plan.resume == "auto" and is_finished(self.cell, self.plan):
                self._note(state="finished", reason=None, script=None)  # it may have been stopped just before
                print(f"{self.cell.name} is finished, and kept (--resume never would start it over)", flush=True)
                return
            try:
                todo = steps(self.cell, self.plan, make=True)
                self._begin(todo)
                for step in todo:
                    self._run(step)
            except InputError as error:
                self._note(state="failed", reason=str(error))
                raise
            except (Stopped, KeyboardInterrupt, SystemExit) as error:
                self._note_interruption(str(error) or type(error).__name__)
                raise
            except BaseException as error:
                self._note(state="failed", reason=f"{type(error).__name__}: {error}")
                raise
            self._note(state="finished", reason=None)

    def checkpoint(self) -> DelayedSubmission:
        """Called from submitit's signal handler: let the run save and end, and return the job that continues it."""
        from submitit.helpers import DelayedSubmission

        if self._script is not None:
            self._script.stop()
        self._note_interruption("by the cluster, to be continued")
        return DelayedSubmission(CellJob(self.cell, replace(self.plan, resume="auto")))

    def _begin(self, todo: Sequence[Command]) -> None:
        """Record that the cell is running. If the record is of the same run, its time and interruptions are kept."""
        folder = str(folder_of(self.cell, self.plan).relative_to(self.plan.root))
        before = read_record(self.cell, self.plan)
        if self.plan.resume == "never" or before.get("folder") != folder:
            before = {}
        images, version = images_of(self.cell, self.plan).label, code_version()
        self._note(
            state="running",
            commands=[step.command for step in todo],
            images=images,
            folder=folder,
            seeds=self.plan.seeds,
            seconds=before.get("seconds", 0.0),
            interruptions=before.get("interruptions", 0),
            reason=None,
            begun_by=before.get("begun_by", version),
        )
        if images:
            print(f"{self.cell.name}: on {images}", flush=True)
        check_target(self.cell, self.plan)

    def _run(self, step: Command) -> None:
        with _alone(step.product):
            if step.keep and step.is_done:
                return
            print(f"\n$ {step.command}", flush=True)
            begun = time.monotonic()
            script = self._script = Script(step.script, step.words, step.nproc)
            self._note(script=script.pid)
            try:
                code = script.wait()
            except BaseException:
                script.stop()
                raise
            finally:
                self._script = None
                spent = read_record(self.cell, self.plan).get("seconds", 0.0) + time.monotonic() - begun
                self._note(script=None, seconds=round(spent, 1))
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            raise Stopped(code - 128, KEPT)
        if code:
            raise InputError(f"{step.script} ended with exit code {code}: {script.reason}")

    def _note(self, **entries: Any) -> None:
        write_record(self.cell, self.plan, **entries)

    def _note_interruption(self, reason: str) -> None:
        record = read_record(self.cell, self.plan)
        if record["state"] == "running":
            self._note(state="interrupted", reason=reason, interruptions=record.get("interruptions", 0) + 1)

    @contextmanager
    def _held(self) -> Iterator[None]:
        lock = take_lock(_lock_of(record_file(self.cell, self.plan)), *_OUTPUT)
        if lock is None:
            raise InputError(f"another process is at work on {self.cell.name}: wait for it, or leave the cell out")
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _alone(product: Path | None) -> Iterator[None]:
    """Inside the block, no other cell makes the same product. Cells on drifted images share another cell's set."""
    if product is None:
        yield
        return
    lock = wait_for_lock(product.parent / ".cell.lock", *_OUTPUT)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


def _lock_of(file: Path) -> Path:
    return file.with_name(f".{file.stem}.lock")


def _is_held(file: Path) -> bool:
    """Whether a process works on the cell of the record `file`. If the lock cannot be tested, the answer is yes."""
    if not _lock_of(file).exists():
        return False
    try:
        lock = take_lock(_lock_of(file), *_OUTPUT)
    except InputError:  # somebody else's folder, or a read-only one
        return True
    if lock is not None:
        lock.release()
    return lock is None
