"""Conv3DNet, the ConvNet for three-dimensional images, after the authors' 3D-MNIST folder."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from common.networks.network import Network, too_small
from common.system.errors import InputError

NAMES = ("Conv3DNet",)
ACCEPTS = "Conv3DNet (three-dimensional images)"

_WIDTH, _DEPTH = 64, 3


class Conv3DNet(Network):
    """Three blocks of [3x3x3 convolution of width 64, instance norm, ReLU, average pooling by 2], a linear classifier.

    Images are [B, channels, D, H, W] with sides of at least 8 (4 with one channel); they need not be cubes. Features
    are [B, 64 * d * h * w], where d, h and w are the sides of the last feature map. Raises InputError for smaller
    images, and for images that do not have three sides.
    """

    def __init__(self, channels: int, num_classes: int, im_size: Sequence[int]) -> None:
        super().__init__()
        if len(im_size) != 3:
            raise InputError(f"Conv3DNet takes three-dimensional images, not images of size {tuple(im_size)}.")
        # One input channel is padded by 3, not 1, so each side grows by 4: 16 voxels become 20, 10, 5 and 2.
        first_padding = 3 if channels == 1 else 1
        growth = 2 * first_padding - 2
        sides = [(side + growth) >> _DEPTH for side in im_size]  # every pooling halves the sides, rounding down
        if min(sides) < 1:
            raise too_small("Conv3DNet", channels, im_size, (1 << _DEPTH) - growth)
        layers: list[nn.Module] = []
        for block in range(_DEPTH):
            inputs, padding = (channels, first_padding) if block == 0 else (_WIDTH, 1)
            layers += [
                nn.Conv3d(inputs, _WIDTH, kernel_size=3, padding=padding),
                nn.InstanceNorm3d(_WIDTH, affine=True),
                nn.ReLU(),
                nn.AvgPool3d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(_WIDTH * math.prod(sides), num_classes)


def build(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> Conv3DNet | None:
    """Conv3DNet for images [B, channels, *im_size]; None if the name is not in `NAMES`."""
    return Conv3DNet(channels, num_classes, im_size) if name in NAMES else None
