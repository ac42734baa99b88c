"""What the values of images that others made stand for: normalised ones, 0..1 or 0..255. Files do not say."""

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
    """Images float32 [N, ch, *im_size] of a file, normalised as the real images `like` are.

    values: what the file holds; None takes them as normalised, and warns where they look like something else. Raises
    InputError where their range contradicts `values`, and for whitened images, which are neither in 0..1 nor in 0..255.
    """
    if like.whitening is None:
        return normalised_by(images, values, (like.mean, like.std), file)
    if values is None:
        warn_unless_like(images, like, file, _FLAGS)
    if values in _TOP:
        raise InputError(f"--pixels {values} is for images that mean and std normalise: leave it out with --zca")
    return images


def normalised_by(images: Tensor, values: PixelValues | None, statistics: Statistics, file: object) -> Tensor:
    """As `as_normalised`, by the dataset's mean and std."""
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
    """Warn where images [N, ch, *im_size] look like pixels that were not normalised as those of `like`.

    remedy: what to do, for the end of the sentence, where {top} is 1 or 255 and {values} one of `PixelValues`.
    """
    if like.whitening is None:
        statistics: Statistics | None = (like.mean, like.std)
        bounds = _normalised_range((like.mean, like.std))
    else:
        statistics, bounds = None, (float(like.images.min()), float(like.images.max()))
    _warn(images, likely_values(images, bounds, statistics), bounds, what, remedy)


def likely_values(images: Tensor, bounds: tuple[float, float], statistics: Statistics | None) -> PixelValues:
    """What the values of images [N, ch, *im_size] stand for.

    bounds: the lowest and the highest value of the dataset's normalised images. statistics: what normalises them; None
    for whitened ones. Pixels in 0..1 that an optimisation has driven beyond the range of normalised images cannot be
    told from those.
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
    """The lowest and the highest value that pixels in 0..1 have after normalisation."""
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
    """Raises InputError where `values`, unit or bytes, is contradicted by the order of magnitude.

    More would be too much: distilled images go far beyond the range of real ones.
    """
    lowest, highest = map(float, images.aminmax())
    least, most = bounds
    fits = highest <= _BYTES * max(most, 1.0) if values == "unit" else highest > _TOP["bytes"] / _BYTES
    if not fits:
        raise InputError(
            f"{file} has values from {lowest:.3g} to {highest:.3g}, which are no pixels in 0..{_TOP[values]:g} "
            f"(normalised images of the dataset have {least:.3g} to {most:.3g}): give another --pixels than {values}"
        )
