"""The ConvNet family of the dataset-distillation literature: blocks of convolution, norm, activation and pooling.

The networks follow the authors' networks.py and ImageNet-abcde/networks. A name is "ConvNet" followed by any of the
suffixes in `ACCEPTS`, in the order given there: ConvNet, ConvNetD4, ConvNetW256, ConvNetD5BN or ConvNetD5_BN,
ConvNetASwishBN, ConvNetD5GAP, ConvNetD3W64ALGNMP. D: blocks. W: width. AS, AR, AL, ASwish: sigmoid, ReLU, leaky ReLU,
Swish. NN, BN, LN, IN, GN: no, batch, layer, instance, group norm. NP, MP, AP: no, max, average pooling. GAP: the width
doubles with each block, then global average pooling. ConvNetKIP: width 1024, no norm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn

from common.networks.network import Network, norm_layer, two_sides
from common.networks.pooling import AvgPool2x2
from common.system.errors import InputError

# Swish comes before S, because the first alternative that matches wins.
_NAME = re.compile(r"ConvNet(?:D([1-8]))?(?:W([1-9]\d{0,4}))?(?:A(Swish|S|R|L))?(?:_?([NBLIG])N)?(?:([NMA])P)?(GAP)?")

ACCEPTS = "ConvNet[D1..D8][W32..][AS|AR|AL|ASwish][NN|BN|LN|IN|GN][NP|MP|AP][GAP], in this order, and ConvNetKIP"
NAMES = (
    "ConvNet",
    "ConvNetKIP",
    *(f"ConvNetD{depth}" for depth in range(1, 9)),
    *(f"ConvNetW{width}" for width in (32, 64, 128, 256, 512, 1024)),
    *(f"ConvNet{suffix}" for suffix in ("AS", "AR", "AL", "ASwish", "ASwishBN")),
    *(f"ConvNet{suffix}" for suffix in ("NN", "BN", "LN", "IN", "GN", "NP", "MP", "AP", "GAP")),
    *(f"ConvNet_{suffix}" for suffix in ("NN", "BN", "LN", "IN", "GN")),
)

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "S": nn.Sigmoid,
    "R": nn.ReLU,
    "L": lambda: nn.LeakyReLU(0.01),
    "Swish": nn.SiLU,
}


class ConvNet(Network):
    """`depth` blocks of [3x3 convolution, norm, activation, 2x2 pooling], then a linear classifier.

    The classifier sees all width * h * w features, where h and w are the sides of the last feature map. With
    global_average, each block is twice as wide as the one before, and the classifier sees the global average pooling of
    the last block. Images are [B, channels, H, W]; they need not be square, but at least one pixel must remain after
    `depth` poolings. norm (N|B|L|I|G), activation (S|R|L|Swish) and pooling (N|M|A) take the letters of the name.
    Raises InputError if the images are too small for the depth, or if GroupNorm's groups do not divide the width.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        im_size: Sequence[int],
        *,
        depth: int = 3,
        width: int = 128,
        activation: str = "R",
        norm: str = "I",
        pooling: str = "A",
        global_average: bool = False,
    ) -> None:
        super().__init__()
        # One input channel is padded by 3, not 1, so each side grows by 4: the 28 pixels of MNIST become 32.
        first_padding = 3 if channels == 1 else 1
        height, breadth = (side + 2 * first_padding - 2 for side in two_sides("ConvNet", im_size))
        if pooling != "N":
            fits = min(height, breadth).bit_length() - 1  # every pooling halves the sides, rounding down
            if depth > fits:
                remedy = (
                    f"the largest depth that fits is {fits}" if fits else "no depth fits, only NP (no pooling) does"
                )
                size = f"{channels}x{im_size[0]}x{im_size[1]}"
                raise InputError(f"Images of {size} are too small for a ConvNet of depth {depth}: {remedy}.")
        layers: list[nn.Module] = []
        inputs, outputs, padding = channels, width, first_padding
        for _ in range(depth):
            layers.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=padding))
            if norm != "N":
                layers.append(norm_layer(norm, outputs, height, breadth))
            layers.append(_ACTIVATIONS[activation]())
            if pooling != "N":
                layers.append(nn.MaxPool2d(2) if pooling == "M" else AvgPool2x2())
                height, breadth = height // 2, breadth // 2
            inputs, outputs, padding = outputs, 2 * outputs if global_average else outputs, 1
        if global_average:
            layers.append(nn.AdaptiveAvgPool2d(1))
            height = breadth = 1
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * height * breadth, num_classes)


def build(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> ConvNet | None:
    """The ConvNet of that name for images [B, channels, *im_size]; None if the name is not that of a ConvNet."""
    if name == "ConvNetKIP":
        return ConvNet(channels, num_classes, im_size, width=1024, norm="N")
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    depth, width, activation, norm, pooling, global_average = match.groups()
    return ConvNet(
        channels,
        num_classes,
        im_size,
        depth=int(depth or 3),
        width=int(width or 128),
        activation=activation or "R",
        norm=norm or "I",
        pooling=pooling or "A",
        global_average=global_average is not None,
    )
