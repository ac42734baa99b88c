"""Image size, number of classes and split sizes of each dataset, for what is known before a dataset is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from common.datasets.imagenet_classes import NAMES
from common.images.image_data import ImageData


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

    @classmethod
    def of(cls, train: ImageData, test: ImageData) -> DataShape:
        """The sizes of loaded images."""
        return cls(
            train.channels, train.im_size, train.num_classes, len(train), len(test), train.smallest_class,
            train.images.element_size(),
        )  # fmt: skip

    @property
    def uncounted(self) -> DataShape:
        """The same without the numbers of images: all that the cost of a network on one batch depends on."""
        return replace(self, train_images=0, test_images=0, smallest_class=0, value_bytes=0)

    @property
    def data_bytes(self) -> int:
        """The bytes of all images, of both splits."""
        values = self.channels * math.prod(self.im_size) * self.value_bytes
        return (self.train_images + self.test_images) * values


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


def known_shape(dataset: str, image_size: int | None = None) -> DataShape | None:
    """The sizes of a dataset's images as they will be loaded, None where only the images tell.

    image_size: the side that images are resized to, in pixels.
    """
    shape = SHAPES.get(dataset)
    if shape is None:
        return None
    sides = shape.im_size if image_size is None else (image_size,) * len(shape.im_size)
    return replace(shape, im_size=sides)
