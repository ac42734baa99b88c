"""Random real images of every class, all classes in one draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.images.image_data import ImageData
from common.system.errors import InputError


class ClassSampler:
    """Draws the same number of images from each of C classes, without a loop over the classes.

    Takes the data itself or the index tensor of each class. Raises `InputError` if a class is empty.
    """

    def __init__(self, data: ImageData | Sequence[Tensor]) -> None:
        class_indices = data.class_indices if isinstance(data, ImageData) else data
        self.names = data.class_names if isinstance(data, ImageData) else tuple(map(str, range(len(data))))
        self.device = class_indices[0].device
        # On the CPU, as the generators are: every device gets the same draws, and only the result is copied to it.
        self.counts = torch.tensor([len(indices) for indices in class_indices])  # [C]
        for name, count in zip(self.names, self.counts.tolist(), strict=True):
            if count == 0:
                raise InputError(f"class {name!r} has no images: add some, or take the class out")
        self.indices = torch.nn.utils.rnn.pad_sequence([indices.cpu() for indices in class_indices], batch_first=True)
        self.padding = (torch.arange(self.indices.shape[1]) >= self.counts[:, None]).numpy()  # [C, max count]

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices of `n` random images of each class: int64 `[C, n]` on the data's device.

        No image comes twice in a class that has `n`. A class with fewer gives all of its images in random order, over
        and over until there are `n`: some images then come once more often than others, none is left out.
        `generator` is a CPU generator; the global random state is neither read nor advanced. Raises `ValueError`
        unless `n` is positive.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        # The images with the smallest of independent random keys are a random subset, in random order, padding last.
        keys = torch.rand(self.indices.shape, generator=generator).numpy()
        # numpy, which takes 0.4 ms for 256 of 5000 images in each of 10 classes: torch.topk takes 0.9 ms, and on busy
        # cores torch's threads wait up to 8 ms for each other.
        np.copyto(keys, np.inf, where=self.padding)
        if n < keys.shape[1]:
            subset = np.argpartition(keys, n - 1, axis=1)[:, :n]
            order = np.take_along_axis(subset, np.take_along_axis(keys, subset, axis=1).argsort(axis=1), axis=1)
        else:
            order = keys.argsort(axis=1)
        columns = torch.arange(n) % self.counts[:, None]  # [C, n], counts up and starts again where images run out
        drawn = self.indices.gather(1, torch.from_numpy(order).gather(1, columns))
        return drawn.to(self.device, non_blocking=True)


class Gathered:
    """The normalised images of `data` at `indices` [N], made when a slice of them is asked for.

    All at once 256 images of each of 200 classes at 64 pixels would take 2.5 GB.
    """

    def __init__(self, data: ImageData, indices: Tensor) -> None:
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice) -> Tensor:
        """float32 [B, ch, *im_size]."""
        return self.data.batch(self.indices[rows])


def draw_per_class(data: ImageData | Sequence[Tensor], n: int, generator: torch.Generator) -> Tensor:
    """Indices of `n` different random images of each class, int64 `[C, n]` on the data's device.

    Takes the data or the index tensor of each class; `generator` is a CPU generator. Raises `InputError` that names
    the class if one has fewer than `n` images.
    """
    sampler = ClassSampler(data)
    for name, count in zip(sampler.names, sampler.counts.tolist(), strict=True):
        if count < n:
            raise InputError(
                f"class {name!r} has {count} images, but {n} of each class are needed: "
                "lower --ipc, raise --msz_per_channel, or add images to the class"
            )
    return sampler.draw(n, generator)
