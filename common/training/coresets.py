"""Baselines that train on a few real images per class instead of a synthetic set.

`random_real` draws the images at random. `herding` and `k_center` build coresets: they greedily choose the images that
represent each class best. Both compare features [N, F] of the N training images, which a network trained on the whole
training set computes (F features per image), and handle all classes at once. These are the baselines of Zhao, Mopuri
and Bilen (ICLR 2021), table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from common.config.options import EvaluationOptions
from common.datasets import ImageData, draw_per_class
from common.networks import Network, reinitialise
from common.system.errors import InputError
from common.system.progress import Progress
from common.system.seeds import derive, generator, seeded
from common.system.text import counted
from common.training.train import (
    MOMENTUM,
    WEIGHT_DECAY,
    Batches,
    EvaluationProtocol,
    all_finite,
    batches_of_test,
    test_rows,
    train_epoch,
)

Rule = Callable[[Tensor, Sequence[Tensor], int], Tensor]


def herding(features: Tensor, class_indices: Sequence[Tensor], ipc: int) -> Tensor:
    """Choose ipc images per class whose mean feature is close to the mean of the class (Welling, ICML 2009).

    The choice is greedy: each further image is the one that brings the mean of the chosen images closest to the mean
    of the class.
    features: [N, F]. class_indices: for each of the C classes, the indices of its images. Returns indices [C, ipc].
    Raises InputError for a class with fewer than ipc images.
    """
    rows, there, indices = _by_class(features, class_indices, ipc)
    centre = _mean(rows, there)  # [C, F]
    total = torch.zeros_like(centre)
    chosen = []
    for count in range(ipc):
        distance = (rows + total[:, None] - (count + 1) * centre[:, None]).square().sum(dim=2)  # [C, m]
        best = distance.masked_fill(~there, torch.inf).argmin(dim=1)
        total += rows[torch.arange(len(rows), device=rows.device), best]
        there[torch.arange(len(rows), device=rows.device), best] = False
        chosen.append(best)
    return indices.gather(1, torch.stack(chosen, dim=1))


def k_center(features: Tensor, class_indices: Sequence[Tensor], ipc: int) -> Tensor:
    """Choose ipc images per class that cover the class: greedy k-centre (Sener and Savarese, ICLR 2018).

    The first image is the one nearest to the mean of its class. Each further image is the one farthest from all images
    chosen so far. The greedy choice is a 2-approximation of the k-centre problem. Arguments, result and error are those
    of `herding`.
    """
    rows, there, indices = _by_class(features, class_indices, ipc)
    every = torch.arange(len(rows), device=rows.device)
    best = (rows - _mean(rows, there)[:, None]).square().sum(dim=2).masked_fill(~there, torch.inf).argmin(dim=1)
    chosen, nearest = [best], torch.full_like(there, torch.inf, dtype=rows.dtype)
    for _ in range(ipc - 1):
        there[every, best] = False
        nearest = torch.minimum(nearest, (rows - rows[every, best][:, None]).square().sum(dim=2))
        best = nearest.masked_fill(~there, -torch.inf).argmax(dim=1)
        chosen.append(best)
    return indices.gather(1, torch.stack(chosen, dim=1))


def random_real(data: ImageData, ipc: int, draws: torch.Generator) -> Batches:
    """Draw ipc real images per class without replacement, the simplest baseline of the same budget."""
    indices = draw_per_class(data, ipc, draws).flatten().to(data.labels.device)
    return Batches(data.batch(indices), data.labels[indices])


RULES: dict[str, Rule] = {"herding": herding, "kcenter": k_center}


def trained_features(
    network: Network, train: ImageData, protocol: EvaluationProtocol, epochs: int, seed: int
) -> Tensor:
    """Train `network` on all training images for `epochs` epochs and return its features [N, F] of those images.

    Learning rate, batch size and augmentation are those of the protocol. `network` must be on the device of the data.
    Its weights are drawn again from the seed and trained in place; the seed determines every other random draw, too.
    Raises InputError if the network diverges, because distances between its features would be NaN.
    """
    reinitialise(network, derive(seed, "coreset network"))
    lr = EvaluationOptions.lr_net if protocol.lr is None else protocol.lr
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    draws = generator(seed, "coreset draws")
    total = epochs * math.ceil(len(train) / protocol.batch) + batches_of_test(len(train), train.im_size)
    with Progress(total=total, desc="features", unit="batch") as bar:
        with seeded(network, seed, "coreset dropout"):
            for _ in range(epochs):
                train_epoch(network, train, optimizer, protocol.batch, protocol.strategy, draws, on_batch=bar.update)
        network.eval()
        parts = []
        with torch.no_grad():
            for rows in test_rows(train):
                parts.append(network.embed(train.batch(rows)).float())
                bar.update()
    features = torch.cat(parts)
    if not all_finite([*network.parameters(), *network.buffers(), features], train.device):
        raise InputError(f"the network whose features choose the images diverged: lower --lr_net ({lr:g})")
    return features


def _by_class(features: Tensor, class_indices: Sequence[Tensor], ipc: int) -> tuple[Tensor, Tensor, Tensor]:
    """Group the features by class, padded to the m images of the largest class.

    Returns the features [C, m, F], a mask [C, m] that is False for padding, and the indices of the images [C, m].
    """
    counts = torch.tensor([len(indices) for indices in class_indices], device=features.device)
    if int(counts.min()) < ipc:
        raise InputError(
            f"a class has {counted(int(counts.min()), 'image')}, but {ipc} of each are needed: lower --ipc"
        )
    indices = pad_sequence(list(class_indices), batch_first=True)
    there = torch.arange(indices.shape[1], device=features.device) < counts[:, None]
    return features[indices], there, indices


def _mean(rows: Tensor, there: Tensor) -> Tensor:
    """The mean feature [C, F] of each class; entries whose mask `there` is False do not count."""
    return (rows * there[..., None]).sum(dim=1) / there.sum(dim=1, keepdim=True)
