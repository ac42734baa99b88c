"""Images that have to be decoded one by one: done at the first start, read from the user's cache folder at the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.datasets import disk_cache
from common.datasets.decode import Source, decode
from common.datasets.image_data import Request, Statistics
from common.errors import InputError


def check_request(request: Request) -> None:
    """Raises `InputError` for options of decoding that make no sense."""
    if request.image_size is not None and request.image_size < 1:
        raise InputError(f"--image_size must be at least 1, not {request.image_size}")
    if request.workers is not None and request.workers < 1:
        raise InputError(f"workers, the number of threads that read images, must be at least 1, not {request.workers}")


def decode_once(
    sources: Sequence[Source], train: int, cache: Path, key: str, request: Request, name: str
) -> tuple[Tensor, Tensor, Statistics]:
    """The training and the test images, uint8 `[N, ch, H, W]`, and mean and std of the training images.

    The first `train` sources are the training images, the rest the test images; ch is 1 if all are grayscale, else 3.
    `cache` is the file that keeps them, `key` tells when it is out of date; `name` is said beside the progress bar.
    Raises `InputError` for an image that is damaged, or of another size than the rest.
    """
    stored = disk_cache.read(cache, key)
    if stored is None:
        images = decode(sources, request.image_size, request.workers, request.progress, name)
        tensors = {"train": images[:train], "test": images[train:]}
        stored = tensors, {"statistics": measure(tensors["train"])}
        disk_cache.write(cache, key, *stored)
    images_of, facts = stored
    mean, std = map(tuple, facts["statistics"])
    return images_of["train"], images_of["test"], (mean, std)


def measure(images: Tensor) -> Statistics:
    """Mean and std of each channel of uint8 images `[N, ch, H, W]`, in units of 0..1; a constant channel gets std 1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        # From the counts of the 256 values: exact, and no image is copied to floating point.
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        mean = (share.double() * values).sum()
        std = (share.double() * (values - mean) ** 2).sum().sqrt()
        means.append(mean.item())
        stds.append(std.item() or 1.0)
    return tuple(means), tuple(stds)
