"""Image size, classes and split sizes per dataset, so that a cell's cost is known without loading it."""

from __future__ import annotations

from dataclasses import dataclass

from common.datasets.imagenet_classes import NAMES


@dataclass(frozen=True)
class DataShape:
    """A dataset's sizes. im_size: two or three sides. smallest_class: training images of the rarest class.

    value_bytes: of a stored pixel value, 1 for 8-bit images and 4 for float32.
    """

    channels: int
    im_size: tuple[int, ...]
    num_classes: int
    train_images: int
    test_images: int
    smallest_class: int
    value_bytes: int = 1


SHAPES: dict[str, DataShape] = {
    "digits": DataShape(1, (8, 8), 10, 1_437, 360, 139),
    "MNIST": DataShape(1, (28, 28), 10, 60_000, 10_000, 5_421),
    "FashionMNIST": DataShape(1, (28, 28), 10, 60_000, 10_000, 6_000),
    "SVHN": DataShape(3, (32, 32), 10, 73_257, 26_032, 4_659),
    "CIFAR10": DataShape(3, (32, 32), 10, 50_000, 10_000, 5_000),
    "CIFAR100": DataShape(3, (32, 32), 100, 50_000, 10_000, 500),
    "Tiny": DataShape(3, (64, 64), 200, 100_000, 10_000, 500),
    # Ten classes of about 1,290 images; the smallest class of all of ImageNet has 732.
    **dict.fromkeys(NAMES, DataShape(3, (128, 128), 10, 12_900, 500, 732)),
    # How many volumes there are of the rarest digit its source does not say.
    "3D-MNIST": DataShape(1, (16, 16, 16), 10, 10_000, 2_000, 100, value_bytes=4),
}
