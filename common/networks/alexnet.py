"""The reduced AlexNet of the dataset-distillation literature, after the authors' networks.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.networks.network import Network, norm_layer, too_small, two_sides

NAMES = ("AlexNet", "AlexNetBN", "AlexNetCIFAR")
ACCEPTS = "AlexNet, AlexNetBN (batch norm), AlexNetCIFAR"

_CONVOLUTIONS = (  # width, kernel, whether 2x2 max pooling follows
    (128, 5, True),
    (192, 5, True),
    (256, 3, False),
    (192, 3, False),
    (192, 3, True),
)


class AlexNet(Network):
    """Five convolutions, three of them followed by 2x2 max pooling, and a linear classifier of 192 * h * w features.

    h and w are the sides of the last feature map. Images are [B, channels, H, W] with sides of at least 8 (4 with one
    channel), square or not. The variants for CIFAR and for ImageNet are the same network. With batchnorm, batch norm
    follows each convolution. Raises InputError for smaller images.
    """

    def __init__(
        self, channels: int, num_classes: int, im_size: Sequence[int], *, batchnorm: bool = False, name: str = "AlexNet"
    ) -> None:
        super().__init__()
        # With one channel the first padding is larger by 2, so each side grows by 4: the 28 pixels of MNIST become 32.
        growth = 4 if channels == 1 else 0
        height, width = ((side + growth) // 8 for side in two_sides(name, im_size))  # three halvings, rounding down
        if min(height, width) < 1:
            raise too_small(name, channels, im_size, 8 - growth)
        layers: list[nn.Module] = []
        inputs, padding = channels, growth // 2
        for outputs, kernel, pooled in _CONVOLUTIONS:
            layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2 + padding))
            if batchnorm:
                layers.append(norm_layer("B", outputs))
            layers.append(nn.ReLU())
            if pooled:
                layers.append(nn.MaxPool2d(2))
            inputs, padding = outputs, 0
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * height * width, num_classes)


def build(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> AlexNet | None:
    """The AlexNet of that name for images [B, channels, *im_size]; None if the name is not in `NAMES`."""
    if name not in NAMES:
        return None
    return AlexNet(channels, num_classes, im_size, batchnorm="BN" in name, name=name)
