"""What the networks share: their form, the sizes of images they take, and their norms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from common.system.errors import InputError

_GROUPS = 4  # of GroupNorm, in the authors' networks.py
_LARGE = 128  # pixels of the shorter side: ImageNet subsets, in the authors' ImageNet-abcde folder


class Network(nn.Module):
    """Normalised images [B, ch, *im_size] to logits [B, C], through an embedding."""

    features: nn.Module
    classifier: nn.Module

    def embed(self, x: Tensor) -> Tensor:
        """The flattened features [B, F] that the classifier sees, of images [B, ch, *im_size]."""
        return self.features(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, ch, *im_size]."""
        return self.classifier(self.embed(x))


def two_sides(name: str, im_size: Sequence[int]) -> tuple[int, int]:
    """Height and width of images for the network of that name; InputError if they are not two-dimensional."""
    if len(im_size) != 2:
        raise InputError(f"{name} takes two-dimensional images, not images of size {tuple(im_size)}.")
    return im_size[0], im_size[1]


def too_small(name: str, channels: int, im_size: Sequence[int], least: int) -> InputError:
    """What to raise for images with a side below the `least` that the network of that name takes."""
    size = "x".join(map(str, (channels, *im_size)))
    return InputError(f"Images of {size} are too small for {name}: it takes sides of {least} or more.")


def takes_large_form(name: str, im_size: Sequence[int]) -> bool:
    """Whether an architecture with a form for CIFAR and one for ImageNet takes the latter, from 128 pixels on.

    Names that end in CIFAR keep that form at every size.
    """
    return not name.endswith("CIFAR") and min(im_size) >= _LARGE


def norm_layer(kind: str, channels: int, *sides: int) -> nn.Module:
    """Batch, layer, instance or group norm (B|L|I|G), with affine weights; layer norm needs the sides as well."""
    if kind == "B":
        return nn.BatchNorm2d(channels)
    if kind == "L":
        return nn.LayerNorm([channels, *sides])
    if kind == "G" and channels % _GROUPS:
        raise InputError(
            f"GroupNorm splits the width into {_GROUPS} groups: {channels} is not a multiple of {_GROUPS}."
        )
    # One group per channel is instance norm; published parameter lists hold its affine weights under this form.
    return nn.GroupNorm(channels if kind == "I" else _GROUPS, channels)
