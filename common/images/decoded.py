"""Decodes the images of a dataset at the first start, and reads them from the user's cache folder at later starts."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.images import disk_cache
from common.images.decode import First, decode, read_first
from common.images.disk_cache import Stored
from common.images.encoded import Source, Unreadable, describe_remarks, name_of, read_image
from common.images.image_data import Request, Statistics
from common.images.mapped import PartCheck
from common.images.pixels import Decoding, check_side, fingerprint
from common.system.errors import InputError
from common.system.progress import Progress

MAPPED_SHARE = 1 / 3  # of this machine's memory; decoded images that take more are mapped from their cache file


class Decoded(NamedTuple):
    """Two splits (images uint8 `[N, ch, H, W]`, labels int64 `[N]`), and mean and std of the training images."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    statistics: Statistics
    fingerprints: tuple[str, str]
    """`pixels.fingerprint` of the training and the test images"""
    checks: tuple[PartCheck | None, PartCheck | None]
    """of the training and the test images, if they are mapped from the cache"""
    remarks: dict[str, int]
    """how many images of both splits each remark of `encoded` is about"""


def check_request(request: Request) -> None:
    """Raises `InputError` if the image size or the number of threads is out of range."""
    if request.resize is not None:
        check_side(request.resize.side)
    if request.workers is not None and request.workers < 1:
        raise InputError(f"workers, the number of threads that read images, must be at least 1, not {request.workers}")


def decode_once(
    sources: Sequence[Source],
    labels: tuple[Tensor, Tensor],
    class_names: Sequence[str],
    cache: Path,
    key: str,
    request: Request,
    decoding: Decoding,
    name: str,
    colour: bool = False,
) -> Decoded:
    """Decode the training and the test images, or read them from the cache file if it is up to date.

    sources: first the training images, then the test images.
    labels: the labels of the training images and those of the test images.
    cache: the cache file. It is out of date if it was written with another `key`.
    name: the dataset's name, for the progress bar and for messages.
    colour: whether ch is always 3. Otherwise, ch is 1 if all images are grayscale and 3 if any is not.

    Images that together take more than `request.map_above` bytes are never in memory as a whole: they are written to
    the cache file while they are decoded, and the returned tensors are views of that file.
    Raises `InputError` if an image differs in size from the others, if an image is damaged and `request.skip_corrupt`
    is off, or if no image of a class can be read.
    """
    map_above = _memory() * MAPPED_SHARE if request.map_above is None else request.map_above
    stored = disk_cache.read(cache, key, int(map_above))
    if stored is None:
        first = read_first(sources, request.resize, decoding, request.skip_corrupt)
        start = partial(_Reading, sources, len(labels[0]), request, decoding, first, name)
        try:
            stored = start(3 if colour else first.shape[0]).keep(cache, key, int(map_above))
        except _Colour:  # the grayscale images before it have to be decoded again, with three channels
            stored = start(3).keep(cache, key, int(map_above))
    images_of, metadata = stored
    left = _left(sources, images_of.get("unreadable"), request, decoding, name)
    if remarks := describe_remarks(metadata["remarks"], len(sources), name, decoding):
        logging.getLogger(__name__).warning("%s", remarks)
    splits = []
    for split, given, kept in zip(("train", "test"), labels, left.split([len(part) for part in labels]), strict=True):
        if emptied := sorted(set(given.tolist()) - set(given[kept].tolist())):
            raise InputError(f"none of the {split} images of the class {class_names[emptied[0]]} in {name} can be read")
        splits.append((images_of[split], given[kept]))
    mean, std = map(tuple, metadata["statistics"])
    known = metadata["fingerprints"]
    checks = [
        PartCheck(images_of[split], images_of[f"{disk_cache.VERIFY}{split}"], cache)
        if f"{disk_cache.VERIFY}{split}" in images_of
        else None
        for split in ("train", "test")
    ]
    fingerprints = (known["train"], known["test"])
    return Decoded(splits[0], splits[1], (mean, std), fingerprints, (checks[0], checks[1]), metadata["remarks"])


def _left(
    sources: Sequence[Source], unreadable: Tensor | None, request: Request, decoding: Decoding, name: str
) -> Tensor:
    """A mask of the sources that could be read, bool `[N]`.

    If some could not be read, warns how many they are; or, without `request.skip_corrupt`, raises an `InputError` for
    the first of them.
    """
    if unreadable is None:
        return torch.ones(len(sources), dtype=torch.bool)
    first = sources[int(unreadable.argmax())]
    if not request.skip_corrupt:
        read_image(first, request.resize, decoding)
        raise InputError(f"{name_of(first)} could not be read before: change its time (touch) to try it again")
    logging.getLogger(__name__).warning(
        "%d of the %d images of %s cannot be read and are left out, the first is %s",
        int(unreadable.sum()), len(sources), name, name_of(first),
    )  # fmt: skip
    return unreadable == 0


class _Colour(Exception):
    """An image has colour, although the first image is grayscale."""


class _Reading:
    """One pass that decodes all sources, counts their pixel values and notes which sources are unreadable."""

    def __init__(
        self,
        sources: Sequence[Source],
        train: int,
        request: Request,
        decoding: Decoding,
        first: First,
        name: str,
        channels: int,
    ) -> None:
        self.sources, self.request, self.decoding, self.first = sources, request, decoding, first
        self.name, self.channels = name, channels
        self.rows = {"test": range(train, len(sources)), "train": range(train)}
        self.counts = torch.zeros(channels, 256, dtype=torch.int64)
        self.unreadable: list[int] = []
        self.remarks: Counter[str] = Counter()

    def keep(self, cache: Path, key: str, map_above: int) -> Stored:
        """Decode all images and write them to the cache file; more than `map_above` bytes are mapped from that file."""
        size = len(self.sources) * self.channels * self.first.shape[1] * self.first.shape[2]
        bar = Progress(
            total=len(self.sources),
            desc=f"reading {self.name}",
            unit="image",
            disable=not self.request.progress,
            leave=False,
        )
        with bar:
            # In the order of the names, as the file's checksum requires. The mask is known only after the last image,
            # and its name sorts last.
            parts = {split: self._images(split, bar) for split in ("test", "train")} | {"unreadable": self._mask()}
            if size > map_above:
                return self._keep_mapped(cache, key, parts, size)
            tensors = {}
            for part, pieces in parts.items():
                if (rows := _gathered(pieces, len(self.rows.get(part, self.sources)))) is not None:
                    tensors[part] = rows
        details = self._details(tensors)
        disk_cache.write(cache, key, tensors, details)
        return tensors, details

    def _keep_mapped(self, cache: Path, key: str, parts: dict[str, Iterator[np.ndarray]], size: int) -> Stored:
        try:
            return disk_cache.write_in_pieces(cache, key, parts, self._details, size)
        except Unreadable:
            raise
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise InputError(
                f"decoded, the images of {self.name} take {size / 1e9:.1f} GB, too much to be kept in memory, and "
                f"{error}: FRED_CACHE names the folder"
            ) from error

    def _images(self, split: str, bar: Progress) -> Iterator[np.ndarray]:
        rows, request, kept = self.rows[split], self.request, 0
        for chunk in decode(
            self.sources, rows, request.resize, self.decoding, self.first, request.workers, request.skip_corrupt
        ):
            bar.update(len(chunk.rows))
            self.unreadable += chunk.unreadable
            self.remarks += chunk.remarks
            images = chunk.images
            if not len(images):
                continue
            if images.shape[1] > self.channels:
                raise _Colour
            kept += len(images)
            if images.shape[1] < self.channels:  # all images of this chunk are grayscale
                images = images.repeat(self.channels, axis=1)
            if split == "train":
                self.counts += count_values(torch.from_numpy(images))
            yield images
        if not kept:
            raise InputError(f"none of the {len(rows)} {split} images of {self.name} can be read")

    def _mask(self) -> Iterator[np.ndarray]:
        """Yield one uint8 mask `[N]` with 1 for each unreadable source, or nothing if all sources could be read.

        To be consumed after all images.
        """
        if self.unreadable:
            mask = np.zeros(len(self.sources), np.uint8)
            mask[self.unreadable] = 1
            yield mask

    def _details(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return {
            "statistics": channel_statistics(self.counts),
            "remarks": dict(self.remarks),
            "fingerprints": {split: fingerprint(tensors[split]) for split in self.rows},
        }


def _gathered(pieces: Iterator[np.ndarray], rows: int) -> Tensor | None:
    """Join pieces to one tensor of at most `rows` rows; None if there are no pieces."""
    whole, filled = None, 0
    for piece in pieces:
        if whole is None:
            whole = torch.empty(rows, *piece.shape[1:], dtype=torch.uint8)
        whole[filled : filled + len(piece)].numpy()[:] = piece
        filled += len(piece)
    return None if whole is None else whole[:filled]


def count_values(images: Tensor) -> Tensor:
    """How often each of the 256 values occurs in each channel of uint8 images `[N, ch, H, W]`: int64 `[ch, 256]`."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def channel_statistics(counts: Tensor) -> Statistics:
    """The mean and std of each channel, in 0..1, from `count_values`; the std of a constant channel is 1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in counts:
        # The counts of the values give exact results, and no image has to be converted to floating point.
        share = channel / channel.sum().item()
        mean = (share.double() * values).sum()
        std = (share.double() * (values - mean) ** 2).sum().sqrt()
        means.append(mean.item())
        stds.append(std.item() or 1.0)
    return tuple(means), tuple(stds)


def _memory() -> int:
    """The memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
