"""`ImageData`: one split of a dataset in memory, kept in the source's own precision and normalised batch by batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.images.pixels import Resize, fingerprint
from common.system.errors import InputError

if TYPE_CHECKING:
    from common.images.whitening import Whitening

# Shapes: N images in the split, B in a batch, C classes, ch channels, and H W or D H W the image's sides.


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images, and what it takes to turn them into a network's input.

    8-bit images stay uint8, a quarter of the memory of float32 (CIFAR-10: 150 MB, not 614), and `batch` normalises
    what it gathers. Raises `InputError` if `mean` or `std` does not fit the images, `ValueError` if the tensors do
    not fit each other.
    """

    images: Tensor
    """`[N, ch, H, W]` or `[N, ch, D, H, W]`; uint8 in 0..255, or float32 in 0..1 where the source is not 8-bit."""
    labels: Tensor
    """int64 `[N]`, in 0..C-1, on the device of `images`."""
    mean: tuple[float, ...]
    """Mean of each channel, in units of 0..1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, in units of 0..1."""
    class_names: tuple[str, ...]
    """The C names, in the order of the labels."""
    name: str
    """What `load_dataset` accepts to load these images again."""
    whitening: Whitening | None = None
    """The ZCA whitening that `images` (then float32, mean 0, std 1) have been through; None for raw images."""
    raw_fingerprint: str | None = None
    """`fingerprint` where it is known already: kept in a cache, or computed before the images were whitened."""

    def __post_init__(self) -> None:
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"{len(self.images)} images do not go with labels of shape {tuple(self.labels.shape)}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, the {self.num_classes} classes named")
        for option, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise InputError(
                    f"{option} has {len(values)} values, but the images of {self.name} have {self.channels} channels: "
                    "give one value for each channel"
                )
            if not all(math.isfinite(value) for value in values):
                raise InputError(f"{option} must be finite, not {list(values)}")
        if min(self.std) <= 0:
            raise InputError(f"std divides the images, so each value must be above 0, not {list(self.std)}")
        if self.whitening is not None:
            if self.images[0].numel() != len(self.whitening.mean):
                raise ValueError(f"a whitening of {len(self.whitening.mean)} pixels does not go with these images")
            if any(self.mean) or any(value != 1 for value in self.std):
                raise ValueError("whitened images are not normalised again: mean must be 0 and std 1")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """ch."""
        return self.images.shape[1]

    @property
    def im_size(self) -> tuple[int, ...]:
        """`(H, W)` or `(D, H, W)`."""
        return tuple(self.images.shape[2:])

    @property
    def device(self) -> torch.device:
        """Where the images are, and so where batches are made."""
        return self.images.device

    @cached_property
    def class_indices(self) -> list[Tensor]:
        """The indices of each class's images, ascending: C tensors, int64, on the data's device."""
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return list(torch.argsort(self.labels, stable=True).split(counts.tolist()))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the raw images: equal pixels have the same one, wherever their files are.

        Raises ValueError for whitened images whose `raw_fingerprint` is not known.
        """
        if self.raw_fingerprint is not None:
            return self.raw_fingerprint
        if self.whitening is not None:
            raise ValueError("The raw images have been whitened: their fingerprint has to be taken before.")
        return fingerprint(self.images)

    @cached_property
    def _mean_std(self) -> tuple[Tensor, Tensor]:
        # Kept on the device: made anew, each batch would wait for two copies from the host.
        shape = (self.channels, *[1] * len(self.im_size))
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=self.device).view(shape) for v in (self.mean, self.std)
        )
        return mean, std

    def batch(self, indices: Tensor | slice) -> Tensor:
        """The network's input for `indices`, on the data's device: int64 `[B]` gives float32 `[B, ch, H, W]`.

        Indices of any shape do (`[C, n]` gives `[C, n, ch, H, W]`) and from any device; a slice is not gathered at all,
        and of whitened images it is a view.
        """
        if isinstance(indices, Tensor):
            indices = indices.to(self.device, non_blocking=True)
        images = self.images[indices]
        return self.normalise(images) if self.whitening is None else images

    def normalise(self, images: Tensor) -> Tensor:
        """`(images - mean) / std` for raw images `[..., ch, H, W]`: uint8 in 0..255, or floating point in 0..1.

        Rounds as torchvision's ToTensor and Normalize do, so the values are theirs bit for bit. With a `whitening`,
        raw images are whitened instead (those in `images` already are).
        """
        if self.whitening is not None:
            return self.whitening.apply(images)
        mean, std = (value.to(images.device) for value in self._mean_std)
        if images.dtype == torch.uint8:
            return images.to(torch.float32).div_(255).sub_(mean).div_(std)
        return (images - mean).div_(std)

    def denormalise(self, images: Tensor) -> Tensor:
        """The way back, for pictures: normalised `[..., ch, H, W]` to 0..1; what lies outside is clamped."""
        if self.whitening is not None:
            return self.whitening.invert(images).clamp(0, 1)
        mean, std = (value.to(images.device) for value in self._mean_std)
        return (images * std + mean).clamp(0, 1)

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on `device`; itself if it is there already."""
        images = self.images.to(device)
        if images is self.images:
            return self
        # What has been computed of the raw images is not computed again from the copy.
        known = self.__dict__.get("fingerprint", self.raw_fingerprint)
        return replace(self, images=images, labels=self.labels.to(device), raw_fingerprint=known)


def content_of(train: ImageData, test: ImageData) -> dict[str, Any]:
    """What a dataset holds, as JSON values: what tells it from another one of the same name.

    "fingerprint" is a hash of the raw images and the labels of both splits. Beside it are "class_names", "train" and
    "test" (numbers of images), which say in words what differs.
    """
    digest = hashlib.blake2b(digest_size=20)
    for data in (train, test):
        digest.update(data.fingerprint.encode())
        digest.update(data.labels.cpu().contiguous().numpy().data)
    return {
        "fingerprint": digest.hexdigest(),
        "class_names": list(train.class_names),
        "train": len(train),
        "test": len(test),
    }


def different_content(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Describes how one `content_of` differs from another: "" if it does not."""
    told = []
    if there["class_names"] != here["class_names"]:
        told.append(f"the classes were {', '.join(there['class_names'])} and are {', '.join(here['class_names'])}")
    for split, name in (("train", "training"), ("test", "test")):
        if there[split] != here[split]:
            told.append(f"there were {there[split]} {name} images and are {here[split]}")
    if not told and there["fingerprint"] != here["fingerprint"]:
        told.append("as many images, but with other pixels or labels")
    return ", ".join(told)


@dataclass(frozen=True)
class Request:
    """What `load_dataset` was asked for beyond the name; every loader gets one and takes what concerns it."""

    data_path: Path
    download: bool
    resize: Resize | None
    """None: images stay as they are stored"""
    skip_corrupt: bool
    workers: int | None
    progress: bool
    map_above: int | None
    """Bytes of decoded images above which they are mapped from a file; None: a third of this machine's memory."""


Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, in units of 0..1."""

Loader = Callable[[Request], tuple[ImageData, ImageData]]
"""Gives the training and the test split, in this order."""


def with_statistics(data: ImageData, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageData:
    """`data` with another mean or std where one is given; raises `InputError` unless it has a value per channel."""
    return replace(
        data,
        mean=data.mean if mean is None else tuple(map(float, mean)),
        std=data.std if std is None else tuple(map(float, std)),
    )
