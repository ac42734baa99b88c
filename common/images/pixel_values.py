"""Tells normalised images, pixels in 0..1 and pixels in 0..255 apart, for files that do not record which they hold."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from common.images.image_data import ImageData, Statistics
from common.system import parallel
from common.system.errors import InputError

PixelValues = Literal["normalised", "unit", "bytes"]

_TOP = {"unit": 1.0, "bytes": 255.0}
_FLAGS = (
    "which gives a wrong accuracy if these are pixels in 0..{top}: give --pixels {values} to normalise them, or "
    "--pixels normalised if they are right"
)
# Values this many times as large as the largest normalised one are bytes; distilled ones reach some ten times it.
_BYTES = 30.0


def as_normalised(images: Tensor, values: PixelValues | None, like: ImageData, file: object) -> Tensor:
    """Return the images float32 [N, ch, *im_size] of a file, normalised in the same way as the real images `like`.

    values: what the file holds. None means normalised, with a warning if the images look like something else.
    Raises InputError if the range of the images contradicts `values`, and if `values` is "unit" or "bytes" for a
    whitened dataset.
    """
    if like.whitening is None:
        return normalised_by(images, values, (like.mean, like.std), file)
    if values is None:
        warn_unless_like(images, like, file, _FLAGS)
    if values in _TOP:
        raise InputError(f"--pixels {values} is for images that mean and std normalise: leave it out with --zca")
    return images


def normalised_by(images: Tensor, values: PixelValues | None, statistics: Statistics, file: object) -> Tensor:
    """Do the same as `as_normalised`, given the dataset's mean and std."""
    bounds = _normalised_range(statistics)
    if values is None:
        _warn(images, likely_values(images, bounds, statistics), bounds, file, _FLAGS)
    if values not in _TOP:
        return images
    _check(images, values, bounds, file)
    mean, std = (
        torch.tensor(each, dtype=images.dtype, device=images.device).view(-1, *[1] * (images.ndim - 2))
        for each in statistics
    )
    return (images / _TOP[values] - mean) / std


def warn_unless_like(images: Tensor, like: ImageData, what: object, remedy: str) -> None:
    """Warn if images [N, ch, *im_size] look like pixels that were not normalised like those of `like`.

    remedy: the end of the warning, which says what to do; {top} stands for 1 or 255, {values} for "unit" or "bytes".
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
    normalised images are taken for normalised ones.
    """
    if not images.numel():
        return "normalised"
    lowest, highest = map(float, images.aminmax())
    least, most = bounds
    if highest > _BYTES * max(most, 1.0):
        return "bytes"
    if not (least < 0 and highest - lowest < most - least):
        return "normalised"  # also where mean 0 and std 1 leave pixels as they are
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


def _warn(images: Tensor, likely: PixelValues, bounds: tuple[float, float], what: object, remedy: str) -> None:
    if likely in _TOP and parallel.is_main():
        logging.getLogger(__name__).warning(
            "%s has values from %.3g to %.3g, where normalised images of the dataset have %.3g to %.3g: it is taken as "
            "it is, %s",
            what, float(images.min()), float(images.max()), *bounds,
            remedy.format(top=f"{_TOP[likely]:g}", values=likely),
        )  # fmt: skip


def _check(images: Tensor, values: PixelValues, bounds: tuple[float, float], file: object) -> None:
    """Raise InputError if the order of magnitude of the images contradicts `values` ("unit" or "bytes").

    A closer check is not possible, because distilled images go far beyond the range of real ones.
    """
    lowest, highest = map(float, images.aminmax())
    least, most = bounds
    fits = highest <= _BYTES * max(most, 1.0) if values == "unit" else highest > _TOP["bytes"] / _BYTES
    if not fits:
        raise InputError(
            f"{file} has values from {lowest:.3g} to {highest:.3g}, which are no pixels in 0..{_TOP[values]:g} "
            f"(normalised images of the dataset have {least:.3g} to {most:.3g}): give another --pixels than {values}"
        )
