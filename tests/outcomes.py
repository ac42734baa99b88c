"""What commands leave, in a form that is equal where their results are: without times and places."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

# What may differ between two runs of one command, the folder's place among it: of a summary, and of a line of metrics.
SUMMARY_TIMES = frozenset({
    "seconds", "distillation_seconds", "evaluation_seconds", "peak_memory_bytes", "file", "picture", "version",
})  # fmt: skip
METRICS_TIMES = frozenset({"seconds", "measured"})
_TIMES = SUMMARY_TIMES | METRICS_TIMES | {"interruptions", "begun_by"}
# Files that are no results, or that say how a result came about.
_NO_RESULTS = frozenset({".lock", "log.txt", "checkpoint_previous.pt", "checksums.json"})
_NO_ENDS = (".png", ".html", ".tmp", ".lock")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in METRICS_TIMES} for line in lines]


def summary_of(folder: Path) -> dict[str, Any]:
    """The content of summary.json, without times."""
    content = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in content.items() if key not in SUMMARY_TIMES}


def everything(folder: Path) -> dict[str, Any]:
    """All results below a folder, by file: bytes of sets and experts, and values of what holds times, too."""
    return {
        path.relative_to(folder).as_posix(): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _NO_RESULTS and path.suffix not in _NO_ENDS
    }


def _content(path: Path) -> Any:
    if path.name == "metrics.jsonl":
        return metrics_of(path.parent)
    if path.name == "summary.json":
        return summary_of(path.parent)
    if path.name == "checkpoint.pt":
        content = torch.load(path, weights_only=True)
        return _without_times({"state": content["state"], "identity": content.get("identity")})
    if path.suffix == ".json":
        return _without_times(json.loads(path.read_text()))
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [_without_times(row) for row in csv.DictReader(file)]
    return path.read_bytes()


def _without_times(content: Any) -> Any:
    """The same at every depth, with tensors as bytes."""
    if isinstance(content, dict):
        return {key: _without_times(value) for key, value in content.items() if key not in _TIMES}
    if isinstance(content, (list, tuple)):
        return [_without_times(each) for each in content]
    if isinstance(content, torch.Tensor):
        return str(content.dtype), tuple(content.shape), content.numpy().tobytes()
    return content
