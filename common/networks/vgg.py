"""VGG11 with one linear layer, after the authors' networks.py and ImageNet-abcde/networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.networks.network import Network, norm_layer, takes_large_form, too_small, two_sides

NAMES = ("VGG11", "VGG11BN", "VGG11CIFAR")
ACCEPTS = "VGG11, VGG11BN (batch norm), VGG11CIFAR (the variant for CIFAR at every image size)"

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # widths of the convolutions before each pooling
_LARGE_SIDE = 7


class VGG11(Network):
    """Eight 3x3 convolutions with norm and ReLU in five stages, each ending in 2x2 max pooling; a linear classifier.

    Images are [B, channels, H, W] with sides of at least 32 (28 with one channel), square or not. The classifier sees
    512 * h * w features, where h and w are the sides of the last feature map: 512 features at 32 pixels.
    large: selects the ImageNet variant. It pools the last feature map to 7x7 by adaptive max pooling, so the classifier
    sees 25,088 features.
    norm: I (instance) or B (batch). The authors' batch-norm network for ImageNet has no norm; this one has batch norm.
    Raises InputError for smaller images.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        im_size: Sequence[int],
        *,
        norm: str = "I",
        large: bool = False,
        name: str = "VGG11",
    ) -> None:
        super().__init__()
        # One input channel is padded by 3, not 1, so each side grows by 4: the 28 pixels of MNIST become 32.
        growth = 4 if channels == 1 else 0
        halvings = len(_STAGES)
        height, width = ((side + growth) >> halvings for side in two_sides(name, im_size))
        if min(height, width) < 1:
            raise too_small(name, channels, im_size, (1 << halvings) - growth)
        layers: list[nn.Module] = []
        inputs, padding = channels, 1 + growth // 2
        for stage in _STAGES:
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=padding), norm_layer(norm, outputs), nn.ReLU()]
                inputs, padding = outputs, 1
            layers.append(nn.MaxPool2d(2))
        if large:
            height = width = _LARGE_SIDE
            layers.append(nn.AdaptiveMaxPool2d(_LARGE_SIDE))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * height * width, num_classes)


def build(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> VGG11 | None:
    """The VGG11 of that name for images [B, channels, *im_size]; None if the name is not in `NAMES`."""
    if name not in NAMES:
        return None
    norm, large = "B" if "BN" in name else "I", takes_large_form(name, im_size)
    return VGG11(channels, num_classes, im_size, norm=norm, large=large, name=name)
