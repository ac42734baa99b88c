"""Run many cells: one after another, in parallel on this machine, or as a job array on a SLURM cluster (submitit)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from common.system.errors import InputError, Stopped
from common.system.signals import raising_on_signals
from reproduction.jobs import KEPT, CellJob, is_finished, read_record, write_record

if TYPE_CHECKING:
    from submitit import AutoExecutor, Job

Launcher = Literal["here", "local", "slurm"]
INSTALL = "pip install 'submitit>=1.5' (part of the extra clusters)"
_POLL = 0.2  # seconds between two checks of local jobs
_REQUEUES = 1000  # how often a job may reach its time limit, for it makes progress each time


@dataclass
class Cluster:
    """The resources of a job."""

    parallel: int = 0
    """cells that run at the same time (0: one with local; with slurm as many as the cluster starts)"""
    gpus_per_node: int | None = None
    """GPUs per job (default: one per process, or none with local on a machine without GPUs). Local jobs share the first
    GPUs."""
    cpus_per_task: int | None = None
    """CPU cores per job (slurm only; default: that of the partition)"""
    mem_gb: float | None = None
    """memory per job in GB (slurm only; default: that of the partition)"""
    timeout_min: int = 24 * 60
    """minutes after which a job is interrupted, saves, and is queued again (local: at most six times)"""
    partition: str | None = None
    """partition of the cluster (slurm only)"""
    account: str | None = None
    """account that the jobs are charged to (slurm only)"""


def differing(cluster: Cluster) -> list[str]:
    """The names of the options of `cluster` that differ from their defaults."""
    return [option.name for option in fields(Cluster) if getattr(cluster, option.name) != option.default]


def run_here(jobs: Sequence[CellJob]) -> None:
    """Run one cell after another. If a cell fails, the others still run.

    Raises InputError at the end if any cell failed. On a signal the current cell saves, and Stopped is raised.
    """
    failed = []
    with raising_on_signals(KEPT):
        for number, job in enumerate(jobs, 1):
            print(f"\n[{number}/{len(jobs)}] {job.cell.name}, scale {job.plan.scale}", flush=True)
            try:
                job()
            except Stopped:
                raise
            except Exception as error:  # the record of the cell has it, and the other cells can still run
                print(f"{job.cell.name} failed: {error or type(error).__name__}", flush=True)
                failed.append(job.cell.name)
    _raise_if_any(failed, len(jobs))


def run_local(jobs: Sequence[CellJob], cluster: Cluster, folder: Path) -> None:
    """Run cells as processes of this machine through submitit, `cluster.parallel` at a time, and wait for all of them.

    folder: for submitit's files and logs. Raises InputError at the end if any cell failed. On a signal the running
    cells save, and Stopped is raised.
    """
    executor = _executor("local", cluster, folder, jobs[0].plan.nproc if torch.cuda.is_available() else 0)
    waiting, failed = list(jobs), list[str]()
    active: list[tuple[CellJob, Job[None]]] = []
    try:
        with raising_on_signals(KEPT):
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
    """Make a local job's script save and end, and wait for it. submitit itself would kill the job after a second."""
    # Only one signal is sent, because a second one would end the script without saving.
    script = read_record(job.cell, job.plan).get("script")
    if script is None:
        submitted.cancel()  # no script of the job is running
    else:
        with suppress(ProcessLookupError):
            os.kill(script, signal.SIGTERM)
    while not submitted.done():
        time.sleep(_POLL)


def submit_slurm(jobs: Sequence[CellJob], cluster: Cluster, folder: Path) -> None:
    """Submit a job array with one job for each cell that is neither finished nor running. Does not wait for the jobs.

    folder: for submitit's files and logs, on a file system that the nodes share. Raises InputError if there is no
    cluster, or if SLURM refuses the jobs.
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
    """The submitit executor for the options of `cluster`. gpus: GPUs per job if `cluster` gives no number."""
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


def _raise_if_any(failed: Sequence[str], count: int) -> None:
    if failed:
        raise InputError(
            f"{len(failed)} of {count} cells failed ({', '.join(failed)}): python reproduce.py report says why"
        )
