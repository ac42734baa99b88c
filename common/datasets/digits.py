"""scikit-learn's handwritten digits: 1797 images of 8x8 pixels that come with the package, so nothing is downloaded."""

from __future__ import annotations

import torch

from common.images.image_data import ImageData, Request, Statistics

# Of the training images; a test computes them again.
STATISTICS: Statistics = ((0.3054,), (0.3760,))

MAX_VALUE = 16  # the source counts the dark ones among 4x4 pixels
TEST_SHARE = 0.2


def load(request: Request) -> tuple[ImageData, ImageData]:
    """1437 training and 360 test images, uint8 `[N, 1, 8, 8]`: a fixed split with every class in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images * (255 / MAX_VALUE)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(source.target).to(torch.int64)
    splits = train_test_split(range(len(labels)), test_size=TEST_SHARE, stratify=source.target, random_state=0)
    class_names = tuple(map(str, source.target_names))
    train, test = (ImageData(images[chosen], labels[chosen], *STATISTICS, class_names, "digits") for chosen in splits)
    return train, test
