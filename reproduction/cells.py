"""The commands that run a cell, in their order, and the folders of their results.

<output>/<scale>/                                    one folder each for the scales full, short and smoke
    <objective>/<dataset>/ipc<ipc>/<table>/          run folders, the same as of any distillation
    <objective>/<dataset>/ipc<ipc>/<table>-seed<N>/  with --seeds, and <table>-seeds/ for what they have in common
    corruption/<cell>/                               results of robustness tests; with --seeds <cell>-seeds/seed<N>/
    cells/<table>/<cell>.json                        commands, state and times of a cell
    buffers/                                         expert trajectories of the scales short and smoke
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from common.config.command_line import find_recipe
from common.config.options import BufferOptions
from common.config.places import run_folder, seed_name, seeds_folder
from common.config.seeds import parse_seeds
from common.datasets import default_data_path
from common.disk.paths import expanded
from common.experts.folder import buffer_folder, expert_files
from common.experts.open import find_buffer
from common.report.seeds import FILE as SEEDS_FILE
from common.report.seeds import named_runs
from common.robustness.targets import target_folder
from common.runs.finished import SUMMARY, is_finished_run
from common.system.scripts import as_typed
from reproduction.plan import Images, Plan, images_of
from reproduction.programs import program
from reproduction.scales import Flags, reduction
from reproduction.standins import make_target, target_path
from reproduction.tables import Cell

DRIFTED_LEVEL = 5  # the corruption level of the authors' script


@dataclass(frozen=True)
class Command:
    """A script with its flags, run by `nproc` processes.

    product: the file that exists once the command has finished; a command without a product is run every time. seeds:
    the seeds that a product of --seeds has to be about. keep: skip the command if it is done already.
    """

    script: str
    words: tuple[str, ...]
    nproc: int
    product: Path | None = None
    keep: bool = True
    seeds: tuple[int, ...] = ()

    @property
    def is_done(self) -> bool:
        """Whether the product exists and is whole, and of several seeds is about at least these."""
        if self.product is None or not self.product.exists():
            return False
        if self.product.name == SEEDS_FILE:
            runs = named_runs(self.product.parent)
            return runs.keys() >= set(self.seeds) and all(map(is_finished_run, runs.values()))
        return self.product.name != SUMMARY or is_finished_run(self.product.parent)

    @property
    def command(self) -> str:
        """The command line as a user would type it."""
        return as_typed(self.script, self.words, self.nproc)


class Experts(NamedTuple):
    """The experts of a TM cell: how many are in its buffer, how many it needs, and whether they are the authors'."""

    there: int
    wanted: int
    authors: bool


def folder_of(cell: Cell, plan: Plan) -> Path:
    """The folder with the results of a cell: its run folder or, on drifted images, its own results folder."""
    if cell.target is not None:
        folder = plan.root / cell.table / "-".join(cell.parts)
    else:
        folder = _run_folder(cell, images_of(cell, plan), plan)
    return folder if plan.seeds is None else seeds_folder(folder)


def source_folder(cell: Cell, plan: Plan, seed: int | None = None) -> Path:
    """The run folder of the synthetic set that a cell tests on drifted images. seed: with --seeds, the set's."""
    folder = _run_folder(_source_of(cell), images_of(cell, plan), plan)
    return folder if seed is None else folder.with_name(seed_name(folder.name, seed))


def drifted_folders(folder: Path, seeds: Iterable[int]) -> dict[int | None, Path]:
    """The folders with the results of robustness tests, by seed; without seeds `folder` itself, by None."""
    return {seed: folder / f"seed{seed}" for seed in seeds} or {None: folder}


def check_target(cell: Cell, plan: Plan) -> None:
    """Raises InputError for missing drifted images, which would otherwise show only after hours of distillation."""
    if cell.target is not None and plan.scale != "smoke":
        root = plan.data_path or default_data_path(images_of(cell, plan).dataset)
        target_folder(cell.target, expanded(root))


def steps(cell: Cell, plan: Plan, make: bool = False) -> list[Command]:
    """The commands of a cell in their order: training of experts if any are needed, distillation, robustness test.

    make: also create the stand-in images that the commands read.
    """
    if cell.target is None:
        return _distillation(cell, cell, plan, make)
    # The synthetic set also belongs to another cell, so it is made only if it is missing.
    before = _distillation(_source_of(cell), cell, replace(plan, resume="auto"), make)
    flags: Flags = {
        "target_dataset": cell.target,
        **({} if cell.target == "CIFAR10.1" else {"level": str(DRIFTED_LEVEL)}),
        **{key: value for key, value in images_of(cell, plan).flags.items() if key in ("dataset", "data_path")},
    }
    if plan.scale == "smoke":
        flags["target_path"] = str(target_path(plan.standins))
        if make:
            make_target(cell.target, cell.dataset, plan.standins)
    flags |= {**reduction(cell, plan.scale).evaluate, **_machine(plan)}
    for seed, folder in drifted_folders(folder_of(cell, plan), seeds_of(plan.seeds)).items():
        own: Flags = {"synset": str(source_folder(cell, plan, seed) / "synset.safetensors"), "output": str(folder)}
        # Each network is tested on all corruptions, so one process does everything.
        product, keep = folder / "results.json", plan.resume == "auto"
        before.append(Command("corruption-exp/evaluate.py", _words(own | flags), 1, product, keep))
    return before


def seeds_of(text: str | None) -> tuple[int, ...]:
    """The seeds of --seeds; () without it."""
    return () if text is None else tuple(parse_seeds(text))


def experts(cell: Cell, plan: Plan) -> Experts | None:
    """How many experts of a cell exist; None for an objective without experts."""
    if program(cell.objective, cell.dataset).buffer is None:
        return None
    recipe, asked = find_recipe(cell.objective, cell.dataset, cell.ipc).values, reduction(cell, plan.scale).buffer
    wanted = int(asked.get("num_experts", recipe.get("num_experts", BufferOptions.num_experts)))
    place = plan.buffers(cell), images_of(cell, plan).dataset, asked.get("model") or str(recipe["model"])
    found = find_buffer(*place, zca=False)
    if found != buffer_folder(*place, zca=False):
        return Experts(wanted, wanted, authors=True)  # counting these means reading all of them
    return Experts(min(len(expert_files(found)), wanted), wanted, authors=False)


def _source_of(cell: Cell) -> Cell:
    table = "tm-imagenet128" if cell.target == "ImageNet-C" else "tm-lowres"
    return Cell(table, cell.objective, cell.dataset, cell.ipc)


def _distillation(cell: Cell, whose: Cell, plan: Plan, make: bool) -> list[Command]:
    """The commands that distil `cell`. whose: the cell they are for, which differs from `cell` for drifted images."""
    scripts, reduced = program(cell.objective, cell.dataset), reduction(whose, plan.scale)
    images = images_of(whose, plan, make)
    shared = images.flags | _machine(plan)
    flags = zip(cell.flags[::2], cell.flags[1::2], strict=True)
    own: Flags = {"ipc": str(cell.ipc)} | reduced.distill | {key.removeprefix("--"): value for key, value in flags}
    before = []
    found = experts(whose, plan)
    if scripts.buffer is not None and found is not None:
        own["buffer_path"] = str(plan.buffers(cell))
        if not found.authors:
            asked = shared | reduced.buffer | {"buffer_path": own["buffer_path"], "wait": "True"}
            before = [Command(scripts.buffer, _words(asked), plan.nproc)]
    where = {"save_path": str(plan.root), "name": _run_name(cell, images, plan)}
    if plan.resume != "auto":
        where["resume"] = plan.resume
    if plan.seeds is not None:
        where["seeds"] = plan.seeds
    if plan.track != "none":
        where |= {"track": plan.track, "track_group": f"{cell.name}, {plan.scale}"}
    words = (*scripts.flags, *_words(shared | own | where))
    folder, keep = _run_folder(cell, images, plan), plan.resume == "auto"
    product = folder / SUMMARY if plan.seeds is None else seeds_folder(folder) / SEEDS_FILE
    return [*before, Command(scripts.script, words, plan.nproc, product, keep, seeds_of(plan.seeds))]


def _run_folder(cell: Cell, images: Images, plan: Plan) -> Path:
    return run_folder(plan.root, cell.objective, images.dataset, cell.ipc, _run_name(cell, images, plan))


def _run_name(cell: Cell, images: Images, plan: Plan) -> str:
    """The name of the run folder: the table, plus the cell's dataset if other images take its place."""
    standin = "-standin" if plan.scale == "smoke" else ""
    return cell.table + ("" if images.dataset == cell.dataset else f"-{cell.dataset}") + standin


def _machine(plan: Plan) -> Flags:
    """The flags for device, precision, compilation and download that differ from their defaults."""
    asked = {"device": (plan.device, "auto"), "precision": (plan.precision, "fp32")}
    flags = {key: value for key, (value, default) in asked.items() if value != default}
    switches = {"compile": plan.compile, "no_download": plan.no_download}
    return flags | {key: "True" for key, given in switches.items() if given}


def _words(flags: Flags) -> tuple[str, ...]:
    return tuple(word for key, value in flags.items() for word in (f"--{key}", value))
