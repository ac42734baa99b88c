"""The commands behind a cell, in their order, and where they leave what they find.

<output>/<scale>/                                    of `full`, `short` and `smoke` each, so that they never mix
    <objective>/<dataset>/ipc<ipc>/<table>/          run folders, as of any distillation
    corruption/<cell>/                               results of robustness
    cells/<table>/<cell>.json                        commands, state, times
    buffers/                                         experts of reduced scales
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from common.config.command_line import find_recipe
from common.config.options import BufferOptions
from common.config.places import run_folder
from common.datasets import default_data_path
from common.experts.folder import buffer_folder, expert_files
from common.experts.open import find_buffer
from common.robustness.targets import target_folder
from common.system.scripts import as_typed
from reproduction.plan import Images, Plan, images_of
from reproduction.programs import program
from reproduction.scales import Flags, reduction
from reproduction.standins import make_target, target_path
from reproduction.tables import Cell

DRIFTED_LEVEL = 5  # of the authors' script


@dataclass(frozen=True)
class Command:
    """A script with its flags.

    product: what it leaves when it has done its work; without one it is run every time. keep: if the product is there
    already, it is kept.
    """

    script: str
    words: tuple[str, ...]
    nproc: int
    product: Path | None = None
    keep: bool = True

    @property
    def command(self) -> str:
        """As a user would type it."""
        return as_typed(self.script, self.words, self.nproc)


class Experts(NamedTuple):
    """Of a cell of TM: how many experts are in its buffer, how many it wants, and whether they are the authors'."""

    there: int
    wanted: int
    authors: bool


def folder_of(cell: Cell, plan: Plan) -> Path:
    """Where the figures of a cell end: its run folder, or of a drifted test set the folder of its results."""
    if cell.target is not None:
        return plan.root / cell.table / "-".join(cell.parts)
    return _run_folder(cell, images_of(cell, plan), plan)


def source_folder(cell: Cell, plan: Plan) -> Path:
    """The run folder of the synthetic set that a cell on drifted images tests."""
    return _run_folder(_source_of(cell), images_of(cell, plan), plan)


def check_target(cell: Cell, plan: Plan) -> None:
    """Raises InputError where drifted images are not there, which else would be found after hours of distillation."""
    if cell.target is not None and plan.scale != "smoke":
        root = plan.data_path or default_data_path(images_of(cell, plan).dataset)
        target_folder(cell.target, Path(root).expanduser())


def steps(cell: Cell, plan: Plan, make: bool = False) -> list[Command]:
    """The commands of a cell in their order: experts where there are to be some, distillation, robustness.

    make: also make the stand-ins that they read.
    """
    if cell.target is None:
        return _distillation(cell, cell, plan, make)
    # The set is another cell's as well: it is made where it is missing, never over again.
    before = _distillation(_source_of(cell), cell, replace(plan, resume="auto"), make)
    flags: Flags = {
        "synset": str(source_folder(cell, plan) / "synset.safetensors"),
        "target_dataset": cell.target,
        **({} if cell.target == "CIFAR10.1" else {"level": str(DRIFTED_LEVEL)}),
        **{key: value for key, value in images_of(cell, plan).flags.items() if key in ("dataset", "data_path")},
    }
    if plan.scale == "smoke":
        flags["target_path"] = str(target_path(plan.standins))
        if make:
            make_target(cell.target, cell.dataset, plan.standins)
    folder = folder_of(cell, plan)
    flags |= {"output": str(folder), **reduction(cell, plan.scale).evaluate, **_machine(plan)}
    # It keeps the networks that it trains, to test each on everything: one process does it all.
    product, keep = folder / "results.json", plan.resume == "auto"
    return [*before, Command("corruption-exp/evaluate.py", _words(flags), 1, product, keep)]


def experts(cell: Cell, plan: Plan) -> Experts | None:
    """What there is of a cell's experts; None for an objective without."""
    if program(cell.objective, cell.dataset).buffer is None:
        return None
    recipe, asked = find_recipe(cell.objective, cell.dataset, cell.ipc).values, reduction(cell, plan.scale).buffer
    wanted = int(asked.get("num_experts", recipe.get("num_experts", BufferOptions.num_experts)))
    place = plan.buffers(cell), images_of(cell, plan).dataset, asked.get("model") or str(recipe["model"])
    found = find_buffer(*place, zca=False)
    if found != buffer_folder(*place, zca=False):
        return Experts(wanted, wanted, authors=True)  # how many they hold, only reading would tell
    return Experts(min(len(expert_files(found)), wanted), wanted, authors=False)


def _source_of(cell: Cell) -> Cell:
    table = "tm-imagenet128" if cell.target == "ImageNet-C" else "tm-lowres"
    return Cell(table, cell.objective, cell.dataset, cell.ipc)


def _distillation(cell: Cell, whose: Cell, plan: Plan, make: bool) -> list[Command]:
    """whose: the cell that it is for, on drifted images another than the one that is distilled."""
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
    if plan.track != "none":
        where |= {"track": plan.track, "track_group": f"{cell.name}, {plan.scale}"}
    words = (*scripts.flags, *_words(shared | own | where))
    product, keep = _run_folder(cell, images, plan) / "summary.json", plan.resume == "auto"
    return [*before, Command(scripts.script, words, plan.nproc, product, keep)]


def _run_folder(cell: Cell, images: Images, plan: Plan) -> Path:
    return run_folder(plan.root, cell.objective, images.dataset, cell.ipc, _run_name(cell, images, plan))


def _run_name(cell: Cell, images: Images, plan: Plan) -> str:
    """The table's name; with the dataset's where other images stand in its place, and may stand in others' too."""
    standin = "-standin" if plan.scale == "smoke" else ""
    return cell.table + ("" if images.dataset == cell.dataset else f"-{cell.dataset}") + standin


def _machine(plan: Plan) -> Flags:
    """Where, how precisely and with what to compute, as far as it is not the default."""
    asked = {"device": (plan.device, "auto"), "precision": (plan.precision, "fp32")}
    flags = {key: value for key, (value, default) in asked.items() if value != default}
    switches = {"compile": plan.compile, "no_download": plan.no_download}
    return flags | {key: "True" for key, given in switches.items() if given}


def _words(flags: Flags) -> tuple[str, ...]:
    return tuple(word for key, value in flags.items() for word in (f"--{key}", value))
