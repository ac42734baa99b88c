"""DC's augmentation (Zhao, Mopuri, Bilen, ICLR 2021), used where evaluation networks are trained without DSA.

Each image gets one of the named operations, drawn uniformly. They follow the authors' utils.py (augment, get_daparam):
    crop    shifts the image by -4 to 3 pixels along each axis; the gap is filled with the mean of the channel
    scale   resizes height and width by factors in [0.8, 1.2), nearest pixel; pads with zeros or crops to the middle
    rotate  rotates by a whole number of degrees from -45 to 44 about the centre; corners are filled with the mean
    noise   adds 0.001 z, where z is standard normal
The means are those of the batch before any operation: of each channel for crop, of all channels for rotate.

The authors process one image after another in scipy. Here all images that get the same operation are processed together
on the device, with the same resulting pixels. `rotate` computes scipy.ndimage.rotate with its default cubic spline, and
keeps the middle of the rotated image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from common.matching.augment import parse_strategy
from common.system.devices import all_to_device
from common.system.errors import InputError

STRATEGIES = ("crop", "scale", "rotate", "noise")

_CROP_PIXELS = 4
_SCALE_RATIO = 0.2
_ROTATE_DEGREES = 45
_NOISE = 0.001


@dataclass(frozen=True, eq=False)
class DCParams:
    """The operations drawn for a batch of `count` images, one for each image."""

    count: int
    shape: tuple[int, ...]  # (ch, H, W)
    # Operation -> (int64 [K] positions in the batch of the K images that drew it, their parameters [K, ...] as the
    # functions below take them). Operations that no image drew are absent.
    operations: dict[str, tuple[Tensor, Tensor]]

    def to(self, device: torch.device | str | None) -> DCParams:
        """The same parameters on another device, all in one copy; those that are there already are not copied."""
        given = [each for pair in self.operations.values() for each in pair]
        if device is None or not given or given[0].device.type == torch.device(device).type:
            return self
        moved = iter(all_to_device(given, torch.device(device)))
        return replace(self, operations={name: (next(moved), next(moved)) for name in self.operations})


def strategy_for(dataset: str, network: str) -> str:
    """The authors' augmentation for an evaluation without DSA: '' (none) for most datasets and networks."""
    if network == "ConvNetBN":
        return "crop_noise"
    return "crop_scale_rotate" if dataset == "MNIST" else ""


def sample(
    strategy: str,
    count: int,
    generator: torch.Generator,
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
) -> DCParams:
    """Draw one of the strategy's operations for each of `count` images of shape [ch, H, W].

    strategy: operations joined by underscores, '' for none. generator: a CPU generator, so that the draws do not depend
    on `device`, where the parameters are put.
    Raises InputError for an unknown strategy, and for images that do not have two spatial dimensions. With no strategy,
    any shape is accepted.
    """
    names = parse_strategy(strategy, STRATEGIES, "one of DC's augmentations")
    if not names:
        return DCParams(count, tuple(shape), {})
    if len(shape) != 3:
        raise InputError(f"DC's augmentation takes images [ch, H, W], not {list(shape)}: use no strategy here.")
    chosen = torch.randint(len(names), (count,), generator=generator)
    operations = {}
    for name in STRATEGIES:
        rows = torch.tensor([i for i, drawn in enumerate(chosen.tolist()) if names[drawn] == name], dtype=torch.long)
        if len(rows) == 0:
            continue
        if name == "crop":
            values = torch.randint(-_CROP_PIXELS, _CROP_PIXELS, (len(rows), 2), generator=generator)
        elif name == "scale":
            factors = 1 + _SCALE_RATIO * (2 * torch.rand(len(rows), 2, generator=generator, dtype=torch.float64) - 1)
            values = (factors * torch.tensor(shape[1:])).long().clamp(min=1)
        elif name == "rotate":
            values = torch.randint(-_ROTATE_DEGREES, _ROTATE_DEGREES, (len(rows),), generator=generator)
        else:
            values = torch.randn(len(rows), *shape, generator=generator)
        operations[name] = (rows, values)
    return DCParams(count, tuple(shape), operations).to(device)


def apply(images: Tensor, params: DCParams) -> Tensor:
    """Apply the drawn operations to images [B, ch, H, W]; shape, dtype and device are kept.

    With no strategy, images of any shape are returned unchanged.
    Raises ValueError if the parameters were drawn for another number or shape of images, and for dtypes other than
    float32 and float64.
    """
    if not params.operations:
        return images
    if tuple(images.shape) != (params.count, *params.shape):
        raise ValueError(f"{params.count} images {list(params.shape)} were drawn for, given {list(images.shape)}.")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"DC's augmentation works in float32 and float64, not in {images.dtype}.")
    params = params.to(images.device)
    mean = images.mean(dim=(0, 2, 3), keepdim=True)  # [1, ch, 1, 1]
    augmented = images.clone()
    for name, (rows, values) in params.operations.items():
        some = images[rows]
        if name == "crop":
            some = _crop(some, values, mean)
        elif name == "scale":
            some = _scale(some, values)
        elif name == "rotate":
            some = _rotate(some, values, mean.mean())
        else:
            some = some + _NOISE * values.to(some.dtype)
        augmented[rows] = some
    return augmented


def _crop(x: Tensor, shifts: Tensor, mean: Tensor) -> Tensor:
    """Shift x [K, ch, H, W]: each pixel is read `shifts` int64 [K, 2] pixels further down and right.

    `mean` replaces pixels outside the image.
    """
    rows, columns = (torch.arange(side, device=x.device) + shifts[:, axis, None] for axis, side in _sides(x))
    return _read(x, rows, columns, mean)


def _scale(x: Tensor, sizes: Tensor) -> Tensor:
    """Resize x [K, ch, H, W] to `sizes` int64 [K, 2], then pad with zeros or cut off edges to restore H x W."""
    # The authors put the resized image in the middle of a square canvas and cut the middle out of the canvas. Each of
    # the two offsets is rounded down by itself. Hence the difference of two halves, not half of the difference.
    canvas = sizes.max(dim=1).values.clamp(min=max(x.shape[2:]))
    sources = []
    for axis, side in _sides(x):
        size = sizes[:, axis, None]
        start = (canvas - side)[:, None] // 2 - (canvas[:, None] - size) // 2
        position = torch.arange(side, device=x.device) + start  # [K, side], in the resized image
        source = position * side // size
        sources.append(torch.where((position >= 0) & (position < size), source, -1))
    return _read(x, sources[0], sources[1], x.new_zeros(()))


def _read(x: Tensor, rows: Tensor, columns: Tensor, fill: Tensor) -> Tensor:
    """The pixels of x [K, ch, H, W] at rows [K, H] and columns [K, W]; `fill` for positions outside the image."""
    count, channels, height, width = x.shape
    down = rows.clamp(0, height - 1)[:, None, :, None].expand(count, channels, height, width)
    right = columns.clamp(0, width - 1)[:, None, None, :].expand(count, channels, height, width)
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return torch.where(inside, x.gather(2, down).gather(3, right), fill)


def _rotate(x: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """Rotate x [K, ch, H, W] counter-clockwise by `degrees` int64 [K]; `fill` for positions outside the image.

    Values between pixels come from the cubic spline through the pixels. The image is mirrored at its outermost pixels.
    """
    count, channels, height, width = x.shape
    angle = torch.deg2rad(degrees.to(x.dtype))[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    from_centre = []
    for (_, side), (_, other) in zip(_sides(x), reversed(_sides(x)), strict=True):
        # scipy's rotated image has another side, `whole`. The offset of the middle that is cut out of it is rounded
        # down, so the middle is half a pixel off the centre where one side is odd and the other even.
        whole = (side * cos + other * sin.abs() + 0.5).floor()
        from_centre.append(torch.arange(side, device=x.device) + ((whole - side) / 2).floor() - (whole - 1) / 2)
    down, right = from_centre[0].transpose(1, 2), from_centre[1]  # [K, H, 1], [K, 1, W]
    row = (cos * down + sin * right + (height - 1) / 2).flatten(1)  # [K, H * W]
    column = (cos * right - sin * down + (width - 1) / 2).flatten(1)
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)

    # An image [H, W] equals B_H c B_W^T, where c are its spline coefficients and B is `_spline_samples`.
    to_rows, to_columns = (_spline_coefficients(side, x.dtype, x.device) for _, side in _sides(x))
    coefficients = (to_rows @ x @ to_columns.mT).flatten(2)  # [K, ch, H * W]
    rotated = torch.zeros_like(coefficients)
    for i, row_weight in zip(*_taps(row, height), strict=True):
        for j, column_weight in zip(*_taps(column, width), strict=True):
            taken = coefficients.gather(2, (i * width + j)[:, None].expand_as(coefficients))
            rotated += (row_weight * column_weight)[:, None] * taken
    return torch.where(inside[:, None], rotated, fill).view(count, channels, height, width)


def _taps(position: Tensor, side: int) -> tuple[list[Tensor], list[Tensor]]:
    """The indices and weights of the four coefficients along an axis that give a cubic spline's value at `position`."""
    first = position.floor()
    t = position - first
    weights = [
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3) / 6,
        t**3 / 6,
    ]
    return [_mirrored(first.long() + step, side) for step in (-1, 0, 1, 2)], weights


@lru_cache(maxsize=64)
def _spline_coefficients(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The inverse of `_spline_samples`, computed in float64 and kept on the device."""
    return torch.linalg.inv(_spline_samples(side)).to(dtype).to(device)


def _spline_samples(side: int) -> Tensor:
    """The matrix B, float64 [side, side], that maps the spline coefficients along an axis to pixel values.

    B[i, j] is the value at pixel i of the spline whose j-th coefficient is 1 and whose other coefficients are 0.
    """
    samples = torch.zeros(side, side, dtype=torch.float64)
    pixels = torch.arange(side)
    for step, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        samples.index_put_(
            (pixels, _mirrored(pixels + step, side)), torch.tensor(weight, dtype=torch.float64), accumulate=True
        )
    return samples


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Reflect `index` at the centres of the first and last pixels: ... 2 1 0 1 2 ... side-2 side-1 side-2 ..."""
    period = max(2 * (side - 1), 1)
    index = index % period
    return torch.minimum(index, period - index) if side > 1 else torch.zeros_like(index)


def _sides(x: Tensor) -> list[tuple[int, int]]:
    """(0, H), (1, W): the axes of images [..., H, W] and their lengths."""
    return list(enumerate(x.shape[2:]))
