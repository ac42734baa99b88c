"""The sizes at which our code and the authors' are compared, and random images in these shapes.

Speed does not depend on what images show.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from common.datasets import ImageData


@dataclass(frozen=True)
class Size:
    """The shapes of all cases at one image size.

    dm, dc, tm: (ipc, k) of the synthetic set: images of budget per class, and coefficients kept per channel.
    """

    side: int
    depth: int
    width: int
    dm: tuple[int, int]
    dc: tuple[int, int]
    tm: tuple[int, int]
    per_class: int
    """real training images per class"""
    syn_steps: int
    """steps of the student in an update of TM"""
    published_steps: int
    """the same in the published run, whose updates would take minutes here"""
    expert_images: int
    """images of the part of an expert's epoch"""
    test_images: int
    classes: int = 10
    batch_real: int = 256
    """real images per class in an update of DM or DC, and images per batch of an augmentation"""
    batch_train: int = 256
    evaluation_epochs: int = 1
    """the option of the evaluations; they train one epoch more"""

    @property
    def model(self) -> str:
        return f"ConvNetD{self.depth}W{self.width}"

    @property
    def im_size(self) -> tuple[int, int]:
        return self.side, self.side

    @property
    def middle(self) -> tuple[int, int]:
        """Channels and side of the input of the network's middle convolution."""
        return (self.width if self.depth > 1 else 3), self.side // 2 ** (self.depth // 2)

    def per_class_synthetic(self, budget: tuple[int, int]) -> int:
        """n, the synthetic images per class that a budget (ipc, k) gives."""
        ipc, k = budget
        return ipc * self.side**2 // k


# CIFAR-10 and the network of the published runs: DM and DC at ipc 2, TM at ipc 1.
SMALL = Size(
    side=32, depth=3, width=128, dm=(2, 64), dc=(2, 32), tm=(1, 64),
    per_class=5000, syn_steps=2, published_steps=50, expert_images=1024, test_images=1000,
)  # fmt: skip
# An ImageNet subset at ipc 1, with a quarter of the published network's width.
LARGE = Size(
    side=128, depth=5, width=32, dm=(1, 2048), dc=(1, 2048), tm=(1, 2048),
    per_class=300, syn_steps=2, published_steps=20, expert_images=1024, test_images=500,
)  # fmt: skip


@lru_cache
def training_images(size: Size, device: torch.device) -> ImageData:
    """Random bytes as the training set: uint8 [C * per_class, 3, side, side], grouped by class."""
    return random_images(size, size.classes * size.per_class, device)


def random_images(size: Size, count: int, device: torch.device) -> ImageData:
    """`count` images of random bytes, as evenly spread over the classes as possible, and grouped by class."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size.im_size), dtype=torch.uint8, generator=draws)
    labels = (torch.arange(count) * size.classes // count).clamp(max=size.classes - 1)
    half, names = (0.5, 0.5, 0.5), tuple(map(str, range(size.classes)))
    return ImageData(images, labels, half, half, names, "CIFAR10").to(device)
