"""Encoded images (files, or bytes out of a table) to one uint8 tensor, several at once."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError

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

# What Pillow's readers raise for broken files; OSError also covers what is not an image at all.
_UNREADABLE = (OSError, SyntaxError, EOFError, LookupError, ValueError, TypeError, OverflowError, struct.error)


def read_image(source: Source, image_size: int | None) -> tuple[np.ndarray, Size]:
    """Decode one image: uint8 `[ch, H, W]` with ch = 1 for a grayscale one and 3 otherwise, and its size as stored.

    `image_size` scales the shorter side to it (bilinear, antialiased) and crops the centre square, with torchvision's
    rounding. Raises `InputError` that names the source if it is truncated, not an image, or deeper than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, str) else io.BytesIO(source.content)) as stored:
            size = stored.size
            if stored.mode.startswith(DEEP_MODES):
                raise InputError(f"{_name(source)} has more than 8 bits a channel: convert it to 8 bits, or remove it")
            image = stored.convert("L" if stored.mode in GRAY_MODES else "RGB")
    except InputError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise InputError(f"{_name(source)} cannot be read as an image ({error}): replace it, or remove it") from error
    if image_size is not None:
        image = resize_and_crop(image, image_size)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)), size


def resize_and_crop(image: Any, side: int) -> Any:
    """The centre square of a Pillow image, `side` pixels wide, after scaling its shorter side to `side`."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    if short != side:
        scaled = (side, side * height // width) if width == short else (side * width // height, side)
        image = image.resize(scaled, Image.Resampling.BILINEAR)  # Pillow always antialiases
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))


def read_chunk(start: int, sources: Sequence[Source], image_size: int | None, first: tuple[str, Size]) -> np.ndarray:
    """Decode CHUNK images from `start` on: uint8 `[B, ch, H, W]`; without `image_size` all must be as large as `first`.

    Raises `InputError` as `read_image` does, and one that names both images if two sizes differ.
    """
    images = []
    for source in sources[start : start + CHUNK]:
        pixels, size = read_image(source, image_size)
        if image_size is None and size != first[1]:
            raise InputError(
                f"all images must have the same size, but {first[0]} is {_times(first[1])} and {_name(source)} is "
                f"{_times(size)} pixels: give --image_size to scale and crop them"
            )
        images.append(pixels)
    channels = max(len(pixels) for pixels in images)
    return np.stack([np.broadcast_to(pixels, (channels, *pixels.shape[1:])) for pixels in images])


def decode(sources: Sequence[Source], image_size: int | None, workers: int | None, progress: bool, name: str) -> Tensor:
    """Decode all images to uint8 `[N, ch, H, W]`, in their order: ch is 1 if all are grayscale, else 3.

    `workers` threads share the work, None chooses by CPU cores and image size; they slice `sources` as they go, so a
    sequence that fetches its bytes when sliced is never in memory as a whole. `name` is said beside the progress bar.
    Raises `InputError` as `read_chunk` does.
    """
    from tqdm import tqdm

    pixels, size = read_image(sources[0], image_size)
    images = torch.empty(len(sources), *pixels.shape, dtype=torch.uint8)
    read = partial(read_chunk, sources=sources, image_size=image_size, first=(_name(sources[0]), size))
    starts = range(0, len(sources), CHUNK)
    with tqdm(total=len(sources), desc=f"reading {name}", unit="image", disable=not progress, leave=False) as bar:
        for start, chunk in _each(read, starts, workers or _default_workers(size)):
            if chunk.shape[1] > images.shape[1]:  # the first one in colour
                images = images.expand(-1, chunk.shape[1], -1, -1).clone()
            images[start : start + len(chunk)] = torch.from_numpy(chunk)  # one channel fills three
            bar.update(len(chunk))
    return images


def _each(read: partial[np.ndarray], starts: Sequence[int], threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """`read` of every start, with it, in the order in which they are done."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        pending = {pool.submit(read, start): start for start in starts}
        for future in as_completed(list(pending)):
            yield pending.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _default_workers(size: Size) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS if size[0] * size[1] > SMALL_IMAGE else SMALL_IMAGE_WORKERS)


def _times(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _name(source: Source) -> str:
    return source if isinstance(source, str) else source.name
