"""Where runs and expert trajectories lie."""

from __future__ import annotations

import re
from pathlib import Path

from common.system.errors import InputError

BUFFERS = "buffers"
"""The default --buffer_path of TM, relative to the current folder."""


def check_objective(name: str) -> None:
    """Raise InputError if the name of an objective cannot be that of a folder, or of a folder in a folder."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(f"'{name}' names no objective: give the name of a folder, such as DM or ImageNet-abcde/DM")


def buffers_of(objective: str, root: str | Path = BUFFERS) -> str:
    """The default --buffer_path of an objective: `root`, or a folder in it for the scripts of ImageNet-abcde."""
    folder, slash, _ = objective.partition("/")
    return str(Path(root) / folder) if slash else str(root)


def run_folder(
    save_path: str | Path, objective: str, dataset: str, ipc: int, name: str, bits: int | None = None
) -> Path:
    """The path <save_path>/<objective>/<dataset>/ipc<ipc>/<name>; bits<bits> if the budget is in bits per class."""
    budget = f"ipc{ipc}" if bits is None else f"bits{bits}"
    return Path(save_path) / objective / dataset_folder(dataset) / budget / name


def seed_name(name: str, seed: int) -> str:
    """The name of one of several runs that share `name` and differ in the seed."""
    return f"{name}-seed{seed}"


def seeds_folder(run: Path) -> Path:
    """The folder of what several runs have in common that differ only in the seed. run: the name that they share."""
    return run.with_name(f"{run.name}-seeds")


def dataset_folder(dataset: str) -> str:
    """The folder name that stands for a dataset: for folder:PATH and hf:PATH, the prefix and the last part of PATH."""
    kind, colon, path = dataset.partition(":")
    if kind == "hf":
        path = path.partition("?")[0]  # the query selects columns and splits; it is no part of the name
    return f"{kind}-{Path(path).name}" if colon else kind
