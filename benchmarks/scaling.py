"""Draws how DM's time grows with ipc and TM's memory with syn_steps: `python benchmarks/scaling.py --output NAME`.

Writes NAME.json, NAME.png and NAME.svg. measure.py describes how time and memory are measured.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ours
import torch
import trajectory
from matplotlib.figure import Figure
from measure import check_report, in_turns, peak, report
from sizes import SMALL
from tqdm import tqdm

from common.config.command_line import parse_plain
from common.system.command import run_command
from common.system.devices import can_compile, resolve_device
from common.system.files import write_atomically

UNROLLS = {"plain": "plain unroll", "adjoint": "adjoint in chunks"}  # as in trajectory.VERSIONS
SHAPES = "CIFAR-10's shapes, ConvNetD3"

Curves = dict[str, dict[int, float]]  # name of a version -> {x: value}


@dataclass
class Options:
    """Measure the time of an update of DM against ipc, and the memory of an update of TM against syn_steps."""

    output: str = "scaling"
    """path of the files to write, without .json, .png and .svg"""
    ipc: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """budgets of DM, in images per class; k is 64, so there are 16 times as many images"""
    classes: int = 2
    """classes of DM; time is proportional to them"""
    repeats: int = 3
    """timed updates of DM, after one to warm up"""
    syn_steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """steps of the student in TM"""
    images: int = 32
    """synthetic images of TM; every step uses all of them"""
    plain_most: int = 50
    """largest number of steps for which the plain unroll is measured too"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu"""


def main() -> None:
    options = parse_plain(Options)
    device = resolve_device(options.device)
    check_report(f"{options.output}.json")
    curves = {"memory": memory_curves(options, device), "time": time_curves(options, device)}
    report(f"{options.output}.json", {**curves, "options": vars(options)}, device)
    figure = draw(curves, options, device)
    for suffix in ("png", "svg"):
        save = partial(figure.savefig, format=suffix, dpi=150)
        write_atomically(Path(f"{options.output}.{suffix}"), save)


def time_curves(options: Options, device: torch.device) -> Curves:
    """Median seconds of an update of DM at each ipc, eager and compiled in turns; on a CPU those of the process."""
    clock = "cpu_median_s" if device.type == "cpu" else "median_s"
    ways = {"eager": False, "compiled": True} if can_compile() else {"eager": False}
    curves: Curves = {name: {} for name in ways}
    for ipc in options.ipc:
        tqdm.write(f"DM, ipc {ipc}")
        torch.compiler.reset()  # a run has one size
        size = replace(SMALL, dm=(ipc, SMALL.dm[1]), classes=options.classes)
        timed = in_turns({name: ours.dm(size, device, way) for name, way in ways.items()}, options.repeats, device)
        for name, curve in curves.items():
            curve[ipc] = timed[name][clock]
    return curves


def memory_curves(options: Options, device: torch.device) -> Curves:
    """MiB at the peak of an update of TM at each number of steps, by both ways to unroll."""
    curves: Curves = {name: {} for name in UNROLLS}
    given = trajectory.Options(images=options.images, device=options.device)
    for name, version in UNROLLS.items():
        for steps in options.syn_steps:
            if name == "adjoint" or steps <= options.plain_most:
                curves[name][steps] = peak(trajectory.update, trajectory.VERSIONS[version], steps, given, device=device)
                tqdm.write(f"TM, {name}, {steps} steps: {curves[name][steps]:.0f} MiB at most")
    return curves


def draw(curves: Mapping[str, Curves], options: Options, device: torch.device) -> Figure:
    """Both plots side by side."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    seconds = "CPU seconds per update" if device.type == "cpu" else "seconds per update"
    _plot(left, curves["time"], "ipc", seconds, f"DM, {options.classes} classes, k {SMALL.dm[1]}")
    _plot(right, curves["memory"], "syn_steps", "peak memory (MiB)", f"TM, {options.images} images")
    figure.suptitle(SHAPES)
    return figure


def _plot(axes: Any, curves: Curves, x: str, y: str, title: str) -> None:
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, title=title, xlim=(0, None), ylim=(0, None))
    axes.legend()


if __name__ == "__main__":
    run_command(main)
