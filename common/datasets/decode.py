"""Image files to one uint8 tensor, several at once."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

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

# What Pillow's readers raise for broken files; OSError also covers what is not an image at all.
_UNREADABLE = (OSError, SyntaxError, EOFError, LookupError, ValueError, TypeError, OverflowError, struct.error)


def read_image(file: str, image_size: int | None) -> tuple[np.ndarray, Size]:
    """Decode one file: uint8 `[ch, H, W]` with ch = 1 for a grayscale file and 3 otherwise, and its size on disk.

    `image_size` scales the shorter side to it (bilinear, antialiased) and crops the centre square, with torchvision's
    rounding. Raises `InputError` that names the file if it is truncated, not an image, or deeper than 8 bits.
    """
    from PIL import Image

    try:
        with Image.open(file) as source:
            size = source.size
            if source.mode.startswith(DEEP_MODES):
                raise InputError(f"{file} has more than 8 bits a channel: convert it to 8 bits, or remove it")
            image = source.convert("L" if source.mode in GRAY_MODES else "RGB")
    except InputError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as an image ({error}): replace it, or remove it") from error
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


def read_chunk(files: Sequence[str], image_size: int | None, first: tuple[str, Size]) -> np.ndarray:
    """Decode files to uint8 `[B, ch, H, W]`; without `image_size` each must have the size of the `first` file.

    Raises `InputError` as `read_image` does, and one that names both files if two sizes differ.
    """
    images = []
    for file in files:
        pixels, size = read_image(file, image_size)
        if image_size is None and size != first[1]:
            raise InputError(
                f"all images must have the same size, but {first[0]} is {_times(first[1])} and {file} is "
                f"{_times(size)} pixels: give --image_size to scale and crop them"
            )
        images.append(pixels)
    channels = max(len(pixels) for pixels in images)
    return np.stack([np.broadcast_to(pixels, (channels, *pixels.shape[1:])) for pixels in images])


def decode(files: Sequence[str], image_size: int | None, workers: int | None, progress: bool, name: str) -> Tensor:
    """Decode all files to uint8 `[N, ch, H, W]`, in their order: ch is 1 if all are grayscale, else 3.

    `workers` threads share the work, None chooses by CPU cores and image size. `name` is said beside the progress bar.
    Raises `InputError` as `read_chunk` does.
    """
    from tqdm import tqdm

    pixels, size = read_image(files[0], image_size)
    images = torch.empty(len(files), *pixels.shape, dtype=torch.uint8)
    read = partial(read_chunk, image_size=image_size, first=(files[0], size))
    chunks = {start: files[start : start + CHUNK] for start in range(0, len(files), CHUNK)}
    with tqdm(total=len(files), desc=f"reading {name}", unit="image", disable=not progress, leave=False) as bar:
        for start, chunk in _each(read, chunks, workers or _default_workers(size)):
            if chunk.shape[1] > images.shape[1]:  # the first one in colour
                images = images.expand(-1, chunk.shape[1], -1, -1).clone()
            images[start : start + len(chunk)] = torch.from_numpy(chunk)  # one channel fills three
            bar.update(len(chunk))
    return images


def _each(
    read: partial[np.ndarray], chunks: dict[int, Sequence[str]], threads: int
) -> Iterator[tuple[int, np.ndarray]]:
    """`read` of every chunk, with its key, in the order in which they are done."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        pending = {pool.submit(read, files): start for start, files in chunks.items()}
        for future in as_completed(list(pending)):
            yield pending.pop(future), future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _default_workers(size: Size) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS if size[0] * size[1] > SMALL_IMAGE else SMALL_IMAGE_WORKERS)


def _times(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
