"""Real images in a budget of bits per class, in files or as a coded set: `--baseline random --stored_as jpeg`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from common.codec.fit import best_payload
from common.codec.payload import decode
from common.codec.planes import Planes, usual_colour
from common.codec.quantise import fit_step
from common.datasets import ImageData
from common.images.pixels import StoredAs
from common.synset.packed import coded_images
from common.system import parallel
from common.system.errors import InputError
from common.system.progress import Progress
from common.system.text import counted
from common.training.image_codecs import Codec, File, codec_of, decode_all, psnr
from common.training.train import Batches

CODEC_NAMES = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "coded": "a coded set"}

BITS_PER_NUMBER = 0.25  # by default, beyond the lowest quality: 1/128 of float32
_FIRST_PNGS = 16  # images per class that are tried first; twice as many as long as all of them fit

Choose = Callable[[int], Tensor]
"""n -> indices of n images of each class, int64 [C, n], in the order chosen: fewer are the first of more."""


class Budget(NamedTuple):
    """What the files of a class may take: bits, and whether the headers of files count among them."""

    bits: int
    headers: bool = True

    def holds(self, files: Sequence[File]) -> bool:
        """Whether the files fit."""
        return 8 * self.taken(files) <= self.bits

    def taken(self, files: Sequence[File]) -> int:
        """The bytes of the files that count."""
        return sum(file.counted(self.headers) for file in files)

    def first(self, files: Sequence[File]) -> int:
        """How many of the files fit, in their order, up to the first that does not."""
        return sum(8 * taken <= self.bits for taken in accumulate(file.counted(self.headers) for file in files))

    def __str__(self) -> str:
        return f"{self.bits / 8:,.1f} bytes per class".replace(".0 ", " ") + (
            "" if self.headers else " without headers"
        )


class StoredClass(NamedTuple):
    """What is stored of one class. images: uint8 [n, ch, H, W], as they were. quality: None for a lossless codec."""

    images: np.ndarray
    files: list[File]
    quality: int | None


def store_real(
    data: ImageData, choose: Choose, stored_as: StoredAs, budget: Budget, n: int | None
) -> tuple[Batches, dict[str, Any]]:
    """Store real images of each class in the budget; return the decoded images, normalised, and what they take.

    data: whitened images are stored as they were before, and whitened again. n: images per class; None for the
    default, see `default_n`. A lossless codec takes as many as fit. Returned with the images, which are on the device
    of the data: {"codec", "count_headers", "budget_bits", "n", "quality", "bytes", "bytes_without_headers", "psnr"};
    from "n" to "bytes_without_headers" each is a list with a value for each class ("quality" is None for a lossless
    codec), and "psnr" is in dB over all images, None if all are as they were.
    Raises InputError for volumes, for a codec that Pillow lacks, and if the budget is too small.
    """
    if stored_as == "coded":
        return _coded(data, choose, budget, n)
    if len(data.im_size) != 2 or data.channels not in (1, 3):
        raise InputError(
            f"--stored_as {stored_as} is for pictures with one or three channels, and those of {data.name} have the "
            f"shape {(data.channels, *data.im_size)}: leave it out"
        )
    codec = codec_of(stored_as, data.channels)
    classes = _lossy(codec, data, choose, budget, n) if codec.qualities else _lossless(codec, data, choose, budget)
    decoded = decode_all(codec, [file for each in classes for file in each.files], data.channels)
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(each.files) for each in classes]))
    told = {
        "codec": stored_as,
        "count_headers": budget.headers,
        "budget_bits": budget.bits,
        "n": [len(each.files) for each in classes],
        "quality": [each.quality for each in classes] if codec.qualities else None,
        "bytes": [Budget(0).taken(each.files) for each in classes],
        "bytes_without_headers": [Budget(0, headers=False).taken(each.files) for each in classes],
        "psnr": psnr(decoded, np.concatenate([each.images for each in classes])),
    }
    return Batches(data.normalise(torch.from_numpy(decoded).to(data.device)), labels.to(data.device)), told


def default_n(codec: Codec, images: np.ndarray, budget: Budget) -> int:
    """How many images per class leave each BITS_PER_NUMBER more than its file takes in the lowest quality.

    images: some that tell how large files are in the lowest quality, uint8 [m, ch, H, W].
    """
    least = budget.taken([codec.encode(image, codec.qualities.start, budget.headers) for image in images]) / len(images)
    return max(1, int(budget.bits / (8 * least + BITS_PER_NUMBER * images[0].size)))


def largest_that_fits(qualities: range, fits: Callable[[int], bool], guess: int) -> int:
    """A quality that fits while the next one does not, or is the last. The lowest is taken to fit, and not tried.

    guess: where to begin: it is left in growing steps, and what lies between is bisected.
    """
    low, high, probe, step = qualities.start, qualities.stop, guess, 1
    while high - low > 1:
        probe = min(max(probe, low + 1), high - 1)
        if fits(probe):
            low, probe = probe, probe + step
        else:
            high, probe = probe, probe - step
        if low > qualities.start and high < qualities.stop:
            probe = (low + high) // 2
        step *= 4
    return low


def describe_storage(storage: dict[str, Any]) -> str:
    """One line about what `store_real` has stored, for people."""
    quality = "" if storage["quality"] is None else f" of quality {_range(storage['quality'])}"
    budget = Budget(storage["budget_bits"], storage["count_headers"])
    of = "equal to the originals" if storage["psnr"] is None else f"PSNR {storage['psnr']:.2f} dB"
    images = f"real image{'s' * (max(storage['n']) > 1)} per class"
    whole, own = _range(storage["bytes"]), _range(storage["bytes_without_headers"])
    return (
        f"{_range(storage['n'])} {images} as {CODEC_NAMES[storage['codec']]}{quality}: {whole} bytes per class, "
        f"without headers {own}; {of}; the budget is {budget}"
    )


def storage_columns(storage: dict[str, Any] | None) -> dict[str, Any]:
    """What a table says of it: means over the classes, with the budget in bytes per class; {} if there is none."""
    if storage is None:
        return {}
    per_class = ("n", "quality", "bytes", "bytes_without_headers")
    means = {key: None if storage[key] is None else float(np.mean(storage[key])) for key in per_class}
    return {
        "stored_as": storage["codec"],
        "count_headers": storage["count_headers"],
        "budget_bytes": storage["budget_bits"] / 8,
        **means,
        "psnr": storage["psnr"],
    }


def _coded(data: ImageData, choose: Choose, budget: Budget, asked: int | None) -> tuple[Batches, dict[str, Any]]:
    """What `store_real` returns, of n images per class as the start of a coded set, whitened if the data are."""
    smallest, classes = data.smallest_class, data.num_classes
    _check_n(asked, smallest)
    n = asked or min(smallest, coded_images(budget.bits, data.channels, data.im_size))
    chosen = choose(n)
    images = data.batch(chosen.flatten()).unflatten(0, (classes, n))
    planes = Planes(data.channels, data.im_size, usual_colour(data.channels))
    coefficients, bits = planes.forward(images), torch.full((classes,), float(budget.bits), device=data.device)
    found = best_payload(coefficients, planes, classes * budget.bits // 8, bits, fit_step(coefficients, bits))
    if found is None:
        what = f"{counted(n, 'image')} per class, however coarsely rounded,"
        raise InputError(f"{what} take more than {budget}: {_fewer(n, asked)} --ipc or --bits_per_class")
    decoded = planes.inverse(decode(found.payload).coefficients.to(data.device)).flatten(0, 1)
    labels = torch.arange(classes, device=data.device).repeat_interleave(n)
    each = [math.ceil(len(found.payload) / classes)] * classes
    told = {
        "codec": "coded", "count_headers": True, "budget_bits": budget.bits, "n": [n] * classes, "quality": None,
        "bytes": each, "bytes_without_headers": each, "psnr": psnr(_pixels(data, decoded), _originals(data, chosen)),
    }  # fmt: skip
    return Batches(decoded, labels), told


def _fewer(n: int, asked: int | None) -> str:
    """What to do where n images per class are too many; asked: what --n says. Other flags follow."""
    if n == 1:
        return "raise"
    return f"give an --n below {n}, or raise" if asked is None else "lower --n, or raise"


def _check_n(asked: int | None, smallest: int) -> None:
    if asked is not None and asked > smallest:
        raise InputError(f"--n {asked} is more than the {counted(smallest, 'image')} of the smallest class: lower it")


def _lossless(codec: Codec, data: ImageData, choose: Choose, budget: Budget) -> list[StoredClass]:
    """Of each class the images in the order chosen, up to the first that the budget has no room for."""
    smallest = data.smallest_class
    known: dict[int, File] = {}  # by the index of the image
    n, kept = min(_FIRST_PNGS, smallest), 0
    while True:
        chosen = choose(n).cpu()
        classes = []
        with Progress(
            total=len(chosen), desc=f"{n} as {codec.name}", unit="class", disable=not parallel.is_main()
        ) as bar:
            for name, indices in zip(data.class_names, chosen, strict=True):
                images = _originals(data, indices)
                for index, image in zip(indices.tolist(), images, strict=True):
                    if index not in known:
                        known[index] = codec.encode(image, None, budget.headers)
                files = [known[index] for index in indices.tolist()]
                kept = budget.first(files)
                if kept == 0:
                    _refuse(f"the first image of class {name!r} takes", files[:1], codec, budget, "raise")
                classes.append(StoredClass(images[:kept], files[:kept], None))
                bar.update()
        if n == smallest or all(len(each.files) < n for each in classes):
            return classes
        n = min(2 * n, smallest)


def _lossy(codec: Codec, data: ImageData, choose: Choose, budget: Budget, asked: int | None) -> list[StoredClass]:
    """Of each class n images in the best quality that fits."""
    smallest = data.smallest_class
    _check_n(asked, smallest)
    firsts = torch.stack([indices[0] for indices in data.class_indices])
    n = asked or min(smallest, default_n(codec, _originals(data, firsts), budget))
    images = [_originals(data, indices) for indices in choose(n).cpu()]
    lowest, guess = codec.qualities.start, codec.qualities[len(codec.qualities) // 2]
    coarse: list[list[File]] = []
    classes: list[StoredClass] = []
    with _bar(2 * len(images), codec) as bar:  # each class is looked at in the lowest quality, then in better ones
        for of_class in images:
            coarse.append([codec.encode(image, lowest, budget.headers) for image in of_class])
            bar.update()
        if asked is None:
            n = max(1, min(map(budget.first, coarse)))
        for name, files in zip(data.class_names, coarse, strict=True):
            if not budget.holds(files[:n]):
                what = f"{counted(n, 'image')} of class {name!r} in quality {lowest} take{'s' * (n == 1)}"
                _refuse(what, files[:n], codec, budget, _fewer(n, asked))
        for of_class, files in zip(images, coarse, strict=True):
            found = {lowest: files[:n]}

            def fits(quality: int, of_class: np.ndarray = of_class[:n], found: dict[int, list[File]] = found) -> bool:
                found[quality] = [codec.encode(image, quality, budget.headers) for image in of_class]
                return budget.holds(found[quality])

            guess = largest_that_fits(codec.qualities, fits, guess)  # classes are much alike
            classes.append(StoredClass(of_class[:n], found[guess], guess))
            bar.update()
    return classes


def _originals(data: ImageData, indices: Tensor) -> np.ndarray:
    """Images as they were before normalisation or whitening, uint8 [n, ch, H, W]. float32 loses far less than 1/255."""
    return _pixels(data, data.batch(indices.flatten()))


def _pixels(data: ImageData, images: Tensor) -> np.ndarray:
    """Normalised or whitened images as uint8 [n, ch, *im_size]."""
    pixels: np.ndarray = data.denormalise(images).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    return pixels


def _bar(classes: int, codec: Codec) -> Progress:
    return Progress(total=classes, desc=f"store as {codec.name}", unit="class", disable=not parallel.is_main())


def _refuse(what: str, files: Sequence[File], codec: Codec, budget: Budget, remedy: str) -> NoReturn:
    raise InputError(
        f"{what} {budget.taken(files):,} bytes as {codec.name}, and the budget is {budget}: "
        f"{remedy} --ipc or --bits_per_class"
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
