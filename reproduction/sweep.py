"""Many cells, one after another here, side by side on this machine, or as a job array of a SLURM cluster (submitit)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import torch

from common.system.errors import InputError, Stopped
from reproduction.jobs import KEPT, CellJob, is_finished, read_record, write_record

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

Launcher = Literal["here", "local", "slurm"]
INSTALL = "pip install 'submitit>=1.5' (part of the extra clusters)"
_POLL = 0.2  # seconds between two looks at local jobs
_REQUEUES = 1000  # time limits that a job may meet: each time it has come further


@dataclass
class Cluster:
    """What a job asks for."""

    parallel: int = 0
    """cells at the same time (0: local one, slurm as many as the cluster starts)"""
    gpus_per_node: int | None = None
    """GPUs of a job (default: one per process, local where this machine has any; local jobs share the first ones)"""
    cpus_per_task: int | None = None
    """CPU cores of a job (slurm; default: the partition's)"""
    mem_gb: float | None = None
    """memory of a job in GB (slurm; default: the partition's)"""
    timeout_min: int = 24 * 60
    """minutes after which a job is interrupted, saves, and is queued again (local: six times at most)"""
    partition: str | None = None
    """partition of the cluster (slurm)"""
    account: str | None = None
    """account that pays (slurm)"""


def differing(cluster: Cluster) -> list[str]:
    """The options of a cluster that were given."""
    return [option.name for option in fields(Cluster) if getattr(cluster, option.name) != option.default]


def run_here(jobs: Sequence[CellJob]) -> None:
    """One cell after another. One that fails does not stop the rest; a signal does, once the cell has saved.

    Raises InputError at the end where some failed, and Stopped.
    """
    failed = []
    with _stopping_on_signals():
        for number, job in enumerate(jobs, 1):
            print(f"\n[{number}/{len(jobs)}] {job.cell.name}, scale {job.plan.scale}", flush=True)
            try:
                job()
            except Stopped:
                raise
            except Exception as error:  # its record says the same; the next cell is another matter
                print(f"{job.cell.name} failed: {error or type(error).__name__}", flush=True)
                failed.append(job.cell.name)
    _raise_if_any(failed, len(jobs))


def run_local(jobs: Sequence[CellJob], cluster: Cluster, folder: Path) -> None:
    """Cells as processes of this machine through submitit, some at a time; waits for all of them.

    folder: for submitit's files and logs. Raises InputError at the end where some failed, and Stopped.
    """
    executor = _executor("local", cluster, folder, jobs[0].plan.nproc if torch.cuda.is_available() else 0)
    waiting, failed = list(jobs), list[str]()
    active: list[tuple[CellJob, Job[None]]] = []
    try:
        with _stopping_on_signals():
            while waiting or active:
                while waiting and len(active) < (cluster.parallel or 1):
                    job = waiting.pop(0)
                    submitted = executor.submit(job)
                    print(f"{job.cell.name}: process {submitted.job_id}, log {submitted.paths.stdout}", flush=True)
                    active.append((job, submitted))
                time.sleep(_POLL)
                for job, submitted in [each for each in active if each[1].done()]:
                    active.remove((job, submitted))
                    if submitted.exception() is None:
                        print(f"{job.cell.name}: finished", flush=True)
                    else:
                        print(f"{job.cell.name}: failed, see {submitted.paths.stderr}", flush=True)
                        failed.append(job.cell.name)
    except Stopped:
        print("stopping: what runs saves first", flush=True)
        for job, submitted in active:
            _stop(job, submitted)
        raise
    _raise_if_any(failed, len(jobs))


def _stop(job: CellJob, submitted: Job[None]) -> None:
    """Ask a local job's script to save and end, and wait for the job: submitit itself would kill it after a second."""
    # Once: told twice, a script would end without saving.
    script = read_record(job.cell, job.plan).get("script")
    if script is None:
        submitted.cancel()  # the job is before or between its scripts
    else:
        with suppress(ProcessLookupError):
            os.kill(script, signal.SIGTERM)
    while not submitted.done():
        time.sleep(_POLL)


def submit_slurm(jobs: Sequence[CellJob], cluster: Cluster, folder: Path) -> None:
    """A job array with a job for each cell that is not finished, nor running; returns once it is queued.

    folder: for submitit's files and logs, on a file system that the nodes share. Raises InputError without a cluster.
    """
    utils = _import_submitit().core.utils
    jobs = [job for job in jobs if job.plan.resume == "never" or not is_finished(job.cell, job.plan)]
    jobs = [job for job in jobs if read_record(job.cell, job.plan)["state"] != "running"]
    if not jobs:
        print("all of these cells are finished, or running")
        return
    executor = _executor("slurm", cluster, folder, jobs[0].plan.nproc)
    try:
        array = executor.submit_array(jobs)
    except (utils.FailedJobError, utils.FailedSubmissionError) as error:
        raise InputError(
            f"SLURM has not taken the jobs ({' '.join(str(error).split())}): correct the options"
        ) from error
    for job, submitted in zip(jobs, array, strict=True):
        if read_record(job.cell, job.plan)["state"] != "running":  # it may have started already
            write_record(job.cell, job.plan, state="queued")
        print(f"{job.cell.name}: job {submitted.job_id}, log {submitted.paths.stdout}")


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            f"--launcher needs the package submitit: {INSTALL}; without it, leave --launcher out"
        ) from error
    return submitit


def _executor(kind: Literal["local", "slurm"], cluster: Cluster, folder: Path, gpus: int) -> AutoExecutor:
    """gpus: of a job, where the cluster's options do not say."""
    submitit = _import_submitit()
    try:
        limit: Any = {f"{kind}_max_num_timeout": _REQUEUES}
        executor = submitit.AutoExecutor(folder, cluster=kind, **limit)
    except RuntimeError as error:
        raise InputError(
            f"this machine cannot submit to SLURM ({error}): run it on a login node, or give --launcher local"
        ) from error
    asked: dict[str, Any] = {
        "name": "fred",
        "nodes": 1,
        "tasks_per_node": 1,
        "gpus_per_node": gpus if cluster.gpus_per_node is None else cluster.gpus_per_node,
        "timeout_min": cluster.timeout_min,
        "cpus_per_task": cluster.cpus_per_task,
        "mem_gb": cluster.mem_gb,
    }
    if kind == "slurm":
        asked |= {
            "slurm_partition": cluster.partition,
            "slurm_account": cluster.account,
            "slurm_array_parallelism": cluster.parallel or None,
        }
    executor.update_parameters(**{key: value for key, value in asked.items() if value is not None})
    return executor


@contextmanager
def _stopping_on_signals() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise Stopped, and are passed on to what runs."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, KEPT)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_if_any(failed: Sequence[str], count: int) -> None:
    if failed:
        raise InputError(
            f"{len(failed)} of {count} cells failed ({', '.join(failed)}): python reproduce.py report says why"
        )
