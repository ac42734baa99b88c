"""3D-MNIST: handwritten digits as volumes of 16x16x16 voxels, read from the HDF5 file that Kaggle gives out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from common.disk.paths import is_file
from common.images.image_data import ImageData, Request, Statistics
from common.system.errors import InputError

if TYPE_CHECKING:
    import h5py

STATISTICS: Statistics = ((0.0,), (1.0,))  # voxels are used as they are, in 0..1
NAME = "3D-MNIST"
FILE = "full_dataset_vectors.h5"
ADDRESS = "https://www.kaggle.com/datasets/daavoo/3d-mnist"

_SIDE = 16
_CLASS_NAMES = tuple("0123456789")

# What h5py raises for a file that is of another format or broken, beside InputError's own parent.
_UNREADABLE = (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError)


def load(request: Request) -> tuple[ImageData, ImageData]:
    """The training and the test volumes, float32 `[N, 1, 16, 16, 16]` in 0..1: 10000 and 2000 in Kaggle's file.

    The file is looked for in the folder 3D-MNIST of `data_path`, then in `data_path` itself; it is never downloaded, as
    Kaggle asks for an account. Raises `InputError` if it is not there, or says what is wrong with it.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{NAME} is an HDF5 file, which the package h5py reads: pip install h5py") from error

    file = _find(request.data_path)
    try:
        with h5py.File(file, "r") as content:
            train, test = (_read_split(content, split) for split in ("train", "test"))
    except InputError as error:
        raise InputError(
            f"{file} is not what {NAME} should be: {error}; put the {FILE} of {ADDRESS} in its place"
        ) from None
    except _UNREADABLE as error:
        reason = [type(error).__name__, *str(error).splitlines()][-1]
        raise InputError(
            f"{file} cannot be read as HDF5 ({reason}): it may be truncated or damaged, fetch it anew from {ADDRESS}"
        ) from error
    return train, test


def _find(data_path: Path) -> Path:
    places = (data_path / NAME / FILE, data_path / FILE)
    for place in places:
        if is_file(place):
            return place
    raise InputError(
        f"{NAME} is not at {places[0]}, and Kaggle gives it only to those who log in: download it from {ADDRESS}, put "
        f"its {FILE} there, or give another --data_path"
    )


def _read_split(content: h5py.File, split: str) -> ImageData:
    """Raises InputError with what is wrong, to be put into a sentence that names the file."""
    key, labels_key = f"X_{split}", f"y_{split}"
    vectors = _numbers(content, key)
    if vectors.ndim != 2 or vectors.shape[1] != _SIDE**3 or len(vectors) == 0:
        raise InputError(f"{key} has shape {vectors.shape}, not (N, {_SIDE**3})")
    labels = _numbers(content, labels_key)
    if labels.shape != (len(vectors),):
        raise InputError(f"{labels_key} has shape {labels.shape}, not ({len(vectors)},) as {key} asks for")

    # Converted while it is read: Kaggle's file has float64, of which there need never be a second copy.
    volumes = torch.from_numpy(vectors.astype(np.float32)[:]).view(-1, 1, _SIDE, _SIDE, _SIDE)
    least, largest = (value.item() for value in volumes.aminmax())
    if not (least >= 0 and largest <= 1):  # NaN compares as false
        found = "NaN" if least != least else f"values from {least:g} to {largest:g}"
        raise InputError(f"{key} has {found}, where voxels lie in 0 to 1")

    numbers = labels[:]
    classes = np.arange(len(_CLASS_NAMES))
    if len(wrong := numbers[~np.isin(numbers, classes)]):
        raise InputError(f"{labels_key} has the label {wrong[0]}, where digits are 0 to 9")
    if len(lacking := np.setdiff1d(classes, numbers)):
        raise InputError(f"{labels_key} has no image of the digit {lacking[0]}")
    return ImageData(volumes, torch.from_numpy(numbers.astype(np.int64)), *STATISTICS, _CLASS_NAMES, NAME)


def _numbers(content: h5py.File, key: str) -> Any:
    """The array `key`, not yet read. Anything but plain numbers is refused unread: no object is ever restored."""
    import h5py

    if key not in content:
        raise InputError(f"it has no {key}")
    found = content[key]
    if not isinstance(found, h5py.Dataset):
        raise InputError(f"{key} is a group, not an array of numbers")
    if found.dtype.kind not in "iuf":
        raise InputError(f"{key} holds {found.dtype}, not numbers")
    return found
