"""Raw pixels: their range, their fingerprint, and how images of any size become squares."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import torch
from torch import Tensor


def in_unit_range(images: Tensor) -> Tensor:
    """Raw images as floating point in 0..1: uint8 is divided by 255, anything else returned as it is."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


def fingerprint(images: Tensor, *how: object) -> str:
    """A hash of images `[N, ...]` (values, shape, type), and of what else is given: the same in every process."""
    described = (*how, images.dtype, tuple(images.shape))
    digest = hashlib.blake2b("".join(f"{each}\0" for each in described).encode(), digest_size=20)
    digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


ResizeMode = Literal["crop", "squash"]


class Resize(NamedTuple):
    """How images of any size become squares."""

    side: int  # pixels
    mode: ResizeMode = "crop"  # the shorter side to `side`, then the centre square; squash: both sides to `side`
    antialias: bool = True


def resize_key(resize: Resize | None) -> list[int | str | bool | None]:
    """What the name and the fingerprint of a cache say of it: the side alone where the rest is as usual."""
    if resize is None:
        return [None]
    return [resize.side] if resize == Resize(resize.side) else list(resize)
