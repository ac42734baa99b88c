"""The two small networks of the dataset-distillation literature, MLP and LeNet, after the authors' networks.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from common.networks.network import Network, too_small, two_sides

NAMES = ("MLP", "LeNet")
ACCEPTS = "MLP (two hidden layers of 128), LeNet"

_HIDDEN = 128


class MLP(Network):
    """Two hidden layers of 128 units with ReLU on the flattened pixels, then a linear classifier.

    Images may have any size and any number of sides.
    """

    def __init__(self, channels: int, num_classes: int, im_size: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * math.prod(im_size), _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(_HIDDEN, num_classes)


class LeNet(Network):
    """Two blocks of [5x5 convolution, ReLU, 2x2 max pooling], then three linear layers.

    The convolutions have 6 and 16 channels, and the linear layers 120, 84 and C units for C classes. Images are
    [B, channels, H, W] with sides of at least 16 (12 with one channel). Raises InputError for smaller images.
    """

    def __init__(self, channels: int, num_classes: int, im_size: Sequence[int]) -> None:
        super().__init__()
        sides = two_sides("LeNet", im_size)
        padding = 2 if channels == 1 else 0  # so the 28 pixels of MNIST become 32
        height, breadth = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in sides)
        if min(height, breadth) < 1:
            raise too_small("LeNet", channels, im_size, 16 - 2 * padding)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, kernel_size=5, padding=padding),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * height * breadth, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(84, num_classes)


def build(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> Network | None:
    """The MLP or the LeNet for images [B, channels, *im_size]; None if the name is not in `NAMES`."""
    kinds = {"MLP": MLP, "LeNet": LeNet}
    return kinds[name](channels, num_classes, im_size) if name in kinds else None
