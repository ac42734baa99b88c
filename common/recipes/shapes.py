"""Image size, number of classes and split sizes of each dataset, for what is known before a dataset is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from common.datasets.imagenet_classes import NAMES


@dataclass(frozen=True)
class DataShape:
    """The sizes of a dataset.

    im_size: the two or three sides of an image. smallest_class: the number of training images of the rarest class.
    value_bytes: bytes per stored pixel value, 1 for 8-bit images and 4 for float32.
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
    # ImageNet subsets have ten classes of about 1,290 images; the smallest class of the whole ImageNet has 732 images.
    **dict.fromkeys(NAMES, DataShape(3, (128, 128), 10, 12_900, 500, 732)),
    # The source of the dataset does not say how many volumes the rarest digit has.
    "3D-MNIST": DataShape(1, (16, 16, 16), 10, 10_000, 2_000, 100, value_bytes=4),
}
