"""ResNet18 for small images, after the authors' networks.py and ImageNet-abcde/networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from common.networks.network import Network, norm_layer, too_small, two_sides
from common.system.errors import InputError

NAMES = ("ResNet18", "ResNet18BN", "ResNet18_AP", "ResNet18BN_AP", "ResNet18CIFAR")
ACCEPTS = "ResNet18, ResNet18BN (batch norm), ResNet18_AP, ResNet18BN_AP (pooling instead of strides), ResNet18CIFAR"

_STEM = 64
_BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))  # width, stride
_HALVINGS = 3


class ResNet18(Network):
    """A 3x3 convolution of stride 1, eight residual blocks in four stages, global average pooling, a linear classifier.

    No pooling comes before the blocks. Images are [B, channels, H, W], square or not. In the variants for CIFAR and for
    ImageNet, the classifier sees 512 features. At 28 and 32 pixels, global average pooling is the 4x4 average pooling
    of the authors' CIFAR variant, whose classifier fits no other size.
    pooled: selects the AP variants. They halve the sides by average pooling instead of strides, and the classifier sees
    all 512 * h * w features, where h and w are the sides of the last feature map.
    norm: I (instance) or B (batch). The authors' batch-norm network for ImageNet has no norm; this one has batch norm.
    Raises InputError if the images are so small that the last feature map is empty, or that it has a single pixel and
    norm is I: instance norm makes a single pixel zero.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        im_size: Sequence[int],
        *,
        norm: str = "I",
        pooled: bool = False,
        name: str = "ResNet18",
    ) -> None:
        super().__init__()
        # A convolution of stride 2 and padding 1 halves the sides rounding up; a pooling rounds down.
        rest = 0 if pooled else (1 << _HALVINGS) - 1
        height, width = ((side + rest) >> _HALVINGS for side in two_sides(name, im_size))
        if min(height, width) < 1:
            raise too_small(name, channels, im_size, 1 << _HALVINGS)
        if norm == "I" and height * width == 1:
            size = "x".join(map(str, (channels, *im_size)))
            more = 2 * (1 << _HALVINGS) - rest
            raise InputError(
                f"Images of {size} leave {name} a single pixel, which instance norm makes zero: "
                f"give it a side of {more} or more, or take ResNet18BN."
            )
        layers: list[nn.Module] = [_convolution(channels, _STEM), norm_layer(norm, _STEM), nn.ReLU()]
        inputs = _STEM
        for outputs, stride in _BLOCKS:
            layers.append(Block(inputs, outputs, stride, norm, pooled))
            inputs = outputs
        if not pooled:
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = width = 1
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * height * width, num_classes)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, inputs, H, W] to [B, outputs, H / stride, W / stride].

    pooled: average pooling reduces the sides instead of strided convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, pooled: bool) -> None:
        super().__init__()
        step = 1 if pooled else stride
        pooling = [nn.AvgPool2d(stride)] if pooled and stride > 1 else []
        self.layers = nn.Sequential(
            _convolution(inputs, outputs, stride=step),
            norm_layer(norm, outputs),
            nn.ReLU(),
            *pooling,
            _convolution(outputs, outputs),
            norm_layer(norm, outputs),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, kernel=1, stride=step)
            self.shortcut = nn.Sequential(projection, *pooling, norm_layer(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.layers(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    # No bias: the norm that follows each convolution would remove it.
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def build(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> ResNet18 | None:
    """The ResNet18 of that name for images [B, channels, *im_size]; None if the name is not in `NAMES`."""
    if name not in NAMES:
        return None
    norm, pooled = "B" if "BN" in name else "I", name.endswith("_AP")
    return ResNet18(channels, num_classes, im_size, norm=norm, pooled=pooled, name=name)
