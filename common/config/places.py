"""Where a run lies."""

from __future__ import annotations

from pathlib import Path


def run_folder(save_path: str | Path, objective: str, dataset: str, ipc: int, name: str) -> Path:
    """<save_path>/<objective>/<dataset>/ipc<ipc>/<name>."""
    return Path(save_path) / objective / dataset_folder(dataset) / f"ipc{ipc}" / name


def dataset_folder(dataset: str) -> str:
    """A dataset's name as that of a folder; of folder:PATH and hf:PATH the path's last part is named."""
    kind, colon, path = dataset.partition(":")
    if kind == "hf":
        path = path.partition("?")[0]  # what is chosen of it, what lies in the folder tells apart
    return f"{kind}-{Path(path).name}" if colon else kind
