"""Stand-ins for datasets, for the scale smoke: the built-in digits, or images that are generated here.

They serve to test within seconds that everything works. Results on stand-ins say nothing about the real datasets.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.datasets.imagenet_classes import PREFIX, SUBSETS
from common.datasets.voxels import FILE as VOXELS_FILE
from common.datasets.voxels import NAME as VOXELS
from common.robustness.conditions import CIFAR10_CLASSES, CORRUPTIONS, LEVELS, TargetName
from common.system.files import write_atomically

SIDE = 32  # pixels
TRAINING, TEST = 12, 4  # images per class
_VOXELS = 16  # voxels per side


class StandIn(NamedTuple):
    """What is read in place of a dataset, and its description for people."""

    dataset: str
    data_path: str | None
    image_size: int | None
    description: str


def stand_in(dataset: str, folder: Path, target: bool = False, make: bool = False) -> StandIn:
    """The stand-in for a dataset. Generated images are below `folder`.

    make: generate the images unless they exist. target: networks are tested on CIFAR10-C, CIFAR10.1 or ImageNet-C
    later, for which `make_target` makes the stand-ins, so the training images have to match these.
    """
    if dataset == VOXELS:
        if make:
            _make_voxels(folder / VOXELS / VOXELS_FILE)
        return StandIn(VOXELS, str(folder), None, "generated volumes")
    if dataset.startswith(PREFIX):
        tree = folder / "imagenet"
        if make:
            _make_tree(tree, list(SUBSETS[dataset.removeprefix(PREFIX)]))
        return StandIn(dataset, str(tree), SIDE, f"generated images of {SIDE} px")
    if target:
        tree = folder / "cifar10"
        if make:
            _make_tree(tree, list(CIFAR10_CLASSES))
        return StandIn(f"folder:{tree}", None, None, f"generated images of {SIDE} px")
    return StandIn("digits", None, None, "scikit-learn's 8x8 digits")


def target_path(folder: Path) -> Path:
    """The folder, for --target_path, of the drifted images that `make_target` makes."""
    return folder / "targets"


def make_target(name: TargetName, dataset: str, folder: Path) -> None:
    """Generate the drifted images of a target below `target_path(folder)`, unless they exist."""
    root = target_path(folder)
    if name == "ImageNet-C":
        level = max(LEVELS)
        for corruption in CORRUPTIONS:
            place = root / "imagenet-c" / corruption / str(level)
            _make_classes(place, list(SUBSETS[dataset.removeprefix(PREFIX)]), 1)
    elif name == "CIFAR10.1":
        images, labels = _arrays(1)
        _save(root / "CIFAR10.1" / "datasets" / "cifar10.1_v6_data.npy", images)
        _save(root / "CIFAR10.1" / "datasets" / "cifar10.1_v6_labels.npy", labels)
    else:
        images, labels = _arrays(len(LEVELS))
        for corruption in CORRUPTIONS:
            _save(root / "CIFAR10-C" / f"{corruption}.npy", images)
        _save(root / "CIFAR10-C" / "labels.npy", labels)


def _pictures(classes: int, count: int, seed: int) -> np.ndarray:
    """Noise uint8 [classes, count, SIDE, SIDE, 3] with a bright rectangle, whose place and colour tell the class."""
    draws = np.random.default_rng(seed)
    images = draws.integers(0, 120, (classes, count, SIDE, SIDE, 3))
    for label in range(classes):
        row, column = 6 * (label % 5), 14 * (label // 5 % 2)
        images[label, :, row : row + 8, column : column + 14, label % 3] += 130
    return images.astype(np.uint8)


def _arrays(levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [levels * N, SIDE, SIDE, 3] and labels [levels * N] of CIFAR-10's classes, N images per level."""
    images = np.concatenate(_pictures(len(CIFAR10_CLASSES), TEST, seed=2).swapaxes(0, 1))
    labels = np.tile(np.arange(len(CIFAR10_CLASSES)), TEST)
    return np.tile(images, (levels, 1, 1, 1)), np.tile(labels, levels)


def _make_tree(folder: Path, classes: list[str]) -> None:
    for split, count in (("train", TRAINING), ("val", TEST)):
        _make_classes(folder / split, classes, count)


def _make_classes(folder: Path, classes: list[str], count: int) -> None:
    from PIL import Image

    for name, images in zip(classes, _pictures(len(classes), count, seed=count), strict=True):
        for number, image in enumerate(images):
            file = folder / name / f"{number:02d}.JPEG"
            if not file.exists():
                write_atomically(file, partial(Image.fromarray(image).save, format="JPEG"))


def _make_voxels(file: Path) -> None:
    import h5py

    if file.exists():
        return

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for split, count in (("train", TRAINING), ("test", TEST)):
            labels = np.tile(np.arange(10), count)
            volumes = 0.2 * np.random.default_rng(count).random((len(labels), _VOXELS, _VOXELS, _VOXELS))
            for volume, label in zip(volumes, labels, strict=True):
                volume[5:11, label : label + 6, 3:13] += 0.75
            yield f"X_{split}", volumes.reshape(len(labels), -1)
            yield f"y_{split}", labels

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as content:
            for key, array in arrays():
                content[key] = array

    write_atomically(file, write)


def _save(file: Path, array: np.ndarray) -> None:
    if file.exists():
        return

    def write(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.save(stream, array)

    write_atomically(file, write)
