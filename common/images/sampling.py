"""Draws random real images of every class, for all classes at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.images.image_data import ImageData
from common.system.devices import to_device
from common.system.errors import InputError
from common.system.seeds import generator
from common.system.text import counted


class ClassSampler:
    """Draws the same number of images from each of C classes, without a loop over the classes.

    data: a dataset, or one index tensor for each class. Raises `InputError` if a class is empty.
    """

    def __init__(self, data: ImageData | Sequence[Tensor]) -> None:
        class_indices = data.class_indices if isinstance(data, ImageData) else data
        self.names = data.class_names if isinstance(data, ImageData) else tuple(map(str, range(len(data))))
        self.device = class_indices[0].device
        # On the CPU like the generators, so that the draws are the same for every device; only the result is copied.
        self.counts = torch.tensor([len(indices) for indices in class_indices])  # [C]
        for name, count in zip(self.names, self.counts.tolist(), strict=True):
            if count == 0:
                raise InputError(f"class {name!r} has no images: add some, or take the class out")
        self.indices = torch.nn.utils.rnn.pad_sequence([indices.cpu() for indices in class_indices], batch_first=True)
        self.padding = (torch.arange(self.indices.shape[1]) >= self.counts[:, None]).numpy()  # [C, max count]

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices of `n` random images of each class: int64 `[C, n]` on the data's device.

        A class with at least `n` images gives `n` different images. A smaller class repeats all of its images, in the
        same random order, until there are `n`. So none of its images is left out, and their counts differ by at most
        one. `generator` is a CPU generator; the global random state is neither read nor advanced. Raises `ValueError`
        unless `n` is positive.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        # Every image gets a random key. The images with the n smallest keys, sorted by key, are a random subset in
        # random order. The keys of the padding are infinite, so the padding comes last.
        keys = torch.rand(self.indices.shape, generator=generator).numpy()
        # numpy takes 0.4 ms for 256 of 5000 images in each of 10 classes. torch.topk takes 0.9 ms, and on busy cores
        # the threads of torch wait for each other for up to 8 ms.
        np.copyto(keys, np.inf, where=self.padding)
        if n < keys.shape[1]:
            subset = np.argpartition(keys, n - 1, axis=1)[:, :n]
            order = np.take_along_axis(subset, np.take_along_axis(keys, subset, axis=1).argsort(axis=1), axis=1)
        else:
            order = keys.argsort(axis=1)
        columns = torch.arange(n) % self.counts[:, None]  # [C, n]; starts again at 0 after the last image of a class
        drawn = self.indices.gather(1, torch.from_numpy(order).gather(1, columns))
        return to_device(drawn, self.device)


class Gathered:
    """The normalised images of `data` at `indices` [N]; only slicing this object makes the images of the slice.

    Together, 256 images of each of 200 classes at 64 pixels would take 2.5 GB.
    """

    def __init__(self, data: ImageData, indices: Tensor) -> None:
        self.data, self.indices = data, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice) -> Tensor:
        """The normalised images of the slice, float32 [B, ch, *im_size]."""
        return self.data.batch(self.indices[rows])


def hold_back(data: ImageData, share: float, seed: int) -> tuple[ImageData, ImageData]:
    """Split a dataset into (the rest, what is held back), which share its images and are ordered as they are.

    share: of each class, as a fraction; rounded, at least one image, and at least one remains. seed: with it, the class
    and its number of images decide which. Raises `InputError`, which names the class, for one of fewer than 2 images.
    """
    held = torch.zeros(len(data), dtype=torch.bool)
    for label, rows in enumerate(data.class_indices):
        if len(rows) < 2:
            raise InputError(
                f"class {data.class_names[label]!r} has {counted(len(rows), 'training image')}, of which none can be "
                "held back: add some, or give --validation_share 0"
            )
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        drawn = torch.randperm(len(rows), generator=generator(seed, "validation", label))[:count]
        held[rows.cpu()[drawn]] = True
    return data.subset((~held).nonzero().flatten()), data.subset(held.nonzero().flatten())


def draw_per_class(data: ImageData | Sequence[Tensor], n: int, generator: torch.Generator) -> Tensor:
    """Indices of `n` different random images of each class, int64 `[C, n]` on the data's device.

    data: a dataset, or one index tensor for each class. generator: a CPU generator. Raises `InputError`, which names
    the class, if a class has fewer than `n` images.
    """
    sampler = ClassSampler(data)
    for name, count in zip(sampler.names, sampler.counts.tolist(), strict=True):
        if count < n:
            raise InputError(
                f"class {name!r} has {counted(count, 'image')}, but {n} of each class are needed: "
                "lower --ipc, raise --msz_per_channel, or add images to the class"
            )
    return sampler.draw(n, generator)
