"""Datasets by name: `load_dataset("CIFAR10")` gives the training and the test images as `ImageData`.

A further family is a further module with a loader, and a line in `DATASETS`, or in `PREFIXES` where names are open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from common.datasets import digits, folder, hub, imagenet, tiny, vision, voxels
from common.datasets.imagenet_classes import PREFIX as SUBSET
from common.datasets.imagenet_classes import SYNONYMS, WHOLE, canonical
from common.disk.paths import expanded
from common.images.image_data import ImageData, Loader, Request, Statistics, refuse_alike, with_statistics
from common.images.pixels import Decoding, Resize, ResizeMode
from common.images.sampling import ClassSampler, Gathered, draw_per_class
from common.images.zca import whitened
from common.system.errors import InputError, nearest_names

__all__ = [
    "DATASETS",
    "PREFIXES",
    "ClassSampler",
    "Gathered",
    "ImageData",
    "check_dataset",
    "draw_per_class",
    "load_dataset",
    "statistics",
]

DATASETS: dict[str, Loader] = {
    "digits": digits.load,
    **vision.LOADERS,
    "Tiny": tiny.load,
    **imagenet.LOADERS,
    voxels.NAME: voxels.load,
}

STATISTICS: dict[str, Statistics] = {
    "digits": digits.STATISTICS,
    **vision.STATISTICS,
    "Tiny": tiny.STATISTICS,
    **dict.fromkeys(imagenet.LOADERS, imagenet.STATISTICS),
    voxels.NAME: voxels.STATISTICS,
}

PREFIXES: dict[str, Callable[[str, Request], tuple[ImageData, ImageData]]] = {
    folder.PREFIX: folder.load,
    hub.PREFIX: hub.load,
}
"""Loaders of images that have no statistics of their own, by the start of the name; they are given the rest of it."""


def load_dataset(
    name: str,
    data_path: str | Path | None = None,
    *,
    download: bool = True,
    image_size: int | None = None,
    resize: ResizeMode = "crop",
    antialias: bool = True,
    decoding: Decoding | None = None,
    skip_corrupt: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    zca: bool = False,
    workers: int | None = None,
    progress: bool = True,
    map_above: int | None = None,
) -> tuple[ImageData, ImageData]:
    """Load the training and the test images of a dataset, on the CPU.

    Args:
        name: a name in `DATASETS`; `folder:PATH` for a tree PATH/{train,test or val}/CLASS/FILE of image files; or
            `hf:owner/name` or `hf:PATH` for a dataset of the Hugging Face hub or a folder of parquet files, where
            ?config=NAME&image=COLUMN&label=COLUMN&train=SPLIT&test=SPLIT (or a part of it) says what is meant.
        data_path: the folder in which datasets are looked for, and into which they are downloaded; None: "data", and
            for imagenet-KEY what the environment variable IMAGENET names, if it is set.
        download: fetch a dataset that is missing.
        image_size: pixels; images of imagenet-KEY (None: 128), of a `folder:` or of `hf:` (None: as they are) are made
            squares of this side.
        resize: "crop" scales the shorter side to image_size and takes the centre square, "squash" scales both sides.
        antialias: without it, images are resized as the authors' version of torchvision resized them.
        decoding: "shown" turns image files as their EXIF orientation says, and lays transparent ones over white;
            "stored" reads their colours alone. None: shown, but stored for imagenet-KEY and Tiny, whose published
            figures, and the corrupted images of ImageNet-C, are of images without orientation and transparency.
        skip_corrupt: leave image files that cannot be read out and say how many they are, instead of raising.
        mean, std: of each channel, in units of 0..1, instead of the dataset's own.
        zca: whiten the images (2-D only), as fitted to the training images, instead of normalising by mean and std.
        workers: threads that decode image files; None chooses by CPU cores and image size.
        progress: show a bar while image files are decoded (downloads always show torchvision's).
        map_above: bytes; decoded images that take more are views of a file, read-only, instead of in memory. None: a
            third of this machine's memory.

    Raises:
        InputError: the name is unknown, data is missing or damaged or cannot be downloaded, an option does not fit, or
            all images of a split are alike.
    """
    name = canonical(name)
    check_dataset(name)
    check_decoding(name, image_size, resize, antialias, decoding, skip_corrupt)
    if zca and not (mean is None and std is None):
        raise InputError("ZCA whitening takes the place of mean and std: give either zca, or mean and std")
    request = Request(
        data_path=expanded(data_path or default_data_path(name)),
        download=download,
        resize=Resize(image_size, resize, antialias) if image_size is not None else None,
        decoding=decoding,
        skip_corrupt=skip_corrupt,
        workers=workers,
        progress=progress,
        map_above=map_above,
    )
    prefix = next((each for each in PREFIXES if name.startswith(each)), None)
    splits = DATASETS[name](request) if prefix is None else PREFIXES[prefix](name.removeprefix(prefix), request)
    if image_size is not None and any(side != image_size for side in splits[0].im_size):
        sides = " x ".join(map(str, splits[0].im_size))
        raise InputError(f"images of {name} are {sides} pixels, not {image_size}: leave out --image_size")
    for data, split in zip(splits, ("training", "test"), strict=True):
        refuse_alike(data, f"{split} images")
    train, test = (with_statistics(data, mean, std) for data in splits)
    if zca:
        train, test = whitened(train, test, progress=progress)
    return train, test


def statistics(name: str) -> Statistics | None:
    """Mean and std of each channel that a registered dataset is normalised with; None for a name without any."""
    return STATISTICS.get(canonical(name))


def default_data_path(name: str) -> str:
    """Where a dataset is looked for if nothing else is said: data, or for imagenet-KEY what IMAGENET names."""
    return (is_imagenet(name) and os.environ.get(imagenet.VARIABLE)) or "data"


def default_image_size(name: str) -> int | None:
    """The default side, in pixels, that a dataset's images are resized to; None if they are not resized by default."""
    return imagenet.SIDE if is_imagenet(name) else None


def is_resizable(name: str) -> bool:
    """Whether a dataset's images come in sizes of their own, and are resized while they are decoded."""
    return is_imagenet(name) or name.startswith(tuple(PREFIXES))


def has_image_files(name: str) -> bool:
    """Whether a dataset's images are files of an image format, or such files in tables, which have to be decoded."""
    return is_resizable(name) or name == "Tiny"


def is_imagenet(name: str) -> bool:
    """Whether a name is that of a subset of ImageNet."""
    return canonical(name) in imagenet.LOADERS


def check_decoding(
    name: str,
    image_size: int | None,
    resize: ResizeMode,
    antialias: bool,
    decoding: Decoding | None,
    skip_corrupt: bool,
) -> None:
    """Raises InputError for an option of decoding that would be of no effect."""
    given = ["--resize squash"] * (resize == "squash") + ["--no_antialias"] * (not antialias)
    if given and not is_resizable(name):
        raise InputError(f"{given[0]} says how images are resized, and those of {name} are not: leave it out")
    if given and image_size is None:
        raise InputError(f"{given[0]} says how images are resized: give --image_size too, or leave it out")
    if decoding is not None and not has_image_files(name):
        raise InputError(f"--decoding says how image files are read, and {name} has none: leave it out")
    if skip_corrupt and not has_image_files(name):
        raise InputError(f"--skip_corrupt leaves out single image files, and {name} has none: leave it out")


# What others call datasets, without case and signs.
_CALLED = {
    "tinyimagenet": "Tiny", "tinyimagenet200": "Tiny", "tin": "Tiny", "fmnist": "FashionMNIST",
    "fashion": "FashionMNIST", "mnist3d": voxels.NAME, "cifar": "CIFAR10 or CIFAR100",
}  # fmt: skip


def _meant(name: str) -> str:
    """The datasets that a name may mean, as "A or B", at most three."""
    called = {_letters(each): each for each in DATASETS} | _CALLED
    called |= {_letters(key): canonical(f"{SUBSET}{key}") for key in (*imagenet.SUBSETS, *SYNONYMS)}
    exact = called.get(_letters(name))
    return exact or nearest_names(name, [*DATASETS, *(key for key in imagenet.SUBSETS if len(key) > 1)])


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def check_dataset(name: str, subset: str | None = None) -> None:
    """Raises InputError for a name that `load_dataset` does not know, or cannot read.

    subset: what of a name in two parts has not become a part of `name` (see `imagenet_classes.resolve`).
    """
    keys = ", ".join(imagenet.SUBSETS)
    if name == WHOLE:
        wrong = "has no subset {subset!r}" if subset else "is distilled by subsets"
        raise InputError(f"{name} {wrong.format(subset=subset)}: give --subset with one of {keys}")
    if subset is not None:
        raise InputError(f"--subset {subset} is for --dataset {WHOLE}: leave it out with {name}")
    name = canonical(name)
    if name.startswith(hub.PREFIX):
        hub.parse(name.removeprefix(hub.PREFIX))
    if name in DATASETS or name.startswith(tuple(PREFIXES)):
        return
    raise InputError(
        f"there is no dataset {name!r}, did you mean {_meant(name)}? give a dataset (--help lists all), or "
        f"{folder.PREFIX}PATH for images of your own, {hub.PREFIX}owner/name or {hub.PREFIX}PATH"
    )
