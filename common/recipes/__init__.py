"""Hyper-parameters per (objective, dataset, ipc), each with its source: one TOML file an objective.

[[CIFAR10.ipc2]]                      several blocks a cell, one for each source
source = "published: ..."             where the values of this block come from
lr_freq = 1e6                         the names are those of the command line

[[CIFAR10.any]]                       values for every ipc of the dataset; a cell's own values win
[CIFAR10.ipc2_published]              accuracy in %, as published, with its source (where there is one)
[[pixels.any]]                        the baseline on plain pixels (--transform identity), for every dataset
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import InputError

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


def find(objective: str, dataset: str, ipc: int, pixels: bool = False) -> Recipe:
    """The recipe of one cell, empty where there is none.

    pixels: the baseline on plain pixels; its own step size and k replace those of the coefficients, whatever the cell.
    """
    table = _table(objective)
    cells = table.get(dataset, {})
    blocks = [*cells.get("any", []), *cells.get(f"ipc{ipc}", [])]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for block in [*blocks, *(table["pixels"]["any"] if pixels else [])]:
        given = {key: value for key, value in block.items() if key != "source"}
        values.update(given)
        sources.update(dict.fromkeys(given, block["source"]))
    return Recipe(objective, dataset, ipc, values, sources, cells.get(f"ipc{ipc}_published"))


def available(objective: str) -> dict[str, list[int]]:
    """The ipc that have a recipe, by dataset."""
    return {
        dataset: sorted(int(key[3:]) for key in cells if key.startswith("ipc") and key[3:].isdigit())
        for dataset, cells in _datasets(objective).items()
    }


def check_dataset(objective: str, dataset: str) -> None:
    """Raises InputError where an objective has no recipe for a dataset, naming those it has."""
    if dataset not in _datasets(objective):
        names = ", ".join(_datasets(objective))
        raise InputError(f"{objective} has no recipe for '{dataset}': choose one of {names}")


def _datasets(objective: str) -> dict[str, Any]:
    return {name: cells for name, cells in _table(objective).items() if name != "pixels"}


@lru_cache
def _table(objective: str) -> dict[str, Any]:
    with (_FOLDER / f"{objective}.toml").open("rb") as file:
        return tomllib.load(file)
