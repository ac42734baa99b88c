"""Encoded images (files, or bytes out of a table) to uint8 arrays, several at once, all through one function."""

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

CHUNK = 128  # images that a thread decodes at a time: 6 MB at 128 px

# Threads, not processes: Pillow decodes outside the interpreter's lock. For 9,500 images of 128 px two threads took
# 3.8 s, one 4.6 s, and two processes 5.8 s, most of it to start them; nothing has to be copied between them, and the
# calling script need not be importable. But of a small image the lock takes the larger part, and there many threads
# are in each other's way: 20,000 images of 32 px took 2.7 s with two threads, 3.3 s with one, 5 s with sixteen.
SMALL_IMAGE = 128 * 128  # pixels
SMALL_IMAGE_WORKERS = 2
MOST_WORKERS = 16

GRAY_MODES = ("1", "L", "LA", "La")
DEEP_MODES = ("I", "F")  # 16-bit and floating point, which Pillow would clip to 8 bits without a word

Size = tuple[int, int]  # width, height


class Encoded(NamedTuple):
    """An image file's content, and what messages call it."""

    content: bytes
    name: str


Source = str | Encoded  # a path, or what was read already


class Unreadable(InputError):
    """A file that is truncated, damaged, or no image."""


class First(NamedTuple):
    """The image that the others are compared with."""

    name: str
    size: Size
    shape: tuple[int, int, int]  # as decoded: ch, H, W


class Chunk(NamedTuple):
    """Decoded images, and which ones of a range could not be read."""

    images: np.ndarray  # uint8 [B, ch, H, W]
    rows: range
    unreadable: list[int]  # of these rows; B is smaller by as many


# What Pillow's readers raise for broken files; OSError also covers what is not an image at all.
_UNREADABLE = (OSError, SyntaxError, EOFError, LookupError, ValueError, TypeError, OverflowError, struct.error)


def read_image(source: Source, resize: Resize | None) -> tuple[np.ndarray, Size]:
    """Decode one image: uint8 `[ch, H, W]` with ch = 1 for a grayscale one and 3 otherwise, and its size as stored.

    Raises `Unreadable` that names the source if it is truncated or not an image, `InputError` if it is deeper than 8
    bits.
    """
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, str) else io.BytesIO(source.content)) as stored:
            size = stored.size
            if stored.mode.startswith(DEEP_MODES):
                raise InputError(f"{name_of(source)} has more than 8 bits a channel: convert it, or remove it")
            image = stored.convert("L" if stored.mode in GRAY_MODES else "RGB")
    except InputError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise Unreadable(
            f"{name_of(source)} cannot be read as an image ({error}): replace it, remove it, or give --skip_corrupt"
        ) from error
    return (_pixels(image) if resize is None else resized(image, resize)), size


def resized(image: Any, resize: Resize) -> np.ndarray:
    """A Pillow image, gray or RGB, as a square: uint8 `[ch, side, side]`, by torchvision's arithmetic.

    "crop" scales the shorter side and takes the centre square, "squash" scales both sides; both enlarge what is too
    small. Bilinear: antialiased as Pillow does it; without antialiasing as torchvision 0.12 did it with the tensors of
    the authors' code, from which the result then differs only in that it is rounded to 8 bits.
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
    """Bilinear without antialiasing: uint8 `[ch, H, W]` to uint8 `[ch, height, width]`, pixels being squares."""
    # Not by torch, each of whose calls would start threads of its own in each of the decoding threads.
    rows = _between(pixels.astype(np.float32), 1, height)
    return np.rint(_between(rows, 2, width)).astype(np.uint8)


def _between(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Interpolate linearly along an axis at the centres of `length` equal parts; beyond the ends the ends go on."""
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
    """The first image, with `skip` the first one that can be read. Raises as `read_image` does."""
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
    """Decode the images of some rows; without `resize` all must be as large as `first`.

    Raises as `read_image` does, but with `skip` leaves unreadable images out; and `InputError` that names both images
    if two sizes differ.
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
        place[:] = pixels  # one channel fills three
    return Chunk(decoded, rows, unreadable)


def decode(
    sources: Sequence[Source], rows: range, resize: Resize | None, first: First, workers: int | None, skip: bool
) -> Iterator[Chunk]:
    """Decode the images of `rows` in their order, CHUNK at a time; ch of a chunk is 1 if all of its images are gray.

    `workers` threads share the work, None chooses by CPU cores and image size; they slice `sources` as they go, so a
    sequence that fetches its bytes when sliced is never in memory as a whole, and neither are the decoded images.
    Raises `InputError` as `read_chunk` does.
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
    """What messages call an image."""
    return source if isinstance(source, str) else source.name
