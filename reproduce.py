"""Reproduce the published tables, cell by cell: `python reproduce.py list|run|report --help`.

python reproduce.py list                                       lists every cell: published accuracy, ours, time, data
python reproduce.py run --table tm-lowres --cells cifar10/1    runs one cell as published; meant for a GPU
python reproduce.py run --table dm-lowres --scale short        runs reduced cells, an hour each on a CPU core
python reproduce.py run --table 3d-mnist --seeds 0-4           distils five sets per cell, for a deviation over sets
python reproduce.py run --table 3d-mnist --dry_run             only prints the commands
python reproduce.py run --table tm-lowres --launcher slurm --partition gpu --gpus_per_node 1
                                                               runs the cells as jobs of a SLURM cluster
python reproduce.py report                                     writes report.md, report.csv and report.html

If a command was stopped, run the same command again: finished cells are kept, and stopped cells are resumed.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from common.config.checks import check_least
from common.config.command_line import parse_command
from common.config.options import TrackerName
from common.config.seeds import parse_seeds
from common.system.command import run_command
from common.system.devices import Precision
from common.system.errors import InputError
from common.system.files import write_atomically, write_csv
from reproduction import listing, results, sweep, tabulate
from reproduction.cells import steps
from reproduction.jobs import CellJob
from reproduction.page import write_results_page
from reproduction.plan import Plan, images_of, parse_images
from reproduction.scales import Scale
from reproduction.tables import Cell, select


@dataclass
class Which:
    """The options that all commands share: which cells, and where their results are."""

    table: str | None = None
    """tm-lowres, tm-imagenet128, imagenet-abcde, imagenet128, dm-imagenet256, dm-lowres, dc-lowres, 3d-mnist or
    corruption (default: all)"""
    cells: tuple[str, ...] = ()
    """cells, given by parts of their names, e.g. cifar10/1 mnist a/1 DM/imagewoof (default: all cells of the table)"""
    output: str = "runs/reproduce"
    """folder for all results, with a subfolder for each scale"""
    images: tuple[str, ...] = ()
    """NAME=folder:PATH (or NAME=hf:...): run dataset NAME with its recipe on images from elsewhere; their results are
    labelled everywhere"""

    def chosen(self) -> list[Cell]:
        return select(self.table, self.cells)

    def plan(self, scale: Scale) -> Plan:
        return Plan(scale=scale, output=self.output, images=parse_images(self.images))


@dataclass
class Scaled(Which):
    """The options that decide the commands of a cell."""

    scale: Scale = "full"
    """full: as published; short: reduced to an hour on a CPU core; smoke: a test of seconds on stand-in images.
    Results of different scales are kept apart."""
    data_path: str | None = None
    """folder that holds the datasets, or that they are downloaded to (default: data; for ImageNet the folder that the
    environment variable IMAGENET names, if it is set)"""
    buffer_path: str | None = None
    """folder of the expert trajectories (default: buffers; for the scales short and smoke a folder below --output)"""

    def scaled_plan(self, **more: Any) -> Plan:
        """The plan for these options. Raises InputError for --images or --data_path with --scale smoke."""
        if self.scale == "smoke" and (self.images or self.data_path):
            raise InputError("--scale smoke runs on stand-in images: leave out --images and --data_path")
        return replace(self.plan(self.scale), data_path=self.data_path, buffer_path=self.buffer_path, **more)


@dataclass
class List(Scaled):
    """List every cell: published accuracy, ours so far, source of the recipe, time and memory, and missing data."""

    rate: Literal["cpu", "cuda"] = "cuda"
    """machine to estimate times for. cpu: two CPU cores, with a measured speed; cuda: a GPU, with an assumed speed"""

    def run(self) -> None:
        print(listing.as_text(self.chosen(), self.scaled_plan(), self.rate))


@dataclass
class Run(Scaled, sweep.Cluster):
    """Run cells: train missing experts, then distil, then evaluate."""

    dry_run: bool = False
    """only print the commands"""
    launcher: sweep.Launcher = "here"
    """here: one cell after another; local: cells as processes of this machine; slurm: a job array on a cluster"""
    nproc: int = 1
    """processes per cell, one per GPU (started by torchrun)"""
    resume: Literal["auto", "never"] = "auto"
    """auto: keep finished cells and resume unfinished ones; never: start the cells from scratch"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu"""
    precision: Precision = "fp32"
    """precision in which networks compute: fp32, tf32 or bf16"""
    compile: bool = False
    """compile the networks"""
    no_download: bool = False
    """never download a missing dataset"""
    seeds: str | None = None
    """distil each cell once with each of these seeds, e.g. 0-4, and report mean and standard deviation over the sets
    (default: one set, of seed 0)"""
    track: TrackerName = "none"
    """also show curves and pictures in wandb or tensorboard"""

    def run(self) -> None:
        for key, least in {"parallel": 0, "gpus_per_node": 0, "nproc": 1, "cpus_per_task": 1, "timeout_min": 1}.items():
            check_least(self, key, least)
        if self.table is None and not self.cells:
            raise InputError("that would be every cell: give --table, or --cells (python reproduce.py list shows them)")
        if self.launcher == "here" and (unused := sweep.differing(self)):
            raise InputError(f"--{unused[0]} is for --launcher local and slurm: give one of them, or leave it out")
        cells = self.chosen()
        if self.seeds is not None:
            parse_seeds(self.seeds)
        shared = ("device", "precision", "compile", "no_download", "seeds", "track", "nproc", "resume")
        plan = self.scaled_plan(**{key: getattr(self, key) for key in shared})
        if self.dry_run:
            for cell in cells:
                label = images_of(cell, plan).label
                print(f"# {cell.name}, scale {self.scale}{f', {label}' if label else ''}")
                print("\n".join(step.command for step in steps(cell, plan)), end="\n\n")
            return
        jobs = [CellJob(cell, plan) for cell in cells]
        logs = plan.root / "jobs"
        if self.launcher == "here":
            sweep.run_here(jobs)
        elif self.launcher == "local":
            sweep.run_local(jobs, self, logs)
        else:
            sweep.submit_slurm(jobs, self, logs)
        print(f"\npython reproduce.py report --output {self.output} shows what came of it")


@dataclass
class Report(Which):
    """Write our results beside the published ones to report.md, report.csv and report.html."""

    scales: tuple[Scale, ...] = field(default_factory=lambda: tuple(reversed(get_args(Scale))))
    """scales to report; each row shows its scale"""
    to: str | None = None
    """folder for the three files (default: --output)"""

    def run(self) -> None:
        rows = results.collect(self.chosen(), [self.plan(scale) for scale in self.scales])
        if not rows:
            raise InputError(f"nothing has been run yet in {self.output}: python reproduce.py run --help")
        folder = Path(self.to or self.output)
        text = tabulate.as_markdown(rows)
        write_atomically(folder / "report.md", lambda file: file.write_text(text, encoding="utf-8"))
        write_csv(folder / "report.csv", tabulate.as_csv_rows(rows))
        page = folder / "report.html"
        write_results_page(
            page, tabulate.as_page_rows(rows, page), "FreD: ours beside the published figures", tabulate.NOTES
        )
        for row in rows:
            name, figure = f"{row.table}/{row.cell}", row.ours or "-"
            print(f"{name:40} {row.state:12} {figure:>14}  published {row.published_text:12} {row.remarks}")
        print(f"\n{folder / 'report.md'}\n{folder / 'report.csv'}\n{page}")


COMMANDS: dict[str, type] = {"list": List, "run": Run, "report": Report}


if __name__ == "__main__":
    run_command(lambda: parse_command(COMMANDS, "python reproduce.py").run())
