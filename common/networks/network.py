"""What all networks share: the base class, the checks of the image size, and the norm layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from common.system.errors import InputError

_GROUPS = 4  # groups of GroupNorm, as in the authors' networks.py
_LARGE = 128  # pixels; images with both sides this long or longer get the ImageNet variant of a network


class Network(nn.Module):
    """Base class: maps normalised images [B, ch, *im_size] to logits [B, C] for C classes, through `embed`."""

    features: nn.Module
    classifier: nn.Module

    def embed(self, x: Tensor) -> Tensor:
        """The flattened features [B, F] of images [B, ch, *im_size]; the classifier takes these F features."""
        return self.features(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """The logits [B, C] of images [B, ch, *im_size]."""
        return self.classifier(self.embed(x))


def two_sides(name: str, im_size: Sequence[int]) -> tuple[int, int]:
    """The height and the width of two-dimensional images.

    Raises InputError, which mentions the network's name, for images of another number of sides.
    """
    if len(im_size) != 2:
        raise InputError(f"{name} takes two-dimensional images, not images of size {tuple(im_size)}.")
    return im_size[0], im_size[1]


def too_small(name: str, channels: int, im_size: Sequence[int], least: int) -> InputError:
    """The error for images that have a side of fewer than `least` pixels, the smallest that the network takes."""
    size = "x".join(map(str, (channels, *im_size)))
    return InputError(f"Images of {size} are too small for {name}: it takes sides of {least} or more.")


def takes_large_form(name: str, im_size: Sequence[int]) -> bool:
    """Whether an architecture with a CIFAR variant and an ImageNet variant uses the ImageNet variant for this size.

    It does if both sides have at least 128 pixels. A name that ends in CIFAR keeps the CIFAR variant at every size.
    """
    return not name.endswith("CIFAR") and min(im_size) >= _LARGE


def norm_layer(kind: str, channels: int, *sides: int) -> nn.Module:
    """Batch, layer, instance or group norm (kind B|L|I|G) with learnable affine parameters.

    sides: the spatial dimensions of the features; only layer norm needs these. Raises InputError if the groups of
    group norm do not divide the channels.
    """
    if kind == "B":
        return nn.BatchNorm2d(channels)
    if kind == "L":
        return nn.LayerNorm([channels, *sides])
    if kind == "G" and channels % _GROUPS:
        raise InputError(
            f"GroupNorm splits the width into {_GROUPS} groups: {channels} is not a multiple of {_GROUPS}."
        )
    # With one group per channel, GroupNorm is instance norm. Published parameter lists store instance norm this way.
    return nn.GroupNorm(channels if kind == "I" else _GROUPS, channels)
