"""Datasets by name: `load_dataset("CIFAR10")` gives the training and the test images as `ImageData`.

A further family is a further module with a loader, and a line in `DATASETS`, or in `PREFIXES` where names are open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from common.datasets import digits, folder, hub, tiny, vision
from common.datasets.image_data import ImageData, Loader, Request, Statistics, with_statistics
from common.datasets.sampling import ClassSampler, Gathered, draw_per_class
from common.datasets.zca import whitened
from common.errors import InputError, close_names

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

DATASETS: dict[str, Loader] = {"digits": digits.load, **vision.LOADERS, "Tiny": tiny.load}

STATISTICS: dict[str, Statistics] = {"digits": digits.STATISTICS, **vision.STATISTICS, "Tiny": tiny.STATISTICS}

PREFIXES: dict[str, Callable[[str, Request], tuple[ImageData, ImageData]]] = {
    folder.PREFIX: folder.load,
    hub.PREFIX: hub.load,
}
"""Loaders of images that have no statistics of their own, by the start of the name; they are given the rest of it."""


def load_dataset(
    name: str,
    data_path: str | Path = "data",
    *,
    download: bool = True,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    zca: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[ImageData, ImageData]:
    """Load the training and the test images of a dataset, on the CPU.

    Args:
        name: a name in `DATASETS`; `folder:PATH` for a tree PATH/{train,test or val}/CLASS/FILE of image files; or
            `hf:owner/name` or `hf:PATH` for a dataset of the Hugging Face hub or a folder of parquet files, where
            ?config=NAME&image=COLUMN&label=COLUMN&train=SPLIT&test=SPLIT (or a part of it) says what is meant.
        data_path: the folder in which datasets are looked for, and into which they are downloaded.
        download: fetch a dataset that is missing.
        image_size: pixels; images of a `folder:` or of `hf:` are scaled to it (shorter side) and cropped to the centre
            square.
        mean, std: of each channel, in units of 0..1, instead of the dataset's own.
        zca: whiten the images (2-D only), as fitted to the training images, instead of normalising by mean and std.
        workers: threads that decode image files; None chooses by CPU cores and image size.
        progress: show a bar while image files are decoded (downloads always show torchvision's).

    Raises:
        InputError: the name is unknown, data is missing or damaged or cannot be downloaded, or an option does not fit.
    """
    check_dataset(name)
    if zca and not (mean is None and std is None):
        raise InputError("ZCA whitening takes the place of mean and std: give either zca, or mean and std")
    request = Request(Path(data_path).expanduser(), download, image_size, workers, progress)
    prefix = next((each for each in PREFIXES if name.startswith(each)), None)
    splits = DATASETS[name](request) if prefix is None else PREFIXES[prefix](name.removeprefix(prefix), request)
    if image_size is not None and any(side != image_size for side in splits[0].im_size):
        sides = " x ".join(map(str, splits[0].im_size))
        raise InputError(f"images of {name} are {sides} pixels, not {image_size}: leave out --image_size")
    train, test = (with_statistics(data, mean, std) for data in splits)
    if zca:
        train, test = whitened(train, test, progress=progress)
    return train, test


def statistics(name: str) -> Statistics | None:
    """Mean and std of each channel that a registered dataset is normalised with; None for a name without any."""
    return STATISTICS.get(name)


def check_dataset(name: str) -> None:
    """Raises InputError for a name that `load_dataset` does not know, or cannot read."""
    if name.startswith(hub.PREFIX):
        hub.parse(name.removeprefix(hub.PREFIX))
    if name in DATASETS or name.startswith(tuple(PREFIXES)):
        return
    close = close_names(name, DATASETS)
    guess = f", did you mean {close}?" if close else ":"
    raise InputError(
        f"there is no dataset {name!r}{guess} give one of {', '.join(DATASETS)}, or {folder.PREFIX}PATH, "
        f"{hub.PREFIX}owner/name or {hub.PREFIX}PATH"
    )
