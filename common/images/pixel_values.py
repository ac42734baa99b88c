"""Tells normalised images and pixels in 0..1, -1..1 and 0..255 apart, for files that do not record which they hold."""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch
from torch import Tensor

from common.images.image_data import ImageData, Statistics
from common.system import parallel
from common.system.errors import InputError

PixelValues = Literal["normalised", "unit", "signed", "bytes"]

PIXELS: dict[str | None, tuple[float, float]] = {"unit": (0.0, 1.0), "signed": (-1.0, 1.0), "bytes": (0.0, 255.0)}
"""The values of black and white, for each of `PixelValues` that is not normalised."""

_FLAGS = (
    "which gives a wrong accuracy if these are pixels in {range}: give --pixels {values} to normalise them, or "
    "--pixels normalised if they are right"
)
_WHITENED_FLAGS = (
    "which gives a wrong accuracy if these are pixels in {range}: leave out --zca and give --pixels {values} to "
    "normalise them, or give --pixels normalised if they are right"
)
# Values this many times as large as the largest normalised one are bytes; distilled ones reach some ten times it.
_BYTES = 30.0
# How far from -1 and 1 the ends of pixels in -1..1 lie: inwards, as hardly any images lack black and white, and
# outwards, by rounding.
_INWARDS, _OUTWARDS = 0.05, 0.005
# Normalised images of a dataset whose range ends this near to -1 and 1 cannot be told from pixels in -1..1.
_OTHER_RANGE = 0.25
# How far the mean of a set commonly lies from that of real images, in standard deviations of the real ones.
_DRIFT = 0.3


def as_normalised(images: Tensor, values: PixelValues | None, like: ImageData, file: object) -> Tensor:
    """Return the images float32 [N, ch, *im_size] of a file, normalised in the same way as the real images `like`.

    values: what the file holds. None means normalised, with a warning if the images look like something else.
    Raises InputError if the images contradict `values`, and if `values` are those of pixels for a whitened dataset.
    """
    if like.whitening is None:
        return normalised_by(images, values, (like.mean, like.std), file)
    if values is None:
        warn_unless_like(images, like, file, _WHITENED_FLAGS)
    if values in PIXELS:
        raise InputError(f"--pixels {values} is for images that mean and std normalise: leave it out with --zca")
    return images


def normalised_by(images: Tensor, values: PixelValues | None, statistics: Statistics, file: object) -> Tensor:
    """Do the same as `as_normalised`, given the dataset's mean and std."""
    bounds = _normalised_range(statistics)
    if values is None:
        _warn(images, likely_values(images, bounds, statistics), bounds, file, _FLAGS)
    if values is None or values not in PIXELS:
        return images
    _check(images, values, statistics, file)
    mean, std = (
        torch.tensor(each, dtype=images.dtype, device=images.device).view(-1, *[1] * (images.ndim - 2))
        for each in statistics
    )
    black, white = PIXELS[values]
    return ((images - black) / (white - black) - mean) / std


def warn_unless_like(images: Tensor, like: ImageData, what: object, remedy: str) -> None:
    """Warn if images [N, ch, *im_size] look like pixels that were not normalised like those of `like`.

    remedy: the end of the warning, which says what to do. In it {range} stands for such as 0..255, {values} for such
    as "bytes", and {first} for what comes before `ImageData.normalise`, which takes values in 0..1.
    """
    if like.whitening is None:
        statistics: Statistics | None = (like.mean, like.std)
        bounds = _normalised_range((like.mean, like.std))
    else:
        statistics, bounds = None, (float(like.images.min()), float(like.images.max()))
    _warn(images, likely_values(images, bounds, statistics), bounds, what, remedy)


def likely_values(images: Tensor, bounds: tuple[float, float], statistics: Statistics | None) -> PixelValues:
    """Return what the values of images [N, ch, *im_size] most likely are.

    bounds: the lowest and the highest value of the dataset's normalised images. statistics: the mean and std that
    normalise them; None for a whitened dataset. Pixels in 0..1 that an optimisation has driven beyond the range of
    normalised images are taken for normalised ones, and so are pixels in -1..1 whose lowest and highest value are
    others than about -1 and 1.
    """
    if not images.numel():
        return "normalised"
    lowest, highest = map(float, images.aminmax())
    least, most = bounds
    if highest > _BYTES * max(most, 1.0):
        return "bytes"
    if not (least < 0 and highest - lowest < most - least):
        return "normalised"  # also where mean 0 and std 1 leave pixels as they are
    if _fill_signed(lowest, highest) and _is_other(bounds):
        # Normalised images that happen to end there have the spread 1, pixels in -1..1 twice that of those in 0..1.
        spread = 0.0 if statistics is None else sum(statistics[1]) / len(statistics[1])
        if statistics is None or float(images.std(correction=0)) < (2 * spread) ** 0.5:
            return "signed"
    if statistics is None:
        return "unit" if lowest >= 0 and highest <= 1 else "normalised"
    # Low-passed strokes on black reach as far below zero as normalised black lies, and blurred normalised images span
    # as little as pixels do: mean and spread tell both.
    mean, spread = (sum(each) / len(each) for each in statistics)
    raw = float(images.mean()) > mean / 2 and float(images.std(correction=0)) < spread**0.5
    return "unit" if raw else "normalised"


def _normalised_range(statistics: Statistics) -> tuple[float, float]:
    """Return the lowest and the highest value that pixels in 0..1 have after normalisation."""
    pairs = list(zip(*statistics, strict=True))
    return min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)


def _fill_signed(lowest: float, highest: float) -> bool:
    """Whether the lowest and the highest value are about -1 and 1."""
    return all(1 - _INWARDS <= each <= 1 + _OUTWARDS for each in (-lowest, highest))


def _is_other(bounds: tuple[float, float]) -> bool:
    """Whether the range of a dataset's normalised images is clearly another than -1..1."""
    return max(abs(bounds[0] + 1), abs(bounds[1] - 1)) > _OTHER_RANGE


def _range(values: str) -> str:
    """The range of pixels, such as "0..255"."""
    black, white = PIXELS[values]
    return f"{black:g}..{white:g}"


def _warn(images: Tensor, likely: PixelValues, bounds: tuple[float, float], what: object, remedy: str) -> None:
    if likely in PIXELS and parallel.is_main():
        first = "" if likely == "unit" else "bring them to 0..1 and "
        logging.getLogger(__name__).warning(
            "%s has values from %.3g to %.3g, where normalised images of the dataset have %.3g to %.3g: it is taken as "
            "it is, %s",
            what, float(images.min()), float(images.max()), *bounds,
            remedy.format(range=_range(likely), values=likely, first=first),
        )  # fmt: skip


def _check(images: Tensor, values: PixelValues, statistics: Statistics, file: object) -> None:
    """Raise InputError if the images contradict `values`, which are those of pixels.

    Bytes are told by their order of magnitude. Of the others the range alone says little, because distilled images go
    far beyond that of real ones: beyond their range, mean and spread must be nearer to those of real pixels than to
    those of real images with other values.
    """
    lowest, highest = map(float, images.aminmax())
    least, most = _normalised_range(statistics)
    if values == "bytes":
        fits = highest > PIXELS["bytes"][1] / _BYTES
    elif highest > _BYTES * max(most, 1.0):
        fits = False
    else:
        inside = lowest >= 0 and highest <= 1 if values == "unit" else _fill_signed(lowest, highest)
        fits = inside or _nearest(images, values, statistics) == values
    if not fits:
        raise InputError(
            f"{file} has values from {lowest:.3g} to {highest:.3g}, which are no pixels in {_range(values)} "
            f"(normalised images of the dataset have {least:.3g} to {most:.3g}): give another --pixels than {values}"
        )


def _nearest(images: Tensor, values: PixelValues, statistics: Statistics) -> str:
    """Return to what values the mean and the spread of images come nearest: "normalised", "unit" or "signed".

    Of equally near ones, `values` is returned.
    """
    mean, spread = float(images.mean()), max(float(images.std(correction=0)), 1e-6)
    of_pixels, spread_of_pixels = (sum(each) / len(each) for each in statistics)
    real = {
        "normalised": (0.0, 1.0),
        "unit": (of_pixels, spread_of_pixels),
        "signed": (2 * of_pixels - 1, 2 * spread_of_pixels),
    }

    def distance(kind: str) -> float:
        # A spread twice or half as large as that of real images counts as much as a mean that has drifted by _DRIFT.
        center, scale = real[kind]
        return math.hypot(math.log2(spread / scale), (mean - center) / (_DRIFT * scale))

    return min([values, *real], key=distance)
