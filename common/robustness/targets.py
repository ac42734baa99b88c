"""Test sets that have drifted: CIFAR-10-C and ImageNet-C (corrupted test images), CIFAR-10.1 (new ones).

`open_target` looks at everything that will be read, so that what is missing is said before hours of training; the
images themselves are read one level at a time, when they are asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.datasets.imagenet_classes import PREFIX, SUBSETS
from common.images import decode
from common.images.image_data import ImageData
from common.images.image_tree import image_files
from common.images.pixels import Resize
from common.images.zca import whiten
from common.system.errors import InputError, close_names

TargetName = Literal["CIFAR10-C", "CIFAR10.1", "ImageNet-C"]

# The standard ones, in the order of Hendrycks and Dietterich's tables.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
# Further ones of the same archives, no part of the means that are published; tested where they are named.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
LEVELS = (1, 2, 3, 4, 5)
VERSIONS = ("v4", "v6")  # of CIFAR-10.1; the second is the balanced one, of 2,000 images

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_FOLDERS = {
    "CIFAR10-C": ("CIFAR10-C", "CIFAR-10-C"),  # the second as the archive unpacks
    "CIFAR10.1": ("CIFAR10.1", "CIFAR-10.1"),
    "ImageNet-C": ("imagenet-c", "ImageNet-C"),
}
_GROUPS = ("", "blur", "digital", "noise", "weather", "extra")  # the archives, where they were unpacked into folders
_EXPECTED = {
    "CIFAR10-C": "CORRUPTION.npy, uint8 [5 * N, 32, 32, 3] with level after level, and labels.npy: "
    "unpack CIFAR-10-C.tar of https://zenodo.org/records/2535967",
    "CIFAR10.1": "datasets/cifar10.1_v6_data.npy, uint8 [N, 32, 32, 3], and cifar10.1_v6_labels.npy (or v4): "
    "take them from https://github.com/modestyachts/CIFAR-10.1",
    "ImageNet-C": "CORRUPTION/LEVEL/WNID/*.JPEG: unpack the archives of https://zenodo.org/records/2235448",
}
_WNID = re.compile(r"n\d{8}")


class Condition(NamedTuple):
    """What was done to the images."""

    kind: str
    """a corruption, or the version of CIFAR-10.1"""
    level: int | None
    """1 (mild) to 5 (severe); None for CIFAR-10.1"""

    def __str__(self) -> str:
        return self.kind if self.level is None else f"{self.kind} {self.level}"


class Part(NamedTuple):
    """The images of one condition."""

    size: int
    """how many there are"""
    read: Callable[[], ImageData]
    """uint8 `[N, ch, H, W]` on the CPU (whitened ones float32), normalised and labelled as the clean test images are;
    raises `InputError` for a file that cannot be read"""


@dataclass(frozen=True)
class Target:
    """A drifted test set, in the order of its tables."""

    name: TargetName
    parts: dict[Condition, Part]


def open_target(
    name: TargetName,
    root: Path,
    clean: ImageData,
    kinds: Sequence[str],
    levels: Sequence[int] = LEVELS,
    *,
    resize: Resize | None = None,
    skip_corrupt: bool = False,
    workers: int | None = None,
) -> Target:
    """Look for a target in `root`, the folder that holds CIFAR10-C/, CIFAR10.1/ or imagenet-c/.

    Args:
        clean: the source's test images, which say classes, image size and normalisation or whitening.
        kinds: corruptions, or versions of CIFAR-10.1, which has no levels.
        resize: ImageNet-C: as the source's images were; None: as they are stored.
        skip_corrupt: ImageNet-C: leave out image files that cannot be read, and say how many.
        workers: ImageNet-C: threads that decode; None chooses.

    Raises:
        InputError: a kind or a level that there is not, a file that is missing or not what it should be, or images
            or classes that are not the source's.
    """
    _check_names(name, kinds, levels)
    folder = target_folder(name, root)
    try:
        if name == "ImageNet-C":
            return Target(name, _image_trees(folder, clean, kinds, levels, resize, skip_corrupt, workers))
        if tuple(clean.class_names) != CIFAR10_CLASSES:
            raise InputError(
                f"{name} shows {', '.join(CIFAR10_CLASSES)}, labelled in this order, but the classes of {clean.name} "
                f"are {', '.join(clean.class_names)}: test a set that was made from CIFAR-10"
            )
        if name == "CIFAR10.1":
            return Target(name, {Condition(kind, None): _version(folder, clean, kind) for kind in kinds})
        return Target(name, _levels(folder, clean, kinds, levels))
    except _Unusable as problem:
        raise InputError(f"{name} is not whole in {folder}: {problem}; it must hold {_EXPECTED[name]}") from None


def target_folder(name: TargetName, root: Path) -> Path:
    """The folder of a target in `root`; raises InputError that says what it must hold where there is none."""
    folder = next((root / each for each in _FOLDERS[name] if (root / each).is_dir()), None)
    if folder is None:
        raise InputError(f"{name} is not in {root}: the folder {_FOLDERS[name][0]} must hold {_EXPECTED[name]}")
    return folder


class _Unusable(InputError):
    """What a folder lacks, or what is wrong with it, to be put into a sentence."""


def _check_names(name: TargetName, kinds: Sequence[str], levels: Sequence[int]) -> None:
    known = VERSIONS if name == "CIFAR10.1" else (*CORRUPTIONS, *EXTRA)
    for kind in kinds:
        if kind not in known:
            close = close_names(kind, known)
            guess = f", did you mean {close}?" if close else ":"
            raise InputError(f"{name} has no {kind!r}{guess} give some of {', '.join(known)}")
    for level in levels:
        if level not in LEVELS:
            raise InputError(f"there is no level {level}: corruptions have levels {LEVELS[0]} to {LEVELS[-1]}")


# -- arrays: CIFAR-10-C and CIFAR-10.1 -----------------------------------------------------------------------------


def _levels(folder: Path, clean: ImageData, kinds: Sequence[str], levels: Sequence[int]) -> dict[Condition, Part]:
    if lacking := [kind for kind in kinds if not (folder / f"{kind}.npy").is_file()]:
        raise _Unusable(f"there is no {lacking[0]}.npy" + (f" (nor {', '.join(lacking[1:])})" if lacking[1:] else ""))
    stored = _labels(folder / "labels.npy") if (folder / "labels.npy").is_file() else None
    parts: dict[Condition, Part] = {}
    for kind in kinds:
        file = folder / f"{kind}.npy"
        rows = len(_mapped_images(file, clean))
        if rows % len(LEVELS):
            raise _Unusable(f"{file.name} has {rows} rows, which are not {len(LEVELS)} levels of as many each")
        count = rows // len(LEVELS)
        if stored is None and clean.name != "CIFAR10":
            raise _Unusable(f"there is no labels.npy, and {clean.name}, whose order may be another, cannot stand in")
        labels = clean.labels.cpu() if stored is None else stored
        if len(labels) not in ((count, rows) if stored is not None else (count,)):
            whose = f"the test images of {clean.name}" if stored is None else "labels.npy"
            raise _Unusable(f"{file.name} has {count} images a level, but {whose} {len(labels)} labels")
        for level in levels:
            rows_of = slice((level - 1) * count, level * count)
            own = labels[rows_of] if len(labels) == rows else labels
            condition = Condition(kind, level)
            parts[condition] = Part(count, partial(_read_rows, file, rows_of, own, clean, str(condition)))
    return parts


def _version(folder: Path, clean: ImageData, version: str) -> Part:
    for place in (folder / "datasets", folder):
        images, labels = (place / f"cifar10.1_{version}_{part}.npy" for part in ("data", "labels"))
        if images.is_file() and labels.is_file():
            break
    else:
        raise _Unusable(f"there is no pair cifar10.1_{version}_data.npy and cifar10.1_{version}_labels.npy")
    rows, own = len(_mapped_images(images, clean)), _labels(labels)
    if len(own) != rows:
        raise _Unusable(f"{images.name} has {rows} images, but {labels.name} {len(own)} labels")
    return Part(rows, partial(_read_rows, images, slice(None), own, clean, f"CIFAR10.1 {version}"))


def _read_rows(file: Path, rows: slice, labels: Tensor, clean: ImageData, name: str) -> ImageData:
    """Some rows of an array that is looked at, not read as a whole: the 150 MB of a corruption hold five levels."""
    stored = _mapped_images(file, clean)[rows]
    images = torch.from_numpy(np.array(stored.transpose(0, 3, 1, 2), order="C"))  # from [N, H, W, ch]
    return _like(clean, images, labels, name)


def _mapped_images(file: Path, clean: ImageData) -> np.ndarray:
    """uint8 `[N, H, W, ch]`, images of the size of the clean ones; raises `_Unusable` for anything else."""
    stored = _mapped(file)
    wanted = (*clean.im_size, clean.channels)
    if stored.dtype != np.uint8 or stored.ndim != 4 or stored.shape[1:] != wanted or not len(stored):
        shape = f"uint8 [N, {', '.join(map(str, wanted))}] like the images of {clean.name}"
        raise _Unusable(f"{file.name} holds {stored.dtype} {list(stored.shape)}, not {shape}")
    return stored


def _labels(file: Path) -> Tensor:
    """int64 `[N]`; raises `_Unusable` for what are no labels of ten classes."""
    stored = _mapped(file)
    classes = len(CIFAR10_CLASSES)
    if stored.ndim != 1 or stored.dtype.kind not in "iu" or not len(stored):
        raise _Unusable(f"{file.name} holds {stored.dtype} {list(stored.shape)}, not a list of labels")
    if not 0 <= stored.min() <= stored.max() < classes:
        raise _Unusable(f"{file.name} has labels from {stored.min()} to {stored.max()}, not 0 to {classes - 1}")
    return torch.from_numpy(stored.astype(np.int64))


def _mapped(file: Path) -> np.ndarray:
    try:
        # No pickles: reading one runs whatever code it holds.
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise _Unusable(f"{file.name} is truncated, damaged or no array ({error})") from error
    if not isinstance(stored, np.ndarray):
        stored.close()
        raise _Unusable(f"{file.name} is an archive of arrays, not one array")
    return stored


# -- image files: ImageNet-C -----------------------------------------------------------------------------------------


def _image_trees(
    folder: Path,
    clean: ImageData,
    kinds: Sequence[str],
    levels: Sequence[int],
    resize: Resize | None,
    skip_corrupt: bool,
    workers: int | None,
) -> dict[Condition, Part]:
    wnids = _wnids(clean)
    parts: dict[Condition, Part] = {}
    for kind in kinds:
        place = next((folder / group / kind for group in _GROUPS if (folder / group / kind).is_dir()), None)
        if place is None:
            raise _Unusable(f"there is no folder {kind}")
        for level in levels:
            files: list[str] = []
            labels: list[int] = []
            for label, wnid in enumerate(wnids):
                in_class = place / str(level) / wnid
                found = image_files(in_class, label) if in_class.is_dir() else []
                if not found:
                    raise _Unusable(f"{in_class.relative_to(folder)} ({clean.class_names[label]}) has no images")
                files += [file.path for file in found]
                labels += [label] * len(found)
            condition = Condition(kind, level)
            read = partial(
                _read_files, files, torch.tensor(labels), clean, str(condition), resize, skip_corrupt, workers
            )
            parts[condition] = Part(len(files), read)
    return parts


def _wnids(clean: ImageData) -> list[str]:
    """The WordNet ids of the source's classes, in the order of its labels."""
    subset = SUBSETS.get(clean.name.removeprefix(PREFIX)) if clean.name.startswith(PREFIX) else None
    if subset is not None:
        return list(subset)
    if all(_WNID.fullmatch(name) for name in clean.class_names):  # a folder: of ImageNet's own class folders
        return list(clean.class_names)
    raise InputError(
        f"ImageNet-C has the classes of ImageNet, and those of {clean.name} are {', '.join(clean.class_names)}: "
        f"test a set that was made from {PREFIX}SUBSET"
    )


def _read_files(
    files: Sequence[str],
    labels: Tensor,
    clean: ImageData,
    name: str,
    resize: Resize | None,
    skip: bool,
    workers: int | None,
) -> ImageData:
    """Decoded anew at every call: each condition is read once a run, and all together would fill a disk."""
    first = decode.read_first(files, resize, skip)
    if first.shape[1:] != clean.im_size:
        sides = " x ".join(map(str, clean.im_size))
        raise InputError(f"{first.name} is no image of {sides} pixels as those of {clean.name} are: give --image_size")
    pieces: list[np.ndarray] = []
    kept = torch.ones(len(files), dtype=torch.bool)
    for chunk in decode.decode(files, range(len(files)), resize, first, workers, skip):
        kept[chunk.unreadable] = False
        shape = (len(chunk.images), clean.channels, *clean.im_size)
        pieces.append(np.broadcast_to(chunk.images, shape))  # gray ones get the channels of the others
    if not kept.all():
        told = logging.getLogger(__name__)
        told.warning("%d of the %d images of %s cannot be read and are left out", int((~kept).sum()), len(files), name)
    return _like(clean, torch.from_numpy(np.concatenate(pieces)), labels[kept], name)


def _like(clean: ImageData, images: Tensor, labels: Tensor, name: str) -> ImageData:
    """Raw images `[N, ch, H, W]`, normalised or whitened as the clean ones, but on the CPU."""
    if clean.whitening is None:
        return replace(clean, images=images, labels=labels, name=name)
    ones, zeros = (1.0,) * clean.channels, (0.0,) * clean.channels
    return whiten(ImageData(images, labels, zeros, ones, clean.class_names, name), clean.whitening, progress=False)
