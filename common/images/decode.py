"""Decodes image files, or encoded images from the bytes of a table, to uint8 arrays, in several threads."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from common.images.encoded import Size, Source, Unreadable, name_of, read_image
from common.images.pixels import Decoding, Resize
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


class First(NamedTuple):
    """The first readable image, with whose size the sizes of the others are compared."""

    name: str
    size: Size  # before resizing
    shape: tuple[int, int, int]  # ch, H, W after decoding


class Chunk(NamedTuple):
    """The decoded images of a range of rows, and the rows that could not be read."""

    images: np.ndarray  # uint8 [B, ch, H, W], where B is the number of readable rows
    rows: range
    unreadable: list[int]  # the rows in this range whose images could not be read
    remarks: Counter[str]  # how many of the images each remark is about


def read_first(sources: Sequence[Source], resize: Resize | None, decoding: Decoding, skip: bool) -> First:
    """Read the first image or, with `skip`, the first image that can be read.

    Raises the same errors as `read_image`.
    """
    for row in range(len(sources)):
        source = sources[row]
        try:
            picture = read_image(source, resize, decoding)
        except Unreadable:
            if not skip or row == len(sources) - 1:
                raise
        else:
            return First(name_of(source), picture.size, picture.pixels.shape)
    raise ValueError("there is no image to read")


def read_chunk(
    rows: range, sources: Sequence[Source], resize: Resize | None, decoding: Decoding, first: First, skip: bool
) -> Chunk:
    """Decode the images of some rows; without `resize`, all of them must have the same size as `first`.

    Raises `InputError`, which names both images, if a size differs, and the same errors as `read_image`. With `skip`,
    unreadable images are left out instead of raising `Unreadable`.
    """
    images, unreadable, remarks = [], [], Counter[str]()
    for row, source in zip(rows, sources[rows.start : rows.stop], strict=True):
        try:
            pixels, size, of_image = read_image(source, resize, decoding)
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
        remarks.update(of_image)
    channels = max((len(pixels) for pixels in images), default=1)
    decoded = np.empty((len(images), channels, *first.shape[1:]), np.uint8)
    for place, pixels in zip(decoded, images, strict=True):
        place[:] = pixels  # a grayscale image fills all three channels
    return Chunk(decoded, rows, unreadable, remarks)


def decode(
    sources: Sequence[Source],
    rows: range,
    resize: Resize | None,
    decoding: Decoding,
    first: First,
    workers: int | None,
    skip: bool,
) -> Iterator[Chunk]:
    """Decode the images of `rows` in order, CHUNK images at a time; ch of a chunk is 1 if all its images are grayscale.

    `workers` threads share the work; None chooses the number by CPU cores and image size. The threads slice `sources`
    one chunk at a time. So a sequence that fetches its bytes when it is sliced is never in memory as a whole, and
    neither are the decoded images. Raises the same errors as `read_chunk`.
    """
    read = partial(read_chunk, sources=sources, resize=resize, decoding=decoding, first=first, skip=skip)
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
