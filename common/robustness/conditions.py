"""The conditions under which networks are tested, and the types that all corrupted or shifted test sets share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from common.images.image_data import ImageData
from common.images.zca import whiten
from common.system.errors import InputError

TargetName = Literal["CIFAR10-C", "CIFAR10.1", "ImageNet-C"]

# The fifteen standard corruptions, in the order of Hendrycks and Dietterich's tables.
CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
# Further corruptions in the same archives. Published means do not include them, so they are tested only if named.
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
LEVELS = (1, 2, 3, 4, 5)
VERSIONS = ("v4", "v6")  # the versions of CIFAR-10.1; v6 is the balanced one, with 2,000 images

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class Condition(NamedTuple):
    """One kind of corrupted or shifted test images."""

    kind: str
    """a corruption, or the version of CIFAR-10.1"""
    level: int | None
    """1 (mild) to 5 (severe); None for CIFAR-10.1"""

    def __str__(self) -> str:
        return self.kind if self.level is None else f"{self.kind} {self.level}"


class Part(NamedTuple):
    """The images of one condition."""

    size: int
    """the number of images"""
    read: Callable[[], ImageData]
    """reads the images, uint8 [N, ch, H, W] on the CPU (float32 if whitened), with the normalisation and classes of the
    clean test images; raises InputError for a file that cannot be read"""


@dataclass(frozen=True)
class Target:
    """A corrupted or shifted test set: its conditions, in the order in which tables list them."""

    name: TargetName
    parts: dict[Condition, Part]


class Unusable(InputError):
    """The error for an incomplete or wrong folder; its message is a clause that `open_target` puts in a sentence."""


def like_clean(clean: ImageData, images: Tensor, labels: Tensor, name: str) -> ImageData:
    """Wrap raw images [N, ch, H, W] on the CPU as an `ImageData` with the normalisation of the clean images.

    Batches are normalised when they are read. If the clean images are whitened, the images are whitened at once.
    """
    if clean.whitening is None:
        return replace(clean, images=images, labels=labels, name=name)
    ones, zeros = (1.0,) * clean.channels, (0.0,) * clean.channels
    return whiten(ImageData(images, labels, zeros, ones, clean.class_names, name), clean.whitening, progress=False)
