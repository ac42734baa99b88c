"""Files in the format of Kaggle's 3D-MNIST, made up for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

SIDE = 16


def make_voxels(per_class: dict[str, int] | None = None) -> dict[str, np.ndarray]:
    """The four arrays: noise around a block whose place tells the class, in shuffled order; Kaggle's types."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (per_class or {"train": 3, "test": 1}).items():
        labels = rng.permutation(np.repeat(np.arange(10), count))
        volumes = 0.2 * rng.random((len(labels), SIDE, SIDE, SIDE))
        for volume, label in zip(volumes, labels, strict=True):
            volume[5:11, label : label + 6, 3:13] += 0.75
        arrays |= {f"X_{split}": volumes.reshape(len(labels), -1), f"y_{split}": labels}
    return arrays


def write_voxels(file: Path, arrays: dict[str, Any]) -> Path:
    """Write the arrays by their names; returns the path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        for key, array in arrays.items():
            content[key] = array
    return file
