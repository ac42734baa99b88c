"""Compares our code with the authors': `python benchmarks/versus_authors.py --authors PATH --output FILE.json`.

PATH is a checkout of sdh0818/FreD. Both sides do the same pieces of work (cases.py), in turns and in one process, as
measure.py describes. `--table FILE.json` writes the table of such a file into benchmarks/README.md.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)
from common.system.start import free_memory_as_usual, keep_freed_memory

import gc
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cases
import table
import torch
from cases import AUTHORS, CASES, Case
from checkout import check_checkout
from measure import check_report, in_turns, peak, report
from tqdm import tqdm

from common.config.checks import check_least
from common.config.command_line import parse_plain
from common.costs.meter import weigh
from common.system.command import run_command
from common.system.devices import can_compile, resolve_device
from common.system.errors import InputError
from common.system.version import code_version

_SETTINGS = ("OMP_", "MKL_", "KMP_", "GOMP_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")  # of the environment


@dataclass
class Options:
    """Measure the time and memory of our code beside the authors'."""

    authors: str | None = None
    """folder of a checkout of https://github.com/sdh0818/FreD"""
    only: str = ""
    """run only the cases whose name contains this text; several texts are joined by commas"""
    repeats: int = 5
    """timed runs of each version, after one run to warm up; 0 measures memory only"""
    memory: bool = True
    """measure peak memory too, of each version in a separate process"""
    same_allocator: bool = False
    """let malloc keep freed memory for the authors' code too, as our scripts do on Linux"""
    threads: int = 1
    """threads of torch; the committed table is of 1"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu"""
    output: str | None = None
    """also write the results to this JSON file, anew after every case"""
    table: str | None = None
    """measure nothing: write the table of this JSON file into benchmarks/README.md"""


def main() -> None:
    options = parse_plain(Options)
    if options.table is not None:
        table.renew(Path(options.table))
        return
    authors = check_checkout(options.authors)
    check_report(options.output)
    check_least(options, "threads", 1)
    check_least(options, "repeats", 0)
    chosen = choose(options.only)
    device = resolve_device(options.device)
    torch.set_num_threads(options.threads)
    compiles = can_compile()
    results: dict[str, dict[str, Any]] = {name: {"what": case.what} for name, case in chosen.items()}
    about = {
        "version": code_version(),  # of the code that was loaded; a run is long, and the checkout may move on
        "authors": _commit(authors),
        "repeats": options.repeats,
        "allocator": "the same, which keeps freed memory" if options.same_allocator else "as each starts",
        "environment": _environment(),
    }
    for name, case in chosen.items():
        if options.memory and case.network:
            tqdm.write(f"{name}: memory")
            results[name]["peak_mib"] = {}
            for version in case.names(compiles):
                most = peak(prepared, name, version, authors, options, device, device=device)
                results[name]["peak_mib"][version] = most
                tqdm.write(f"  {version:<44} {most:9.0f} MiB at most")
            report(options.output, results, device, **about)
    for name, case in chosen.items() if options.repeats else ():
        tqdm.write(f"{name}: {case.what}")
        results[name] |= timed(case, authors, options, compiles, device)
        report(options.output, results, device, **about)


def choose(only: str) -> dict[str, Case]:
    """The cases whose name contains one of the texts in `only`, all for "". Raises InputError if there are none."""
    texts = [text.strip() for text in only.split(",")]
    chosen = {name: case for name, case in CASES.items() if any(text in name for text in texts)}
    if not chosen:
        raise InputError(f"no case's name contains '{only}': there are {', '.join(CASES)}")
    return chosen


def allocate(version: str, same: bool) -> None:
    """Let malloc do what it does where a version is started by itself: for ours keep freed memory. same: for all."""
    if same or not version.startswith(AUTHORS):
        keep_freed_memory()
    else:
        free_memory_as_usual()


def prepared(case: str, version: str, authors: Path, options: Options, device: torch.device) -> cases.Run:
    """A version by the names of its case and itself, so that another process can prepare it."""
    torch.set_num_threads(options.threads)
    allocate(version, options.same_allocator)
    return CASES[case].prepare(version, authors, device)


def timed(case: Case, authors: Path, options: Options, compiles: bool, device: torch.device) -> dict[str, Any]:
    """Time the versions of a case and, if a network computes, what the machine reaches beside them.

    FLOPs are counted in one call of the first version, the authors', and stand for all versions: what a version
    computes twice is not worth more.
    """
    gc.collect()
    torch.compiler.reset()  # torch recompiles a function a few times only, and then runs it eagerly without a word
    versions = {name: case.prepare(name, authors, device) for name in case.names(compiles)}
    measured = partial(
        in_turns,
        repeats=options.repeats,
        device=device,
        calls=case.calls,
        before=lambda name: allocate(name, options.same_allocator),
    )
    if not case.network:
        return {"seconds": measured(versions)}
    first = next(iter(versions))
    counted: list[int] = []
    runs, flops = cases.references(case.size, device)
    runs = versions | {first: counting(versions[first], counted)} | runs
    return {"seconds": measured(runs), "flops": flops | dict.fromkeys(versions, counted[0])}


def counting(version: cases.Run, counted: list[int]) -> cases.Run:
    """The version, whose first call, which is not timed, counts its FLOPs into `counted`."""

    def call() -> None:
        if counted:
            version()
        else:
            counted.append(weigh(version).flops)

    return call


def _commit(checkout: Path) -> str | None:
    """The commit of the checkout, or None if it is not in git."""
    told = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return told.stdout.strip() or None if told.returncode == 0 else None


def _environment() -> dict[str, str]:
    """The settings of threads and of the allocator that this process was started with."""
    return {name: value for name, value in os.environ.items() if name.startswith(_SETTINGS)}


if __name__ == "__main__":
    run_command(main)
