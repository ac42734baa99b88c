"""scikit-learn's handwritten digits: 1797 images of 8x8 pixels that come with the package, so nothing is downloaded."""

from __future__ import annotations

from importlib.metadata import version

import torch
from torch import Tensor

from common.images import disk_cache
from common.images.image_data import ImageData, Request, Statistics

# Of the training images; a test computes them again.
STATISTICS: Statistics = ((0.3054,), (0.3760,))

MAX_VALUE = 16  # the source counts the dark ones among 4x4 pixels
TEST_SHARE = 0.2
CLASS_NAMES = tuple(map(str, range(10)))


def load(request: Request) -> tuple[ImageData, ImageData]:
    """1437 training and 360 test images, uint8 `[N, 1, 8, 8]`: a fixed split with every class in proportion.

    They are kept in the cache folder, because importing scikit-learn takes longer than a small run.
    """
    key = f"scikit-learn {version('scikit-learn')}"
    file = disk_cache.named_file("digits", [key])
    stored = disk_cache.read(file, key)
    tensors = _split() if stored is None else stored[0]
    if stored is None:
        disk_cache.write(file, key, tensors, {})
    train, test = (
        ImageData(tensors[f"{split}_images"], tensors[f"{split}_labels"], *STATISTICS, CLASS_NAMES, "digits")
        for split in ("train", "test")
    )
    return train, test


def _split() -> dict[str, Tensor]:
    """Images and labels of both splits, by name."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images * (255 / MAX_VALUE)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(source.target).to(torch.int64)
    splits = train_test_split(range(len(labels)), test_size=TEST_SHARE, stratify=source.target, random_state=0)
    return {
        f"{split}_{name}": values[chosen]
        for split, chosen in zip(("train", "test"), splits, strict=True)
        for name, values in (("images", images), ("labels", labels))
    }
