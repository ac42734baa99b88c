"""The path of a run folder."""

from __future__ import annotations

from pathlib import Path


def run_folder(save_path: str | Path, objective: str, dataset: str, ipc: int, name: str) -> Path:
    """The path <save_path>/<objective>/<dataset>/ipc<ipc>/<name>."""
    return Path(save_path) / objective / dataset_folder(dataset) / f"ipc{ipc}" / name


def dataset_folder(dataset: str) -> str:
    """The folder name that stands for a dataset: for folder:PATH and hf:PATH, the prefix and the last part of PATH."""
    kind, colon, path = dataset.partition(":")
    if kind == "hf":
        path = path.partition("?")[0]  # the query selects columns and splits; it is no part of the name
    return f"{kind}-{Path(path).name}" if colon else kind
