"""Recipes: hyper-parameters per (objective, dataset, ipc), each with its source, in one TOML file per objective.

The file of the objective ImageNet-abcde/DM is ImageNet-abcde/DM.toml. A (dataset, ipc) pair is called a cell.

[[CIFAR10.ipc2]]                      one block per source; a cell may have several
source = "published: ..."             where the values of this block come from
lr_freq = 1e6                         option names are those of the command line

[[CIFAR10.any]]                       values for every ipc of the dataset; blocks of a single ipc override them
[[ImageNet.ipc1]]                     values for every subset imagenet-*; a subset's own table overrides them
[CIFAR10.ipc2_published]              the published accuracy in % with its source, if there is one
["imagenet-a".ipc1_256px_published]   the same for images of another size than that of the recipe
[[pixels.any]]                        the baseline on plain pixels (--transform identity), for every dataset
[defaults]                            options whose default differs from that of other objectives, see `defaults`
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.datasets.imagenet_classes import NAMES, WHOLE
from common.system.errors import InputError
from common.system.scripts import distill_script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERY_IPC = 0  # passed in place of an ipc, it gives the values that hold for every ipc of a dataset

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of one cell.

    `values`: option name -> value. `sources`: option name -> where the value comes from. `published`: the published
    accuracy {"accuracy", "std", "source"} in %, or None.
    """

    objective: str
    dataset: str
    ipc: int
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    published: dict[str, Any] | None = None

    def without(self, *names: str) -> Recipe:
        """Return the same recipe without the values of these options."""
        values, sources = (
            {key: value for key, value in each.items() if key not in names} for each in (self.values, self.sources)
        )
        return replace(self, values=values, sources=sources)


def find(objective: str, dataset: str, ipc: int, pixels: bool = False) -> Recipe:
    """Return the recipe of one cell, or an empty recipe if there is none.

    pixels: return the recipe of the baseline on plain pixels, whose learning rate and k replace those of the cell.
    """
    table = _table(objective)
    blocks = []
    for cells in _cells(objective, dataset):
        blocks += [*cells.get("any", []), *cells.get(f"ipc{ipc}", [])]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for block in [*blocks, *(table.get("pixels", {}).get("any", []) if pixels else [])]:
        given = {key: value for key, value in block.items() if key != "source"}
        values.update(given)
        sources.update(dict.fromkeys(given, block["source"]))
    return Recipe(objective, dataset, ipc, values, sources, table.get(dataset, {}).get(f"ipc{ipc}_published"))


def defaults(objective: str) -> dict[str, Any]:
    """Return the options whose default differs in this objective from that of the other objectives.

    These defaults hold for distilling, converting and evaluating, unless a flag or a recipe gives the option. They are
    read from the table `[defaults]` of <folder>/defaults.toml and then from that of the objective's own file, which
    overrides the former. The text "none" in these tables means None.
    """
    files = [_FOLDER / objective.rpartition("/")[0] / "defaults.toml", _FOLDER / f"{objective}.toml"]
    found: dict[str, Any] = {}
    for file in files:
        if file.exists():
            found |= _read(file).get("defaults", {})
    return {key: None if value == "none" else value for key, value in found.items()}


def published(objective: str, dataset: str, ipc: int, image_size: int | None = None) -> dict[str, Any] | None:
    """Return what is published for a cell, {"accuracy", "std", "source"}, or None.

    image_size: side of the images in pixels; None for that of the recipe. It is ignored if the recipe names no size.
    """
    recipe = find(objective, dataset, ipc)
    if image_size is None or image_size == recipe.values.get("image_size", image_size):
        return recipe.published
    return _table(objective).get(dataset, {}).get(f"ipc{ipc}_{image_size}px_published")


def available(objective: str) -> dict[str, list[int]]:
    """Return the ipc values that have a recipe, for each dataset."""
    return {
        dataset: sorted({
            int(key[3:])
            for cells in _cells(objective, dataset)
            for key in cells
            if key.startswith("ipc") and key[3:].isdigit()
        })
        for dataset in _datasets(objective)
    }  # fmt: skip


def nearest(objective: str, dataset: str, images: float) -> int:
    """Return the ipc of the dataset's recipes that is nearest, by ratio, to a budget of so many images per class.

    Without a recipe it is the number itself, rounded, and at least 1.
    """
    known = available(objective).get(dataset) or [max(1, round(images))]
    return min(known, key=lambda ipc: max(ipc / images, images / ipc))


def check_dataset(objective: str, dataset: str) -> None:
    """Raise InputError if the objective has no recipe for the dataset; the message names the datasets it has."""
    if dataset not in _datasets(objective):
        names = ", ".join(_datasets(objective))
        if not names:
            raise InputError(f"{objective} has no recipes: leave out --recipe")
        raise InputError(
            f"{objective} has no recipe for '{dataset}': {elsewhere(objective, dataset)}choose one of {names}"
        )


def elsewhere(objective: str, dataset: str) -> str:
    """The script that has the recipe which the objective's own lacks, as the begin of a remedy; "" if none has it."""
    others = [other for other in OBJECTIVES if other.endswith(f"/{objective}") and dataset in _datasets(other)]
    return f"use {' '.join(distill_script(others[0]))}, which has one, or " if others else ""


def _datasets(objective: str) -> list[str]:
    """Return the datasets that have a recipe; the table ImageNet stands for all of its subsets, not for a dataset."""
    names = [name for name in _table(objective) if name not in ("defaults", "pixels", WHOLE)]
    return [*names, *(name for name in NAMES if name not in names)] if WHOLE in _table(objective) else names


def _cells(objective: str, dataset: str) -> list[dict[str, Any]]:
    """Return the tables that apply to a dataset; later tables override earlier ones."""
    table = _table(objective)
    names = (WHOLE, dataset) if dataset in NAMES else (dataset,)
    return [table[name] for name in names if name in table]


def _table(objective: str) -> dict[str, Any]:
    file = _FOLDER / f"{objective}.toml"
    return _read(file) if file.exists() else {}  # an objective of one's own has no recipes


@lru_cache
def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return tomllib.load(file)


# Ordered by how likely a set of unknown origin was made by each, the most likely first.
OBJECTIVES = ("TM", "ImageNet-abcde/TM", "ImageNet-abcde/DM", "ImageNet-abcde/DC", "DM", "DC")
