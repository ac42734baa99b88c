"""Whether a dataset is there, told by its files' names alone: nothing is read, downloaded or decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.datasets import default_data_path, imagenet, tiny, voxels
from common.datasets.folder import PREFIX as FOLDER
from common.datasets.imagenet_classes import PREFIX as SUBSET
from common.datasets.imagenet_classes import SUBSETS, canonical
from common.datasets.imagenet_devkit import Unusable, kaggle_root
from common.disk.paths import expanded, is_file, is_folder


def is_there(name: str, data_path: str | Path | None = None) -> bool | None:
    """Whether `load_dataset(name, data_path)` would find the files of a dataset; None where only trying would tell.

    An archive that is still to be unpacked counts. Damaged files are found when they are read.
    """
    name = canonical(name)
    root = expanded(data_path or default_data_path(name))
    if name == "digits":
        return True
    if name.startswith(FOLDER):
        return is_folder(expanded(name.removeprefix(FOLDER)))
    if name.startswith(SUBSET):
        try:
            imagenet.read_tree(kaggle_root(root), SUBSETS[name.removeprefix(SUBSET)])
        except Unusable:
            return False
        return True
    return _PLACES[name](root) if name in _PLACES else None


def is_unpacked(name: str, data_path: str | Path | None = None) -> bool | None:
    """Whether `load_dataset(name, data_path)` would write nothing but caches; None where only trying would tell."""
    name = canonical(name)
    root = expanded(data_path or default_data_path(name))
    return (root / _UNPACKED[name]).exists() if name in _UNPACKED else is_there(name, data_path)


def _any(*names: str) -> Callable[[Path], bool]:
    return lambda root: any((root / name).exists() for name in names)


def _idx(name: str) -> Callable[[Path], bool]:
    raw = f"{name}/raw/train-images-idx3-ubyte"
    return _any(raw, f"{raw}.gz")


# Of datasets that come as an archive, the folder that it is unpacked to.
_UNPACKED = {
    "MNIST": "MNIST/raw/train-images-idx3-ubyte", "FashionMNIST": "FashionMNIST/raw/train-images-idx3-ubyte",
    "CIFAR10": "cifar-10-batches-py", "CIFAR100": "cifar-100-python", "Tiny": tiny.FOLDER,
}  # fmt: skip

_PLACES: dict[str, Callable[[Path], bool]] = {
    "MNIST": _idx("MNIST"),
    "FashionMNIST": _idx("FashionMNIST"),
    "CIFAR10": _any(_UNPACKED["CIFAR10"], "cifar-10-python.tar.gz"),
    "CIFAR100": _any(_UNPACKED["CIFAR100"], "cifar-100-python.tar.gz"),
    "SVHN": lambda root: all(is_file(root / f"{split}_32x32.mat") for split in ("train", "test")),
    "Tiny": _any(tiny.FOLDER, f"{tiny.FOLDER}.zip"),
    voxels.NAME: _any(f"{voxels.NAME}/{voxels.FILE}", voxels.FILE),
}
