"""Images as P = ch * d orthonormal coefficients, and back: a rotation of colours, then the DCT of images or blocks.

The coefficients of an image are ordered by colour, then by frequency (row-major), then by block (row-major). With one
block, the whole image, that is the order of the positions of `common.frequency`. Everything is differentiable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from common import frequency
from common.system.errors import InputError

Colour = Literal["rgb", "opponent"]
Block = Literal[0, 8, 16, 32]
COLOURS: tuple[str, ...] = get_args(Colour)
BLOCKS: tuple[int, ...] = get_args(Block)

# Luminance, red against blue, and green against both: rows of length 1 at right angles to each other.
_OPPONENT = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


def usual_colour(channels: int) -> str:
    """The colours of images with so many channels unless others are asked for."""
    return "opponent" if channels == 3 else "rgb"


@dataclass(frozen=True)
class Planes:
    """The layout of images with ch channels and two or three sides in the P coefficients that stand for them.

    colour: rgb keeps the channels, opponent rotates three of them. block: the side of a block, 0 for the whole image.
    Raises InputError for opponent colours of another number of channels than 3, and for blocks that do not tile the
    image.
    """

    channels: int
    im_size: tuple[int, ...]
    colour: str = "rgb"
    block: int = 0

    def __post_init__(self) -> None:
        if self.colour not in COLOURS:
            raise InputError(f"unknown colour '{self.colour}': choose one of {', '.join(COLOURS)}")
        if self.block not in BLOCKS:
            raise InputError(f"unknown block {self.block}: choose one of {', '.join(map(str, BLOCKS))}")
        if self.colour == "opponent" and self.channels != 3:
            raise InputError(
                f"opponent colours are of red, green and blue, and these images have {self.channels} channel(s): "
                "give --colour rgb"
            )
        if self.block and any(side % self.block for side in self.im_size):
            sides = "x".join(map(str, self.im_size))
            raise InputError(f"blocks of {self.block} do not tile images of {sides}: give --block 0, the whole image")

    @property
    def d(self) -> int:
        """The number of pixels of a channel."""
        return math.prod(self.im_size)

    @property
    def size(self) -> int:
        """P, the number of coefficients of an image."""
        return self.channels * self.d

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of a block."""
        return (self.block,) * len(self.im_size) if self.block else self.im_size

    def forward(self, images: Tensor) -> Tensor:
        """The coefficients [..., P] of images [..., ch, *im_size]; their squares add up to those of the pixels."""
        ndim = len(self.im_size)
        constants = _constants(self, images.device, images.dtype)
        rotated = self._rotate(images, constants.colours)
        blocks = rotated.unflatten(-ndim, (-1, self.sides[0]))
        for axis in range(1, ndim):
            blocks = blocks.unflatten(axis - ndim, (-1, self.sides[axis]))
        # [..., ch, B1, s1, B2, s2(, B3, s3)] to [..., ch, B1, B2(, B3), s1, s2(, s3)]
        first = blocks.ndim - 2 * ndim
        order = [*range(first), *range(first, blocks.ndim, 2), *range(first + 1, blocks.ndim, 2)]
        coefficients = frequency.forward(blocks.permute(order), ndim) / constants.of_block
        coefficients = coefficients.flatten(-ndim).flatten(first, first + ndim - 1)  # [..., ch, blocks, frequencies]
        return coefficients.transpose(-1, -2).flatten(-3)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """The images [..., ch, *im_size] of coefficients [..., P]."""
        constants = _constants(self, coefficients.device, coefficients.dtype)
        blocks = self._blocks(coefficients) * constants.of_block
        pixels = self._joined(frequency.inverse(blocks, len(self.im_size)))
        return self._rotate(pixels, constants.colours.T)

    def laid_out(self, values: Tensor) -> Tensor:
        """What belongs to the coefficients, [..., P], as pictures [..., ch, *im_size], each block where it lies."""
        return self._joined(self._blocks(values))

    def _blocks(self, coefficients: Tensor) -> Tensor:
        """[..., P] as [..., ch, B1, B2(, B3), s1, s2(, s3)] with B blocks of side s along each axis."""
        counts = [side // part for side, part in zip(self.im_size, self.sides, strict=True)]
        blocks = coefficients.unflatten(-1, (self.channels, math.prod(self.sides), math.prod(counts)))
        return blocks.transpose(-1, -2).unflatten(-1, self.sides).unflatten(-len(self.sides) - 1, counts)

    def _joined(self, blocks: Tensor) -> Tensor:
        """[..., ch, B1, B2(, B3), s1, s2(, s3)] as [..., ch, *im_size]."""
        ndim = len(self.im_size)
        first = blocks.ndim - 2 * ndim
        order = [*range(first), *(axis for i in range(ndim) for axis in (first + i, first + ndim + i))]
        return blocks.permute(order).reshape(*blocks.shape[:first], *self.im_size)

    @cached_property
    def scan(self) -> Tensor:
        """The P coefficients in the order in which neighbours are alike, int64 [P].

        By colour, then by rising frequency (the sum over the axes of index / side), then as they are ordered.
        """
        rank = frequency.frequencies(self.sides).flatten()  # [frequencies]
        blocks = self.d // len(rank)
        of_block = torch.arange(blocks, device="cpu")
        within = rank.argsort(stable=True)[:, None] * blocks + of_block  # [frequencies, blocks]
        return (torch.arange(self.channels, device="cpu")[:, None] * self.d + within.flatten()).flatten()

    @cached_property
    def scale(self) -> Tensor:
        """What an orthonormal coefficient is multiplied by in the units of the unnormalised DCT: float32 [P]."""
        blocks = self.d // math.prod(self.sides)
        return self._scale.flatten().repeat_interleave(blocks).repeat(self.channels)

    def scale_on(self, device: torch.device) -> Tensor:
        """`scale` on a device, to which it is copied once."""
        return _constants(self, device, torch.float32).scale

    def _rotate(self, images: Tensor, matrix: Tensor) -> Tensor:
        if self.colour == "rgb":
            return images
        channel = -len(self.im_size) - 1
        return (images.movedim(channel, -1) @ matrix.T).movedim(-1, channel)

    @cached_property
    def _colours(self) -> Tensor:
        rows = torch.tensor(_OPPONENT, dtype=torch.float64, device="cpu")
        return rows / rows.norm(dim=1, keepdim=True)

    @cached_property
    def _scale(self) -> Tensor:
        return frequency.orthonormal_scale(self.sides).float()


class _Constants(NamedTuple):
    """`Planes.scale`, the same of one block [*sides], and the rows of the colours, on a device."""

    scale: Tensor
    of_block: Tensor
    colours: Tensor


@lru_cache(maxsize=64)
def _constants(planes: Planes, device: torch.device, dtype: torch.dtype) -> _Constants:
    made = planes.scale, planes._scale, planes._colours
    return _Constants(*(each.to(dtype).to(device) for each in made))
