"""The published tables as lists of cells: objective, dataset and budget. Accuracies and options are in the recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from common import recipes
from common.datasets.imagenet_classes import PREFIX, canonical
from common.datasets.voxels import NAME as VOXELS
from common.robustness.conditions import TargetName
from common.system.errors import InputError, close_names

Figure = Literal["best_on_test", "last"]

_SIX = tuple(f"{PREFIX}{key}" for key in ("imagenette", "imagewoof", "fruits", "yellow", "cats", "birds"))
_LETTERS = tuple(f"{PREFIX}{key}" for key in "abcde")
_ALONE = ("--eval_mode", "S")


@dataclass(frozen=True)
class Cell:
    """One cell of a table. `flags` are passed to the distillation script in addition to the recipe."""

    table: str
    objective: str
    dataset: str
    ipc: int
    image_size: int | None = None
    """side of the images in pixels, if the table differs from the recipe"""
    flags: tuple[str, ...] = ()
    target: TargetName | None = None
    """drifted images that the networks are tested on, if the table is about robustness"""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the name that identify the cell within its table."""
        several = len({cell.objective for cell in TABLES[self.table].cells}) > 1
        objective = (self.objective.rpartition("/")[2],) if several else ()
        return (*objective, self.dataset, *((self.target,) if self.target else ()), str(self.ipc))

    @property
    def name(self) -> str:
        """The full name: TABLE/DATASET/IPC, with the objective or the target added if the table has several."""
        return "/".join((self.table, *self.parts))

    @property
    def published(self) -> dict[str, Any] | None:
        """{"accuracy" in %, "std" if it is known, "source"}, or None if the published accuracy is unknown."""
        if self.target is not None:
            return None
        return recipes.published(self.objective, self.dataset, self.ipc, self.image_size)

    def matches(self, query: str) -> bool:
        """Whether a query names this cell by some of its parts in their order, e.g. cifar10/1, a/1 or DM/imagewoof."""
        wanted = iter([plain(part) for part in (self.table, *self.parts)])
        return all(plain(part) in wanted for part in query.split("/"))  # `in` moves on, so order counts


def plain(part: str) -> str:
    """The name for comparisons: in lower case, and for ImageNet subsets the key, e.g. fruits."""
    return canonical(f"{PREFIX}{part.lower().removeprefix(PREFIX)}").removeprefix(PREFIX)


@dataclass(frozen=True)
class Table:
    """A published table. figure: which of our accuracies is compared with the published ones."""

    title: str
    source: str
    figure: Figure
    cells: tuple[Cell, ...]


def _cells(
    table: str,
    objectives: Iterable[str],
    budgets: Mapping[str, Sequence[int]],
    image_size: int | None = None,
    flags: tuple[str, ...] = (),
) -> tuple[Cell, ...]:
    return tuple(
        Cell(table, objective, dataset, ipc, image_size, flags)
        for objective in objectives
        for dataset, ipcs in budgets.items()
        for ipc in ipcs
    )


_SMALL = {"MNIST": (1, 10), "FashionMNIST": (1, 10)}
_SMALLEST = {**_SMALL, "CIFAR10": (1, 2, 10)}  # the authors' scripts use ipc 2
_LARGER = dict.fromkeys(("SVHN", "CIFAR10", "CIFAR100", "Tiny"), (1, 10, 50))
_README = "README of the authors' repository"
_LATER = "arXiv 2509.26219, a later paper; not known to be in FreD's own"
_UNKNOWN = "none: the paper's appendix could not be read"

TABLES: dict[str, Table] = {
    "tm-lowres": Table(
        "Small images, TM", _README, "best_on_test", _cells("tm-lowres", ["TM"], {**_SMALL, **_LARGER})
    ),
    "tm-imagenet128": Table(
        "ImageNet subsets at 128 px, TM",
        _README,
        "best_on_test",
        _cells("tm-imagenet128", ["TM"], dict.fromkeys(_SIX, (1, 10))),
    ),
    # --wait_eval: until the last update, the table needs only the accuracy of the matched network.
    "imagenet-abcde": Table(
        "ImageNet-A to E at 128 px, DC, DM and TM",
        _README,
        "best_on_test",
        _cells(
            "imagenet-abcde",
            [f"ImageNet-abcde/{each}" for each in ("DC", "DM", "TM")],
            dict.fromkeys(_LETTERS, (1,)),
            flags=("--wait_eval", "True"),
        ),
    ),
    "imagenet128": Table(
        "ImageNet subsets at 128 px, DC and DM",
        f"{_LATER} (Table 2)",
        "best_on_test",
        _cells(
            "imagenet128",
            ["ImageNet-abcde/DC", "ImageNet-abcde/DM"],
            dict.fromkeys((name for name in _SIX if not name.endswith("yellow")), (1,)),
            flags=_ALONE,
        ),
    ),
    "dm-imagenet256": Table(
        "ImageNet subsets at 256 px, DM",
        f"{_LATER} (Table 3)",
        "best_on_test",
        _cells("dm-imagenet256", ["ImageNet-abcde/DM"], dict.fromkeys(_SIX, (1,)), 256, _ALONE),
    ),
    "dm-lowres": Table("Small images, DM", _UNKNOWN, "last", _cells("dm-lowres", ["DM"], _SMALLEST)),
    "dc-lowres": Table("Small images, DC", _UNKNOWN, "last", _cells("dc-lowres", ["DC"], _SMALLEST)),
    "3d-mnist": Table("3D-MNIST, DM", _UNKNOWN, "last", _cells("3d-mnist", ["DM"], {VOXELS: (1,)})),
    "corruption": Table(
        "Robustness of sets that TM distilled: mean accuracy over fifteen corruptions at level 5, or on CIFAR-10.1",
        _UNKNOWN,
        "last",
        (
            Cell("corruption", "TM", "CIFAR10", 1, target="CIFAR10-C"),
            Cell("corruption", "TM", "CIFAR10", 1, target="CIFAR10.1"),
            Cell("corruption", "TM", f"{PREFIX}imagenette", 1, target="ImageNet-C"),
        ),
    ),
}  # fmt: skip


def select(table: str | None = None, queries: Sequence[str] = ()) -> list[Cell]:
    """The cells of a table (None: of all tables) that match any of the queries. Without queries, all its cells.

    Raises InputError for an unknown table, and for a query that matches no cell; the message lists the cells.
    """
    if table is not None and table not in TABLES:
        close = close_names(table, TABLES)
        guess = f", did you mean {close}?" if close else ":"
        raise InputError(f"there is no table '{table}'{guess} give one of {', '.join(TABLES)}")
    there = [cell for name, each in TABLES.items() if table in (None, name) for cell in each.cells]
    for query in queries:
        if not any(cell.matches(query) for cell in there):
            names = ", ".join("/".join(cell.parts) for cell in there)
            where = f"table {table} has {names}" if table else "python reproduce.py list shows them"
            raise InputError(f"there is no cell '{query}': {where}")
    return [cell for cell in there if not queries or any(cell.matches(query) for query in queries)]
