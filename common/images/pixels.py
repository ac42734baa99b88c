"""Raw pixels: scales them to 0..1, hashes them, and says how images of any size become squares."""

from __future__ import annotations

import hashlib
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from common.schemas.door import LARGEST_SIDE
from common.system.errors import InputError


def in_unit_range(images: Tensor) -> Tensor:
    """Raw images as floating point in 0..1: uint8 is divided by 255, and any other type is returned unchanged."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


def fingerprint(images: Tensor, *how: object) -> str:
    """A hash of images `[N, ...]` (values, shape, type) and of the values in `how`; it is the same in every process."""
    described = (*how, images.dtype, tuple(images.shape))
    digest = hashlib.blake2b("".join(f"{each}\0" for each in described).encode(), digest_size=20)
    digest.update(images.cpu().contiguous().numpy().data)
    return digest.hexdigest()


Decoding = Literal["shown", "stored"]
"""How an image file becomes pixels.

"shown": as viewers show the file, turned as its EXIF orientation says and, where it is transparent, laid over white.
"stored": the colours as they are stored, whatever orientation and transparency say.
"""

ResizeMode = Literal["crop", "squash"]


StoredAs = Literal["png", "jpeg", "webp", "avif", "coded"]
"""How a baseline stores real images: as files, of which only PNG is lossless, or as a coded set (docs/format.md)."""


class Resize(NamedTuple):
    """How images of any size become squares."""

    side: int  # pixels
    mode: ResizeMode = "crop"  # crop scales the shorter side and takes the centre square; squash scales both sides
    antialias: bool = True


def check_side(side: int) -> None:
    """Raise InputError for a side of resized images that is out of range."""
    if not 1 <= side <= LARGEST_SIDE:
        raise InputError(f"--image_size must be from 1 to {LARGEST_SIDE:,} pixels, not {side:,}")


def resize_key(resize: Resize | None) -> list[int | str | bool | None]:
    """The parts of a cache file's name and fingerprint that describe the resizing.

    If mode and antialias have their default values, this is the side alone.
    """
    if resize is None:
        return [None]
    return [resize.side] if resize == Resize(resize.side) else list(resize)
