"""Where the time of our code goes: `python benchmarks/profiles.py --output results/profiles`.

Each piece of a run (ours.py) is called once to warm up and then once under torch.profiler. The table lists the
operations that take the most CPU time of their own, and what they add up to.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)
from common.system.start import keep_freed_memory

from dataclasses import dataclass
from pathlib import Path

import torch
from cases import CASES, COMPILED, OURS
from torch.profiler import ProfilerActivity, profile

from common.config.checks import check_least
from common.config.command_line import parse_plain
from common.system.command import run_command
from common.system.devices import can_compile, describe_hardware, resolve_device
from common.system.errors import InputError
from common.system.files import check_writable, write_atomically
from common.system.version import code_version

_ACTIVITIES = (ProfilerActivity.CUDA, ProfilerActivity.XPU)  # of accelerators that torch can profile
_PIECES = ("dm", "dc", "tm", "expert", "test", "evaluation_1")


@dataclass
class Options:
    """Profile pieces of a run by torch.profiler."""

    only: str = ",".join(f"{piece}_32" for piece in _PIECES)
    """the cases to profile, joined by commas; benchmarks/cases.py has their names"""
    compile: bool = False
    """profile the versions with --compile"""
    rows: int = 15
    """operations per table"""
    threads: int = 1
    """threads of torch"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu"""
    output: str | None = None
    """also write each table to a text file in this folder"""


def main() -> None:
    options = parse_plain(Options)
    check_least(options, "rows", 1)
    check_least(options, "threads", 1)
    if options.output is not None:
        check_writable(Path(options.output) / "it.txt")
    chosen = [name.strip() for name in options.only.split(",")]
    for name in chosen:
        if name not in CASES or COMPILED not in CASES[name].ours:
            raise InputError(f"there is no case '{name}' that a network computes: benchmarks/cases.py has them")
    if options.compile and not can_compile():
        raise InputError("this machine cannot compile: leave out --compile")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = resolve_device(options.device)
    for name in chosen:
        text = profiled(name, COMPILED if options.compile else OURS, options.rows, device)
        print(text, flush=True)
        if options.output is not None:
            path = Path(options.output) / f"{name}{'_compiled' if options.compile else ''}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary, text=text: temporary.write_text(text))  # type: ignore[misc]


def profiled(name: str, version: str, rows: int, device: torch.device) -> str:
    """The table of one call of a version of a case, headed by what was measured on what."""
    case = CASES[name]
    run = case.ours[version](case.size, device)
    run()
    activities = [ProfilerActivity.CPU, *(each for each in _ACTIVITIES if each.name.lower() == device.type)]
    with profile(activities=activities) as profiler:
        run()
    by = f"self_{device.type}_time_total"
    table = profiler.key_averages().table(sort_by=by, row_limit=rows, max_name_column_width=48)
    told = {"version": code_version(), **describe_hardware(device)}
    about = "".join(f"{key}: {value}\n" for key, value in told.items())
    return f"{name}, {version}: {case.what}\n\n{about}\n{table}"


if __name__ == "__main__":
    run_command(main)
