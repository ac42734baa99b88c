"""Datasets by name: `load_dataset("CIFAR10")` gives the training and the test images as `ImageData`.

A further family is a further module with a loader, and a line in `DATASETS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.datasets import digits, folder, vision
from common.datasets.image_data import ImageData, Loader, Request, Statistics, with_statistics
from common.datasets.sampling import ClassSampler, draw_per_class
from common.errors import InputError, close_names

__all__ = ["DATASETS", "ClassSampler", "ImageData", "check_dataset", "draw_per_class", "load_dataset", "statistics"]

DATASETS: dict[str, Loader] = {"digits": digits.load, **vision.LOADERS}

STATISTICS: dict[str, Statistics] = {"digits": digits.STATISTICS, **vision.STATISTICS}


def load_dataset(
    name: str,
    data_path: str | Path = "data",
    *,
    download: bool = True,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[ImageData, ImageData]:
    """Load the training and the test images of a dataset, on the CPU.

    Args:
        name: a name in `DATASETS`, or `folder:PATH` for a tree PATH/{train,test or val}/CLASS/FILE of image files.
        data_path: the folder in which datasets are looked for, and into which they are downloaded.
        download: fetch a dataset that is missing.
        image_size: pixels; images of a `folder:` are scaled to it (shorter side) and cropped to the centre square.
        mean, std: of each channel, in units of 0..1, instead of the dataset's own.
        workers: threads that decode image files; None chooses by CPU cores and image size.
        progress: show a bar while image files are decoded (downloads always show torchvision's).

    Raises:
        InputError: the name is unknown, data is missing or damaged or cannot be downloaded, or an option does not fit.
    """
    check_dataset(name)
    request = Request(Path(data_path).expanduser(), download, image_size, workers, progress)
    if name.startswith(folder.PREFIX):
        splits = folder.load(name.removeprefix(folder.PREFIX), request)
    else:
        splits = DATASETS[name](request)
    if image_size is not None and any(side != image_size for side in splits[0].im_size):
        sides = " x ".join(map(str, splits[0].im_size))
        raise InputError(f"images of {name} are {sides} pixels, not {image_size}: leave out --image_size")
    train, test = (with_statistics(data, mean, std) for data in splits)
    return train, test


def statistics(name: str) -> Statistics | None:
    """Mean and std of each channel that a registered dataset is normalised with; None for a name without any."""
    return STATISTICS.get(name)


def check_dataset(name: str) -> None:
    """Raises InputError for a name that `load_dataset` does not know."""
    if name in DATASETS or name.startswith(folder.PREFIX):
        return
    close = close_names(name, DATASETS)
    guess = f", did you mean {close}?" if close else ":"
    raise InputError(f"there is no dataset {name!r}{guess} give one of {', '.join(DATASETS)}, or {folder.PREFIX}PATH")
