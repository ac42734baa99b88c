"""Images that the tests of several modules make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets import ImageData
from common.images import decode


def make_data(counts: tuple[int, ...] = (5, 9, 3), channels: int = 3) -> ImageData:
    """Random 4x6 images, `counts[c]` of class c, in shuffled order."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    images = torch.randint(0, 256, (len(labels), channels, 4, 6), dtype=torch.uint8, generator=rng)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    return ImageData(images, labels, mean, std, tuple(f"class {c}" for c in range(len(counts))), "made up")


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, a start that does not find its images in the cache folder fails."""

    def fail(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(decode, "read_image", fail)


def make_folder(
    folder: Path,
    names: tuple[str, ...] = ("cat", "dog"),
    size: tuple[int, int] = (12, 12),
    count: int = 3,
    seed: int = 0,
    mode: str = "RGB",
    prefix: str = "",
) -> Path:
    """A tree of PNGs whose classes differ in brightness. prefix: what the names of files begin with."""
    draws = np.random.default_rng(seed)
    for split in ("train", "test"):
        for number, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draws.integers(0, 60, (*size, 3)) + 120 * number
                image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
                image.save(folder / split / name / f"{prefix}{index}.png")
    return folder


def write_idx(file: Path, array: np.ndarray) -> None:
    """An array in the format of MNIST's files."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def make_idx_set(root: Path, name: str = "MNIST") -> tuple[Path, dict[str, np.ndarray]]:
    """The four files of MNIST or FashionMNIST: 30 training and 20 test images, of each class in turn."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28))
        arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(count) % 10
    for file, array in arrays.items():
        write_idx(raw / file, array)
    return raw, arrays


class Recorded:
    """Images [N, ...] handed out by slices; `asked` has the number of images in each."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images, self.asked = images, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        self.asked.append(len(self.images[rows]))
        return self.images[rows]
