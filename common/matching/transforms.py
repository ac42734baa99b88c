"""Augmentations of torchvision for networks that are trained on a set, in place of DSA.

autoaugment   a policy that was found for other images (Cubuk et al., CVPR 2019): one of its 25 pairs of operations
randaugment   two operations out of fourteen, in magnitude 9 of 31 (Cubuk et al., NeurIPS 2020)
cutmix        a rectangle comes from another image of the batch; labels are mixed by area (Yun et al., ICCV 2019)
mixup         each image is blended with another one of the batch, and so are the labels (Zhang et al., ICLR 2018)

All parameters are torchvision's defaults. AutoAugment and RandAugment are defined on pixels of 8 bits, and each image
has a draw of its own, so the images are augmented one after another. CutMix and Mixup take a normalised batch with one
draw, which pairs each image with its neighbour in the batch; batches are in random order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from common.images.image_data import ImageData
from common.system.errors import InputError
from common.system.seeds import drawn_from

Augmentation = Literal["dsa", "none", "autoaugment", "randaugment", "cutmix", "mixup"]
"""How the images are augmented that a network is trained on. "dsa" is `augment`, with a strategy of its own."""

ON_PIXELS = ("autoaugment", "randaugment")
_LARGE = 64  # pixels; larger images get AutoAugment's policy for ImageNet


def check_augmentation(name: Augmentation, data: ImageData) -> None:
    """Raise InputError if images like `data` cannot be augmented so; "dsa", which has checks of its own, passes."""
    if name in ("dsa", "none"):
        return
    if len(data.im_size) != 2:
        raise InputError(
            f"--augmentation {name} is for pictures, and the images of {data.name} have the sides {data.im_size}: "
            "give none"
        )
    if name not in ON_PIXELS:
        return
    if data.whitening is not None:
        raise InputError(
            f"--augmentation {name} works on pixels of 8 bits, which ZCA-whitened images do not have: "
            "give dsa, cutmix, mixup or none"
        )
    if data.channels not in (1, 3):
        raise InputError(
            f"--augmentation {name} takes images with one or three channels, and those of {data.name} have "
            f"{data.channels}: give cutmix, mixup or none"
        )


class Augmenter:
    """Augments batches of training images, in one of the four ways of this module.

    data: images that say how the batches are normalised, and how many classes C there are.
    Raises InputError as `check_augmentation`.
    """

    def __init__(self, name: Augmentation, data: ImageData) -> None:
        check_augmentation(name, data)
        self._data, self._on_pixels = data, name in ON_PIXELS
        self._transform = _transform(name, data)

    def __call__(self, images: Tensor, labels: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augment normalised images float32 [B, ch, H, W] with labels int64 [B] or probabilities float32 [B, C].

        Returns images of the same shape, and the labels: as they were, or for cutmix and mixup probabilities [B, C].
        draws: a CPU generator, of which one number is taken. The global generators are left as they were.
        """
        with drawn_from(draws):
            if not self._on_pixels:
                mixed: tuple[Tensor, Tensor] = self._transform(images, labels)
                return mixed
            pixels = self._data.denormalise(images).mul(255).round().to(torch.uint8)
            return self._data.normalise(torch.stack([self._transform(image) for image in pixels])), labels


def _transform(name: Augmentation, data: ImageData) -> Callable[..., Any]:
    from torchvision.transforms import v2

    if name == "autoaugment":
        return v2.AutoAugment(v2.AutoAugmentPolicy[_policy(data)])
    if name == "randaugment":
        return v2.RandAugment()
    mixing = {"cutmix": v2.CutMix, "mixup": v2.MixUp}[name]
    return mixing(num_classes=data.num_classes)


def _policy(data: ImageData) -> str:
    """AutoAugment's policy of the dataset it was found for, else by size: CIFAR10 up to 64 px, IMAGENET above."""
    if data.name == "SVHN":
        return "SVHN"
    return "CIFAR10" if max(data.im_size) <= _LARGE else "IMAGENET"
