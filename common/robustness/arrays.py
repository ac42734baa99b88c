"""Reads CIFAR-10-C and CIFAR-10.1, which are stored as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.images.image_data import ImageData
from common.robustness.conditions import CIFAR10_CLASSES, LEVELS, Condition, Part, Unusable, like_clean


def corrupted_arrays(
    folder: Path, clean: ImageData, kinds: Sequence[str], levels: Sequence[int]
) -> dict[Condition, Part]:
    """Find the images of each corruption (`kinds`) and level of CIFAR-10-C in `folder`.

    Each corruption is one array file, which holds one level after another. clean: the uncorrupted test images.
    Raises `Unusable` for files that are missing or do not fit the clean images.
    """
    if lacking := [kind for kind in kinds if not (folder / f"{kind}.npy").is_file()]:
        raise Unusable(f"there is no {lacking[0]}.npy" + (f" (nor {', '.join(lacking[1:])})" if lacking[1:] else ""))
    stored = _labels(folder / "labels.npy") if (folder / "labels.npy").is_file() else None
    parts: dict[Condition, Part] = {}
    for kind in kinds:
        file = folder / f"{kind}.npy"
        rows = len(_mapped_images(file, clean))
        if rows % len(LEVELS):
            raise Unusable(f"{file.name} has {rows} rows, which are not {len(LEVELS)} levels of as many each")
        count = rows // len(LEVELS)
        if stored is None and clean.name != "CIFAR10":
            raise Unusable(f"there is no labels.npy, and {clean.name}, whose order may be another, cannot stand in")
        labels = clean.labels.cpu() if stored is None else stored
        if len(labels) not in ((count, rows) if stored is not None else (count,)):
            whose = f"the test images of {clean.name}" if stored is None else "labels.npy"
            raise Unusable(f"{file.name} has {count} images per level, but {whose} {len(labels)} labels")
        if len(labels) == rows and (labels.view(len(LEVELS), count) != labels[:count]).any():
            # An array that was cut down to one level also has a multiple of five rows.
            raise Unusable(
                f"{file.name} does not hold {len(LEVELS)} levels of the same {count} images: the labels in labels.npy "
                "differ between levels"
            )
        for level in levels:
            rows_of = slice((level - 1) * count, level * count)
            own = labels[rows_of] if len(labels) == rows else labels
            condition = Condition(kind, level)
            parts[condition] = Part(count, partial(_read_rows, file, rows_of, own, clean, str(condition)))
    return parts


def new_test_images(folder: Path, clean: ImageData, version: str) -> Part:
    """Find the images of a version (v4 or v6) of CIFAR-10.1 in `folder`.

    clean: CIFAR-10's own test images. Raises `Unusable` for files that are missing or do not fit the clean images.
    """
    for place in (folder / "datasets", folder):
        images, labels = (place / f"cifar10.1_{version}_{part}.npy" for part in ("data", "labels"))
        if images.is_file() and labels.is_file():
            break
    else:
        raise Unusable(f"there is no pair cifar10.1_{version}_data.npy and cifar10.1_{version}_labels.npy")
    rows, own = len(_mapped_images(images, clean)), _labels(labels)
    if len(own) != rows:
        raise Unusable(f"{images.name} has {rows} images, but {labels.name} {len(own)} labels")
    return Part(rows, partial(_read_rows, images, slice(None), own, clean, f"CIFAR10.1 {version}"))


def _read_rows(file: Path, rows: slice, labels: Tensor, clean: ImageData, name: str) -> ImageData:
    """Read some rows of an array file.

    The file is memory-mapped, because the 150 MB of a corruption hold five levels and only one is needed at a time.
    """
    stored = _mapped_images(file, clean)[rows]
    images = torch.from_numpy(np.array(stored.transpose(0, 3, 1, 2), order="C"))  # from [N, H, W, ch]
    return like_clean(clean, images, labels, name)


def _mapped_images(file: Path, clean: ImageData) -> np.ndarray:
    """Map an array of images, uint8 [N, H, W, ch], into memory.

    Raises `Unusable` for an array of another type or shape, or with images of another size than the clean ones.
    """
    stored = _mapped(file)
    wanted = (*clean.im_size, clean.channels)
    if stored.dtype != np.uint8 or stored.ndim != 4 or stored.shape[1:] != wanted or not len(stored):
        shape = f"uint8 [N, {', '.join(map(str, wanted))}] like the images of {clean.name}"
        raise Unusable(f"{file.name} holds {stored.dtype} {list(stored.shape)}, not {shape}")
    return stored


def _labels(file: Path) -> Tensor:
    """Read labels, int64 [N], from an array file; raises `Unusable` if the values are not labels of ten classes."""
    stored = _mapped(file)
    classes = len(CIFAR10_CLASSES)
    if stored.ndim != 1 or stored.dtype.kind not in "iu" or not len(stored):
        raise Unusable(f"{file.name} holds {stored.dtype} {list(stored.shape)}, not a list of labels")
    if not 0 <= stored.min() <= stored.max() < classes:
        raise Unusable(f"{file.name} has labels from {stored.min()} to {stored.max()}, not 0 to {classes - 1}")
    return torch.from_numpy(stored.astype(np.int64))


def _mapped(file: Path) -> np.ndarray:
    try:
        # Pickles are refused, because reading a pickle runs any code that it contains.
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise Unusable(f"{file.name} is truncated, damaged or no array ({error})") from error
    if not isinstance(stored, np.ndarray):
        stored.close()
        raise Unusable(f"{file.name} is an archive of arrays, not one array")
    return stored
