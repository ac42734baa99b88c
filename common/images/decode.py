"""Decodes image files, or encoded images from the bytes of a table, to uint8 arrays, in several threads."""

from __future__ import annotations

import io
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from common.images.pixels import Resize
from common.system.errors import InputError

CHUNK = 128  # the number of images that a thread decodes at a time: 6 MB at 128 px

# Threads, not processes, because Pillow decodes without holding the interpreter's lock. 9,500 images of 128 px took
# 3.8 s with two threads, 4.6 s with one thread, and 5.8 s with two processes, most of which was spent on starting the
# processes. Threads also copy nothing between each other, and do not need the calling script to be importable. For
# small images, however, most of the time is spent holding the lock, so many threads block each other: 20,000 images of
# 32 px took 2.7 s with two threads, 3.3 s with one, and 5 s with sixteen.
SMALL_IMAGE = 128 * 128  # pixels
SMALL_IMAGE_WORKERS = 2
MOST_WORKERS = 16

GRAY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F")  # 16-bit and floating-point modes, which Pillow would silently clip to 8 bits

Size = tuple[int, int]  # width, height


class Encoded(NamedTuple):
    """The content of an image file, and the name that messages use for it."""

    content: bytes
    name: str


Source = str | Encoded  # the path of an image file, or content that has already been read


class Unreadable(InputError):
    """An image file is truncated, damaged, or not an image."""


class First(NamedTuple):
    """The first readable image, with whose size the sizes of the others are compared."""

    name: str
    size: Size  # as stored in the file
    shape: tuple[int, int, int]  # ch, H, W after decoding


class Chunk(NamedTuple):
    """The decoded images of a range of rows, and the rows that could not be read."""

    images: np.ndarray  # uint8 [B, ch, H, W], where B is the number of readable rows
    rows: range
    unreadable: list[int]  # the rows in this range whose images could not be read


# What Pillow's readers raise for broken files. OSError also covers files that are not images.
_UNREADABLE = (OSError, SyntaxError, EOFError, LookupError, ValueError, TypeError, OverflowError, struct.error)


def read_image(source: Source, resize: Resize | None) -> tuple[np.ndarray, Size]:
    """Decode one image to uint8 `[ch, H, W]`; returns it with its stored size (width, height).

    ch is 1 for a grayscale image and 3 otherwise. Raises `Unreadable`, which names the source, if the source is
    truncated or not an image, and `InputError` if it has more than 8 bits per channel.
    """
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, str) else io.BytesIO(source.content)) as stored:
            size = stored.size
            if stored.mode.startswith(DEEP_MODES):
                raise InputError(f"{name_of(source)} has more than 8 bits per channel: convert it, or remove it")
            image = stored.convert("L" if stored.mode in GRAY_MODES else "RGB")
    except InputError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise Unreadable(
            f"{name_of(source)} cannot be read as an image ({error}): replace it, remove it, or give --skip_corrupt"
        ) from error
    return (_pixels(image) if resize is None else resized(image, resize)), size


def resized(image: Any, resize: Resize) -> np.ndarray:
    """Resize a grayscale or RGB Pillow image to a square, uint8 `[ch, side, side]`, with torchvision's arithmetic.

    "crop" scales the shorter side to `side` and takes the centre square; "squash" scales both sides to `side`. Both
    enlarge smaller images. The interpolation is bilinear. With antialiasing, it is Pillow's. Without, it is what
    torchvision 0.12 did with the tensors in the authors' code, except that this result is rounded to 8 bits.
    """
    from PIL import Image

    side = resize.side
    width, height = image.size
    if resize.mode == "squash":
        scaled = (side, side)
    elif width <= height:
        scaled = (side, side * height // width)
    else:
        scaled = (side * width // height, side)
    if resize.antialias and scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    pixels = _pixels(image)
    if not resize.antialias:
        pixels = _interpolated(pixels, *scaled)
    left, top = (round((length - side) / 2) for length in scaled)
    return np.ascontiguousarray(pixels[:, top : top + side, left : left + side])


def _interpolated(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Interpolate uint8 `[ch, H, W]` to uint8 `[ch, height, width]`: bilinear without antialiasing.

    Pixels are squares whose values lie at their centres.
    """
    # In numpy, because every call of torch would start more threads in each of the decoding threads.
    rows = _between(pixels.astype(np.float32), 1, height)
    return np.rint(_between(rows, 2, width)).astype(np.uint8)


def _between(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Interpolate linearly along an axis, at the centres of `length` equal parts; the end values extend outwards."""
    old = values.shape[axis]
    if old == length:
        return values
    at = ((np.arange(length, dtype=np.float32) + 0.5) * np.float32(old / length) - 0.5).clip(0)
    below = np.minimum(at.astype(np.int64), old - 1)
    above = np.minimum(below + 1, old - 1)
    share = (at - below).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1 - axis))
    return values.take(below, axis) * (1 - share) + values.take(above, axis) * share


def _pixels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def read_first(sources: Sequence[Source], resize: Resize | None, skip: bool) -> First:
    """Read the first image or, with `skip`, the first image that can be read.

    Raises the same errors as `read_image`.
    """
    for row in range(len(sources)):
        source = sources[row]
        try:
            pixels, size = read_image(source, resize)
        except Unreadable:
            if not skip or row == len(sources) - 1:
                raise
        else:
            return First(name_of(source), size, pixels.shape)
    raise ValueError("there is no image to read")


def read_chunk(rows: range, sources: Sequence[Source], resize: Resize | None, first: First, skip: bool) -> Chunk:
    """Decode the images of some rows; without `resize`, all of them must have the same size as `first`.

    Raises `InputError`, which names both images, if a size differs, and the same errors as `read_image`. With `skip`,
    unreadable images are left out instead of raising `Unreadable`.
    """
    images, unreadable = [], []
    for row, source in zip(rows, sources[rows.start : rows.stop], strict=True):
        try:
            pixels, size = read_image(source, resize)
        except Unreadable:
            if not skip:
                raise
            unreadable.append(row)
            continue
        if resize is None and size != first.size:
            raise InputError(
                f"all images must have the same size, but {first.name} is {_times(first.size)} and {name_of(source)} "
                f"is {_times(size)} pixels: give --image_size to scale and crop them"
            )
        images.append(pixels)
    channels = max((len(pixels) for pixels in images), default=1)
    decoded = np.empty((len(images), channels, *first.shape[1:]), np.uint8)
    for place, pixels in zip(decoded, images, strict=True):
        place[:] = pixels  # a grayscale image fills all three channels
    return Chunk(decoded, rows, unreadable)


def decode(
    sources: Sequence[Source], rows: range, resize: Resize | None, first: First, workers: int | None, skip: bool
) -> Iterator[Chunk]:
    """Decode the images of `rows` in order, CHUNK images at a time; ch of a chunk is 1 if all its images are grayscale.

    `workers` threads share the work; None chooses the number by CPU cores and image size. The threads slice `sources`
    one chunk at a time. So a sequence that fetches its bytes when it is sliced is never in memory as a whole, and
    neither are the decoded images. Raises the same errors as `read_chunk`.
    """
    read = partial(read_chunk, sources=sources, resize=resize, first=first, skip=skip)
    threads = workers or _default_workers(first.size)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pending: deque[Future[Chunk]] = deque()
    try:
        for start in range(rows.start, rows.stop, CHUNK):
            pending.append(pool.submit(read, range(start, min(start + CHUNK, rows.stop))))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _default_workers(size: Size) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS if size[0] * size[1] > SMALL_IMAGE else SMALL_IMAGE_WORKERS)


def _times(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def name_of(source: Source) -> str:
    """The name that messages use for an image: its path, or the name of its `Encoded` content."""
    return source if isinstance(source, str) else source.name
