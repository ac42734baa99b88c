"""Conditions of test images (which corruption, how severe), and what all shifted test sets have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from common.images.image_data import ImageData
from common.images.zca import whiten
from common.system.errors import InputError

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
    """A shifted test set, in the order of its tables."""

    name: TargetName
    parts: dict[Condition, Part]


class Unusable(InputError):
    """What a folder lacks, or what is wrong with it, as a clause; `open_target` makes a sentence of it."""


def like_clean(clean: ImageData, images: Tensor, labels: Tensor, name: str) -> ImageData:
    """Raw images `[N, ch, H, W]` on the CPU, to be normalised (or, here and now, whitened) as the clean ones are."""
    if clean.whitening is None:
        return replace(clean, images=images, labels=labels, name=name)
    ones, zeros = (1.0,) * clean.channels, (0.0,) * clean.channels
    return whiten(ImageData(images, labels, zeros, ones, clean.class_names, name), clean.whitening, progress=False)
