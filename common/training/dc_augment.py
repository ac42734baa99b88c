"""DC's augmentation of evaluation networks where DSA is off (Zhao, Mopuri, Bilen, ICLR 2021), batched on the device.

Each image gets one of the named operations, drawn uniformly. Facts from the authors' utils.py (augment, get_daparam):
    crop    the image shifted by -4 to 3 pixels along each axis; the channel's mean comes in
    scale   height and width resized by factors in [0.8, 1.2), nearest pixel; zeros around it, or its middle cut out
    rotate  by a whole number of degrees from -45 to 44 about the centre; the mean comes in
    noise   x + 0.001 z, z standard normal
Means are those of the batch before any operation: of each channel for crop, of all channels for rotate.

The authors handle one image after another in scipy. Here the images of one operation are handled together, with the
same pixels as a result: `rotate` is scipy.ndimage.rotate with its default, a cubic spline, and the middle of its image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.matching.augment import parse_strategy
from common.system.errors import InputError

STRATEGIES = ("crop", "scale", "rotate", "noise")

_CROP_PIXELS = 4
_SCALE_RATIO = 0.2
_ROTATE_DEGREES = 45
_NOISE = 0.001


@dataclass(frozen=True, eq=False)
class DCParams:
    """One drawn operation for each of `count` images [count, *shape]. Operations that no image drew are not listed."""

    count: int
    shape: tuple[int, ...]  # (ch, H, W)
    # Operation -> (int64 [K] numbers of its images, their parameters [K, ...]; see the functions below).
    operations: dict[str, tuple[Tensor, Tensor]]


def strategy_for(dataset: str, network: str) -> str:
    """What the authors augment with when a network is evaluated without DSA: '' for most datasets and networks."""
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
    """Draw an operation for each of `count` images [ch, H, W] = `shape` from a CPU generator.

    The draws do not depend on the device.
    Raises InputError for an unknown strategy and for images that are not two-dimensional (no strategy takes any size).
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
        operations[name] = (rows.to(device, non_blocking=True), values.to(device, non_blocking=True))
    return DCParams(count, tuple(shape), operations)


def apply(images: Tensor, params: DCParams) -> Tensor:
    """Augmented images [B, ch, H, W]; same shape, dtype and device. No strategy is the identity for any shape.

    Raises ValueError for images that the parameters were not drawn for, and for types other than float32 and float64.
    """
    if not params.operations:
        return images
    if tuple(images.shape) != (params.count, *params.shape):
        raise ValueError(f"{params.count} images {list(params.shape)} were drawn for, given {list(images.shape)}.")
    if images.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"DC's augmentation works in float32 and float64, not in {images.dtype}.")
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
    """x [K, ch, H, W] read `shifts` int64 [K, 2] pixels further down and right."""
    rows, columns = (torch.arange(side, device=x.device) + shifts[:, axis, None] for axis, side in _sides(x))
    return _read(x, rows, columns, mean)


def _scale(x: Tensor, sizes: Tensor) -> Tensor:
    """x [K, ch, H, W] resized to `sizes` int64 [K, 2], in the middle of zeros or with its edges cut off."""
    # The authors lay the resized image into the middle of a square canvas and cut the middle out of that. Where what
    # is left over is odd, both middles round, each by itself: hence two halves, not half of the difference.
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
    """The pixels of x [K, ch, H, W] at rows [K, H] and columns [K, W], `fill` outside."""
    count, channels, height, width = x.shape
    down = rows.clamp(0, height - 1)[:, None, :, None].expand(count, channels, height, width)
    right = columns.clamp(0, width - 1)[:, None, None, :].expand(count, channels, height, width)
    inside_rows, inside_columns = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    return torch.where(inside, x.gather(2, down).gather(3, right), fill)


def _rotate(x: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """x [K, ch, H, W] rotated counter-clockwise by `degrees` int64 [K]; `fill` where the image has no pixels.

    The value at a position is that of the cubic spline through the pixels, mirrored at the outermost ones.
    """
    count, channels, height, width = x.shape
    angle = torch.deg2rad(degrees.to(x.dtype))[:, None, None]
    cos, sin = angle.cos(), angle.sin()
    from_centre = []
    for (_, side), (_, other) in zip(_sides(x), reversed(_sides(x)), strict=True):
        # The rotated image has a side of its own, and the middle that is cut out of it rounds down: half a pixel off
        # the centre where the two sides differ in parity.
        whole = (side * cos + other * sin.abs() + 0.5).floor()
        from_centre.append(torch.arange(side, device=x.device) + ((whole - side) / 2).floor() - (whole - 1) / 2)
    down, right = from_centre[0].transpose(1, 2), from_centre[1]  # [K, H, 1], [K, 1, W]
    row = (cos * down + sin * right + (height - 1) / 2).flatten(1)  # [K, H * W]
    column = (cos * right - sin * down + (width - 1) / 2).flatten(1)
    inside = (row >= 0) & (row <= height - 1) & (column >= 0) & (column <= width - 1)

    # An image [H, W] is B_H c B_W^T for its spline coefficients c.
    to_rows, to_columns = (torch.linalg.inv(_spline_samples(side)).to(x) for _, side in _sides(x))
    coefficients = (to_rows @ x @ to_columns.mT).flatten(2)  # [K, ch, H * W]
    rotated = torch.zeros_like(coefficients)
    for i, row_weight in zip(*_taps(row, height), strict=True):
        for j, column_weight in zip(*_taps(column, width), strict=True):
            taken = coefficients.gather(2, (i * width + j)[:, None].expand_as(coefficients))
            rotated += (row_weight * column_weight)[:, None] * taken
    return torch.where(inside[:, None], rotated, fill).view(count, channels, height, width)


def _taps(position: Tensor, side: int) -> tuple[list[Tensor], list[Tensor]]:
    """The four pixels that a cubic spline at `position` reads along an axis, and their weights: lists of tensors."""
    first = position.floor()
    t = position - first
    weights = [
        (1 - t) ** 3 / 6,
        (4 - 6 * t**2 + 3 * t**3) / 6,
        (4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3) / 6,
        t**3 / 6,
    ]
    return [_mirrored(first.long() + step, side) for step in (-1, 0, 1, 2)], weights


def _spline_samples(side: int) -> Tensor:
    """B float64 [side, side], B[i, j] the value at pixel i of the spline whose j-th coefficient is 1, the others 0."""
    samples = torch.zeros(side, side, dtype=torch.float64)
    pixels = torch.arange(side)
    for step, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        samples.index_put_(
            (pixels, _mirrored(pixels + step, side)), torch.tensor(weight, dtype=torch.float64), accumulate=True
        )
    return samples


def _mirrored(index: Tensor, side: int) -> Tensor:
    """`index` reflected at the centres of the first and the last pixel: ... 2 1 0 1 2 ... side-2 side-1 side-2 ..."""
    period = max(2 * (side - 1), 1)
    index = index % period
    return torch.minimum(index, period - index) if side > 1 else torch.zeros_like(index)


def _sides(x: Tensor) -> list[tuple[int, int]]:
    """(0, H), (1, W): the axes of images [..., H, W] and their lengths."""
    return list(enumerate(x.shape[2:]))
