"""Files in the formats of the authors' scripts, written here as those scripts write them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from common.datasets import load_dataset
from common.synset.synset import SynSet


def synthetic(
    num_classes: int = 2, channels: int = 1, im_size: tuple[int, ...] = (8, 8), k: int = 16, ipc: int = 1, seed: int = 0
) -> SynSet:
    """A set started from random images; no two of its classes keep the same positions."""
    synset = SynSet(
        SimpleNamespace(
            channel=channels, num_classes=num_classes, im_size=im_size, device="cpu", ipc=ipc, msz_per_channel=k,
            lr_freq=1.0, mom_freq=0.5,
        )
    )  # fmt: skip
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(synset.num_per_class)
    images = torch.randn(len(labels), channels, *im_size, generator=draws)
    synset.init(images, labels, [torch.where(labels == c)[0] for c in range(num_classes)])
    return synset


def started_from_digits():
    """A set of 4 images of 16 coefficients in each of 10 classes, whose pixels go beyond 0..1."""
    train, _ = load_dataset("digits")
    synset = synthetic(10, 1, (8, 8), 16)
    synset.init(train, train.labels, train.class_indices)
    return synset


def transposed(images: Tensor) -> Tensor:
    """The same images as the authors' transform leaves them: a view of a transposed storage, which is what is saved."""
    view = images.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not view.is_contiguous()
    return view


def numpy_labels(labels: Tensor) -> Tensor:
    """Made from a list of numpy arrays of floats, as the authors make theirs."""
    return torch.tensor(np.stack([np.array(float(c)) for c in labels.tolist()]), dtype=torch.long)


def write_pair(folder: Path, images: Tensor, labels: Tensor, prefix: str = "", suffix: str = "best") -> Path:
    """Trajectory matching's files, `images_<suffix>.pt` and `labels_<suffix>.pt`, under a prefix as on the Drive."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(transposed(images), folder / f"{prefix}images_{suffix}.pt")
    torch.save(numpy_labels(labels), folder / f"{prefix}labels_{suffix}.pt")
    return folder / f"{prefix}images_{suffix}.pt"


def write_results(
    path: Path, *experiments: tuple[Tensor, Tensor], vico: bool = False, accuracies: object = None
) -> Path:
    """DC's and DM's res_*.pt: of FreD, or with `vico` of its ancestor; accuracies as numpy's numbers."""
    pairs = [(transposed(images), numpy_labels(labels)) for images, labels in experiments]
    torch.save({"data": [list(pair) if vico else [pair] for pair in pairs], "accs_all_exps": accuracies or {}}, path)
    return path
