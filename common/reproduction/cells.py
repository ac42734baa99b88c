"""How a cell is run: which images, and the commands behind it in their order.

<output>/<scale>/                                    of `full`, `short` and `smoke` each, so that they never mix
    <objective>/<dataset>/ipc<ipc>/<table>/          run folders, as of any distillation
    corruption/<cell>/                               results of robustness
    cells/<table>/<cell>.json                        commands, state, times
    buffers/                                         experts of reduced scales
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.buffers import buffer_folder, expert_files
from common.datasets import PREFIXES
from common.errors import InputError
from common.launch import as_typed
from common.options import find_recipe
from common.reproduction.programs import program
from common.reproduction.scales import Flags, Scale, reduction
from common.reproduction.standins import make_target, stand_in, target_path
from common.reproduction.tables import TABLES, Cell, plain
from common.run import run_folder
from common.trajectories import find_buffer

STANDINS = "standins"
DRIFTED_LEVEL = 5  # of the authors' script


@dataclass(frozen=True)
class Plan:
    """Where and how cells are run: what decides neither their figures nor their folders, scale and images aside."""

    scale: Scale = "full"
    output: str = "runs/reproduce"
    data_path: str | None = None
    buffer_path: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    no_download: bool = False
    track: str = "none"
    nproc: int = 1
    resume: str = "auto"
    images: dict[str, str] = field(default_factory=dict)
    """datasets whose images are taken from elsewhere: CIFAR10 -> folder:PATH"""

    @property
    def root(self) -> Path:
        """Everything of this scale."""
        return Path(self.output) / self.scale

    @property
    def buffers(self) -> Path:
        """Experts: those of the full scale serve any run, the others only their own scale."""
        return Path(self.buffer_path or ("buffers" if self.scale == "full" else self.root / "buffers"))


@dataclass(frozen=True)
class Images:
    """Which images a cell's dataset stands for: its own, others that the user names, or a stand-in."""

    dataset: str
    flags: Flags
    label: str = ""
    """what they are, where they are not the dataset's own"""


@dataclass(frozen=True)
class Step:
    """A script with its flags, which has done its work once `product` is there (None: to be run every time)."""

    script: str
    words: tuple[str, ...]
    nproc: int
    product: Path | None = None

    @property
    def command(self) -> str:
        """As a user would type it."""
        return as_typed(self.script, self.words, self.nproc)


def images_of(cell: Cell, plan: Plan, make: bool = False) -> Images:
    """The images of a cell; stand-ins are made on the disk if `make`. Raises InputError for images that cannot do."""
    if plan.scale == "smoke":
        folder = plan.root / STANDINS
        found = stand_in(cell.dataset, folder, cell.target is not None, make)
        flags = {"dataset": found.dataset, "data_path": found.data_path}
        if found.image_size is not None:
            flags["image_size"] = str(found.image_size)
        return Images(found.dataset, {key: value for key, value in flags.items() if value}, found.description)
    size = {} if cell.image_size is None else {"image_size": str(cell.image_size)}
    place = {} if plan.data_path is None else {"data_path": plan.data_path}
    other = plan.images.get(cell.dataset)
    if other is None:
        return Images(cell.dataset, {"dataset": cell.dataset, **place, **size})
    return Images(other, {"dataset": other, "recipe": cell.dataset, **place, **size}, f"images of {other}")


def parse_images(words: Sequence[str]) -> dict[str, str]:
    """NAME=folder:PATH ... as a dictionary. Raises InputError for a word of another form."""
    images = {}
    datasets = {plain(cell.dataset): cell.dataset for table in TABLES.values() for cell in table.cells}
    for word in words:
        name, _, place = word.partition("=")
        if plain(name) not in datasets or not place.startswith(tuple(PREFIXES)):
            raise InputError(
                f"--images {word} is not of the form NAME=folder:PATH or NAME=hf:owner/name, with NAME one of "
                f"{', '.join(sorted(datasets.values()))}"
            )
        images[datasets[plain(name)]] = place
    return images


def folder_of(cell: Cell, plan: Plan) -> Path:
    """Where the figures of a cell end: its run folder, or of a drifted test set the folder of its results."""
    if cell.target is not None:
        return plan.root / cell.table / "-".join(cell.parts)
    return _run_folder(cell, images_of(cell, plan), plan)


def _run_folder(cell: Cell, images: Images, plan: Plan) -> Path:
    return run_folder(plan.root, cell.objective, images.dataset, cell.ipc, _run_name(cell, images))


def _run_name(cell: Cell, images: Images) -> str:
    """The table's name; with the dataset's where other images stand in its place, and may stand in others' too."""
    return cell.table if images.dataset == cell.dataset else f"{cell.table}-{cell.dataset}"


def source_of(cell: Cell) -> Cell:
    """The cell whose synthetic set a cell on drifted images tests."""
    table = "tm-imagenet128" if cell.target == "ImageNet-C" else "tm-lowres"
    return Cell(table, cell.objective, cell.dataset, cell.ipc)


def steps(cell: Cell, plan: Plan, make: bool = False) -> list[Step]:
    """The commands of a cell in their order: experts where there are to be some, distillation, robustness.

    make: also make the stand-ins that they read.
    """
    if cell.target is None:
        return _distillation(cell, cell, plan, make)
    source = source_of(cell)
    before = _distillation(source, cell, plan, make)
    product = before[-1].product
    assert product is not None  # a distillation leaves its summary
    flags: Flags = {"synset": str(product.with_name("synset.safetensors")), "target_dataset": cell.target}
    if cell.target != "CIFAR10.1":
        flags["level"] = str(DRIFTED_LEVEL)
    images = images_of(cell, plan)
    flags |= {key: value for key, value in images.flags.items() if key in ("dataset", "data_path")}
    if plan.scale == "smoke":
        flags["target_path"] = str(target_path(plan.root / STANDINS))
        if make:
            make_target(cell.target, cell.dataset, plan.root / STANDINS)
    folder = folder_of(cell, plan)
    flags |= {"output": str(folder), **reduction(cell, plan.scale).evaluate, **_machine(plan)}
    # It keeps the networks that it trains, to test each on everything: one process does it all.
    return [*before, Step("corruption-exp/evaluate.py", _words(flags), 1, folder / "results.json")]


def _distillation(cell: Cell, whose: Cell, plan: Plan, make: bool) -> list[Step]:
    """whose: the cell that it is for, on drifted images another than the one that is distilled."""
    scripts, reduced = program(cell.objective, cell.dataset), reduction(whose, plan.scale)
    images = images_of(whose, plan, make)
    shared = images.flags | _machine(plan) | ({"no_download": "True"} if plan.no_download else {})
    flags = zip(cell.flags[::2], cell.flags[1::2], strict=True)
    own: Flags = {"ipc": str(cell.ipc)} | reduced.distill | {key.removeprefix("--"): value for key, value in flags}
    before = []
    if scripts.buffer is not None:
        path = plan.buffers / "ImageNet-abcde" if "/" in cell.objective else plan.buffers
        own["buffer_path"] = str(path)
        before = _experts(
            cell, scripts.buffer, shared | reduced.buffer | {"buffer_path": str(path)}, images, plan.nproc
        )
    where = {"save_path": str(plan.root), "name": _run_name(cell, images), "resume": plan.resume, "track": plan.track}
    words = (*scripts.flags, *_words(shared | own | where))
    return [*before, Step(scripts.script, words, plan.nproc, _run_folder(cell, images, plan) / "summary.json")]


def _experts(cell: Cell, script: str, flags: Flags, images: Images, nproc: int) -> list[Step]:
    """The step that trains the experts; none where the authors' replay buffers lie in their place."""
    model = flags.get("model") or str(find_recipe(cell.objective, cell.dataset, cell.ipc).values["model"])
    theirs = find_buffer(flags["buffer_path"], images.dataset, model, zca=False)
    if theirs != buffer_folder(flags["buffer_path"], images.dataset, model, zca=False):
        return []
    return [Step(script, _words(flags | {"wait": "True"}), nproc)]


def experts(cell: Cell, plan: Plan) -> tuple[int, int] | None:
    """(experts that are there, experts that are wanted); None for an objective without."""
    scripts = program(cell.objective, cell.dataset)
    if scripts.buffer is None:
        return None
    recipe = find_recipe(cell.objective, cell.dataset, cell.ipc).values
    asked = reduction(cell, plan.scale).buffer
    path = plan.buffers / "ImageNet-abcde" if "/" in cell.objective else plan.buffers
    model = asked.get("model") or str(recipe["model"])
    there = expert_files(buffer_folder(path, images_of(cell, plan).dataset, model, zca=False))
    wanted = int(asked.get("num_experts", recipe.get("num_experts", 100)))
    return min(len(there), wanted), wanted


def _machine(plan: Plan) -> Flags:
    """Where and how precisely to compute, as far as it is not the default."""
    asked = {"device": (plan.device, "auto"), "precision": (plan.precision, "fp32")}
    flags = {key: value for key, (value, default) in asked.items() if value != default}
    return flags | ({"compile": "True"} if plan.compile else {})


def _words(flags: Flags) -> tuple[str, ...]:
    defaults = {"resume": "auto", "track": "none"}
    return tuple(word for key, value in flags.items() if defaults.get(key) != value for word in (f"--{key}", value))
