"""`ImageData`: one split of a dataset, stored in the precision of its source and normalised batch by batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from common.images.mapped import PartCheck
from common.images.pixels import Decoding, Resize, fingerprint
from common.system.devices import total_memory
from common.system.errors import InputError
from common.system.text import told_apart

if TYPE_CHECKING:
    from common.images.whitening import Whitening

_KEPT_SHARE = 1 / 16  # of an accelerator's memory, for the images of a split that are kept normalised there
_NORMALISED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""images -> (mean, std) -> the same images normalised, or None: once for a dataset and all its subsets"""


def kept_normalised(values: int, device: torch.device) -> int:
    """The bytes that a split of so many pixel values takes once more on this device, where it is kept normalised."""
    total = None if device.type == "cpu" else total_memory(device)
    return 4 * values if total is not None and 4 * values <= _KEPT_SHARE * total else 0


# In shapes: N images in the split, B images in a batch, C classes, ch channels; (H, W) or (D, H, W): an image's sides.


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images, with the statistics that turn them into a network's input.

    8-bit images stay uint8, which takes a quarter of the memory of float32 (150 MB instead of 614 for CIFAR-10);
    `batch` gathers and normalises the images of one batch. Raises `InputError` if `mean` or `std` does not fit the
    images, and `ValueError` if the labels or the whitening do not fit the images.
    """

    images: Tensor
    """`[N, ch, H, W]` or `[N, ch, D, H, W]`: uint8 in 0..255, or float32 in 0..1 if the source is not 8-bit.

    A `subset` keeps all images of the whole, of which `rows` names its own N.
    """
    labels: Tensor
    """int64 `[N]`, in 0..C-1, on the device of `images`."""
    mean: tuple[float, ...]
    """The mean of each channel, for pixels in 0..1."""
    std: tuple[float, ...]
    """The standard deviation of each channel, for pixels in 0..1."""
    class_names: tuple[str, ...]
    """The names of the C classes, in the order of the labels."""
    name: str
    """The dataset's name, with which `load_dataset` loads these images again."""
    whitening: Whitening | None = None
    """The ZCA whitening that has been applied to `images`, or None for raw images.

    Whitened images are float32, and their `mean` is 0 and their `std` 1, so they are not normalised again.
    """
    raw_fingerprint: str | None = None
    """The `fingerprint` if it is known already: from a cache, or computed before the images were whitened."""
    check: PartCheck | None = None
    """Checks `images` when they are first used, if they are mapped from a file; None if they were checked when read."""
    rows: Tensor | None = None
    """Of a subset, int64 `[N]`: which of `images` are its own; None for all of them."""

    def __post_init__(self) -> None:
        own = self.images if self.rows is None else self.rows
        if self.labels.shape != own.shape[:1]:
            raise ValueError(f"{len(own)} images do not go with labels of shape {tuple(self.labels.shape)}")
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
        """The number of classes, C."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """The number of channels, ch."""
        return self.images.shape[1]

    @property
    def im_size(self) -> tuple[int, ...]:
        """The sides of an image: `(H, W)` or `(D, H, W)`."""
        return tuple(self.images.shape[2:])

    @property
    def device(self) -> torch.device:
        """The device of the images, on which batches are made."""
        return self.images.device

    @cached_property
    def class_indices(self) -> list[Tensor]:
        """For each of the C classes, the ascending indices of its images, as an int64 tensor on the data's device."""
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return list(torch.argsort(self.labels, stable=True).split(counts.tolist()))

    @property
    def smallest_class(self) -> int:
        """The number of images of the smallest class."""
        return min(map(len, self.class_indices))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the raw images, which depends on their pixels alone and not on their files.

        That of a subset is made from the rows and from the hash of all images. Raises ValueError for whitened images
        whose `raw_fingerprint` is not known.
        """
        return self._whole_fingerprint if self.rows is None else fingerprint(self.rows, self._whole_fingerprint)

    @cached_property
    def _whole_fingerprint(self) -> str:
        if self.raw_fingerprint is not None:
            return self.raw_fingerprint
        if self.whitening is not None:
            raise ValueError("The raw images have been whitened: their fingerprint has to be taken before.")
        return fingerprint(self.images)

    @cached_property
    def _mean_std(self) -> tuple[Tensor, Tensor]:
        # Kept on the device, so that a batch does not wait for two copies from the host.
        shape = (self.channels, *[1] * len(self.im_size))
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=self.device).view(shape) for v in (self.mean, self.std)
        )
        return mean, std

    def batch(self, indices: Tensor | slice) -> Tensor:
        """The network's input for `indices`, on the data's device: int64 `[B]` gives float32 `[B, ch, H, W]`.

        Indices may have any shape (`[C, n]` gives `[C, n, ch, H, W]`) and be on any device. A slice selects images
        without copying them first, unless this is a subset. The result may be a view, which is not to be changed.
        """
        if isinstance(indices, Tensor):
            indices = indices.to(self.device, non_blocking=True)
        if self.rows is not None:
            indices = self.rows[indices]
        if self.check is not None:
            self.check.check(indices)
        if self.whitening is not None:
            return self.images[indices]
        kept = self._normalised
        return self.normalise(self.images[indices]) if kept is None else kept[indices]

    @property
    def _normalised(self) -> Tensor | None:
        """All `images` normalised, on an accelerator with room for them: each batch is then one operation, not five.

        None where there is no room, and on a CPU, which would read four times as much memory.
        """
        if self.device.type in ("cpu", "meta"):
            return None
        kept = _NORMALISED.setdefault(self.images, {})
        statistics = (self.mean, self.std)
        if statistics not in kept:
            fits = kept_normalised(self.images.numel(), self.device) > 0
            kept[statistics] = self.normalise(self.images) if fits else None
        return kept[statistics]

    def normalise(self, images: Tensor) -> Tensor:
        """`(images - mean) / std` for raw images `[..., ch, H, W]`: uint8 in 0..255, or floating point in 0..1.

        The result is bit for bit that of torchvision's ToTensor and Normalize. If the dataset has a `whitening`, the
        raw images are whitened instead. Do not pass the images in `images` then, because these are already whitened.
        """
        if self.whitening is not None:
            return self.whitening.apply(images)
        mean, std = (value.to(images.device) for value in self._mean_std)
        if images.dtype == torch.uint8:
            return images.to(torch.float32).div_(255).sub_(mean).div_(std)
        return (images - mean).div_(std)

    def denormalise(self, images: Tensor, clamp: bool = True) -> Tensor:
        """Turn normalised images `[..., ch, H, W]` back into pixels, to show them as pictures.

        clamp: limit the pixels to 0..1. Without it, those of synthetic images go beyond.
        """
        if self.whitening is not None:
            pixels = self.whitening.invert(images)
        else:
            mean, std = (value.to(images.device) for value in self._mean_std)
            pixels = images * std + mean
        return pixels.clamp(0, 1) if clamp else pixels

    def to(self, device: torch.device | str) -> ImageData:
        """The same data on `device`; returns this object if the images are already on it."""
        images = self.images.to(device)
        if images is self.images:
            return self
        self.check_all()
        # The fingerprint, if it has been computed, is not computed again from the copy.
        known = self.__dict__.get("_whole_fingerprint", self.raw_fingerprint)
        rows = None if self.rows is None else self.rows.to(device)
        return replace(self, images=images, labels=self.labels.to(device), raw_fingerprint=known, check=None, rows=rows)

    def subset(self, indices: Tensor) -> ImageData:
        """The images at `indices`, int64 `[M]`, in this order, with all classes. No image is copied."""
        indices = indices.to(self.device)
        known = self.__dict__.get("_whole_fingerprint", self.raw_fingerprint)
        rows = indices if self.rows is None else self.rows[indices]
        return replace(self, labels=self.labels[indices], raw_fingerprint=known, rows=rows)

    def same_images(self, part: ImageData) -> ImageData:
        """The images of `part`, a subset of these data or of a copy on another device, or all of them."""
        return self if part.rows is None else self.subset(part.rows)

    def check_all(self) -> None:
        """Check all images that have not been checked yet; raises InputError for those that are damaged."""
        if self.check is not None:
            self.check.check(slice(None))


def content_of(train: ImageData, test: ImageData) -> dict[str, Any]:
    """Identify what a dataset contains, as JSON values, whatever its name and wherever its files are.

    "fingerprint" is a hash of the raw images and the labels of both splits. "class_names" and the numbers of images,
    "train" and "test", are there so that `different_content` can say what differs.
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
    """Describe in words how the content of a dataset `there` differs from that `here`; "" if it does not differ."""
    told = []
    if there["class_names"] != here["class_names"]:
        were, are = there["class_names"], here["class_names"]
        told.append(f"the classes were {', '.join(told_apart(were, are))} and are {', '.join(told_apart(are, were))}")
    for split, name in (("train", "training"), ("test", "test")):
        if there[split] != here[split]:
            told.append(f"there were {there[split]} {name} images and are {here[split]}")
    if not told and there["fingerprint"] != here["fingerprint"]:
        told.append("as many images, but with other pixels or labels")
    return ", ".join(told)


def same_classes(here: Sequence[str], there: Sequence[str]) -> dict[str, str] | None:
    """For each name of a class here the name of that class there; None if they are other classes.

    Names are the same if their letters and digits are: "T-shirt/top" cannot be the name of a folder, "T-shirt_top" can.
    """
    if set(here) == set(there):
        return {name: name for name in here}
    known = {_letters_and_digits(name): name for name in there}
    same = {name: known.get(_letters_and_digits(name), "") for name in here}
    one_to_one = len(known) == len(set(same.values()) & set(there)) == len(here) == len(there)
    return same if one_to_one else None


def with_classes(data: ImageData, same: Mapping[str, str], order: Sequence[str]) -> ImageData:
    """The same images, with their classes called as `same` says, in this order."""
    label = torch.tensor([order.index(same[name]) for name in data.class_names], device=data.labels.device)
    return replace(data, labels=label[data.labels], class_names=tuple(order))


def _letters_and_digits(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())) or name


@dataclass(frozen=True)
class Request:
    """The arguments of `load_dataset` for the loaders; a loader ignores those that do not concern it."""

    data_path: Path
    download: bool
    resize: Resize | None
    """How images become squares; None keeps the stored size, unless the loader has a default size."""
    decoding: Decoding | None
    """How image files become pixels; None leaves the choice to the loader."""
    skip_corrupt: bool
    workers: int | None
    progress: bool
    map_above: int | None
    """Decoded images that take more bytes are mapped from a file. None: a third of this machine's memory."""


def refuse_alike(data: ImageData, what: str, remedy: str = "") -> None:
    """Raise `InputError` if all of `data` are one and the same image: nothing tells its classes apart.

    what: what the images are called ("training images"). remedy: what else may help.
    """
    first = data.images[0]
    if len(data) == 1 or not all(torch.equal(image, first) for image in data.images[1:]):  # stops where one differs
        return
    constant = bool((first == first.flatten()[0]).all())
    raise InputError(
        f"all {len(data)} {what} of {data.name} are alike{' and of one colour' * constant}, so nothing tells their "
        f"classes apart: replace them{remedy}"
    )


Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""The mean of each channel and the standard deviation of each channel, for pixels in 0..1."""

Loader = Callable[[Request], tuple[ImageData, ImageData]]
"""Returns the training split and the test split, in this order."""


def with_statistics(data: ImageData, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageData:
    """A copy of `data` with another mean, std or both; None keeps the old one.

    Raises `InputError` unless there is one value per channel.
    """
    return replace(
        data,
        mean=data.mean if mean is None else tuple(map(float, mean)),
        std=data.std if std is None else tuple(map(float, std)),
    )
