"""Hyper-parameters per (objective, dataset, ipc), each with its source: one TOML file per objective.

The objective ImageNet-abcde/DM has the file ImageNet-abcde/DM.toml.

[[CIFAR10.ipc2]]                      several blocks per cell, one for each source
source = "published: ..."             where the values of this block come from
lr_freq = 1e6                         the names are those of the command line

[[CIFAR10.any]]                       values for every ipc of the dataset; a cell's own values win
[[ImageNet.ipc1]]                     for every subset imagenet-*; what a subset's own table says wins
[CIFAR10.ipc2_published]              accuracy in %, as published, with its source (where there is one)
["imagenet-a".ipc1_256px_published]   the same for images of another size than the recipe's own
[[pixels.any]]                        the baseline on plain pixels (--transform identity), for every dataset
[defaults]                            options with another default than the other objectives', see `defaults`
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.datasets.imagenet_classes import NAMES, WHOLE
from common.system.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERY_IPC = 0  # in place of an ipc: what holds for all of a dataset's

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """`values` by option name, `sources` for each of them; `published` is {"accuracy", "std", "source"} or None."""

    objective: str
    dataset: str
    ipc: int
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    published: dict[str, Any] | None = None

    def without(self, *names: str) -> Recipe:
        """The same recipe less what it says of some options."""
        values, sources = (
            {key: value for key, value in each.items() if key not in names} for each in (self.values, self.sources)
        )
        return replace(self, values=values, sources=sources)


def find(objective: str, dataset: str, ipc: int, pixels: bool = False) -> Recipe:
    """The recipe of one cell, empty where there is none.

    pixels: the baseline on plain pixels; its own step size and k replace those of the coefficients, whatever the cell.
    """
    table = _table(objective)
    blocks = []
    for cells in _cells(objective, dataset):
        blocks += [*cells.get("any", []), *cells.get(f"ipc{ipc}", [])]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for block in [*blocks, *(table["pixels"]["any"] if pixels else [])]:
        given = {key: value for key, value in block.items() if key != "source"}
        values.update(given)
        sources.update(dict.fromkeys(given, block["source"]))
    return Recipe(objective, dataset, ipc, values, sources, table.get(dataset, {}).get(f"ipc{ipc}_published"))


def defaults(objective: str) -> dict[str, Any]:
    """Options that an objective's folder, and then the objective, gives another default than the other objectives.

    They hold for distilling, converting and evaluating alike, where neither flag nor recipe says more. They stand in
    the tables `[defaults]` of <folder>/defaults.toml and of the objective's own file; "none" there means None.
    """
    files = [_FOLDER / objective.rpartition("/")[0] / "defaults.toml", _FOLDER / f"{objective}.toml"]
    found: dict[str, Any] = {}
    for file in files:
        if file.exists():
            found |= _read(file).get("defaults", {})
    return {key: None if value == "none" else value for key, value in found.items()}


def published(objective: str, dataset: str, ipc: int, image_size: int | None = None) -> dict[str, Any] | None:
    """What is published for a cell, {"accuracy", "std", "source"}, or None.

    image_size: side of the images in pixels, where it is not the recipe's own; a recipe that names none has but one.
    """
    recipe = find(objective, dataset, ipc)
    if image_size is None or image_size == recipe.values.get("image_size", image_size):
        return recipe.published
    return _table(objective).get(dataset, {}).get(f"ipc{ipc}_{image_size}px_published")


def available(objective: str) -> dict[str, list[int]]:
    """The ipc that have a recipe, by dataset."""
    return {
        dataset: sorted({
            int(key[3:])
            for cells in _cells(objective, dataset)
            for key in cells
            if key.startswith("ipc") and key[3:].isdigit()
        })
        for dataset in _datasets(objective)
    }  # fmt: skip


def check_dataset(objective: str, dataset: str) -> None:
    """Raises InputError where an objective has no recipe for a dataset, naming those it has."""
    if dataset not in _datasets(objective):
        names = ", ".join(_datasets(objective))
        raise InputError(f"{objective} has no recipe for '{dataset}': choose one of {names}")


def _datasets(objective: str) -> list[str]:
    """The datasets that have a recipe; the table of ImageNet is not one, but stands for all of its subsets."""
    names = [name for name in _table(objective) if name not in ("defaults", "pixels", WHOLE)]
    return [*names, *(name for name in NAMES if name not in names)] if WHOLE in _table(objective) else names


def _cells(objective: str, dataset: str) -> list[dict[str, Any]]:
    """The tables that say something of a dataset, each winning over those before it."""
    table = _table(objective)
    names = (WHOLE, dataset) if dataset in NAMES else (dataset,)
    return [table[name] for name in names if name in table]


def _table(objective: str) -> dict[str, Any]:
    return _read(_FOLDER / f"{objective}.toml")


@lru_cache
def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


# In the order in which a set of unknown origin is most likely to be one of them.
OBJECTIVES = ("TM", "ImageNet-abcde/TM", "ImageNet-abcde/DM", "ImageNet-abcde/DC", "DM", "DC")
