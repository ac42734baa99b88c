"""Distribution matching (Zhao and Bilen, WACV 2023): mean embeddings of real and synthetic images should be equal.

    loss = sum over classes c of || mean_i embed(A_c(real_ci)) - mean_j embed(A_c(syn_cj)) ||^2

A_c is a differentiable augmentation with the same parameters for the real and the synthetic images of a class. The
network has random weights, which are not trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from common.matching.augment import DSAParams, apply

Embed = Callable[[Tensor], Tensor]

_GPU_PIXELS = 4096 * 32 * 32


class Rows(Protocol):
    """Images [N, ch, ...]: a tensor, or an object that normalises one slice at a time if they are too many to hold."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


def match(
    embed: Embed,
    real: Tensor | Rows,
    synthetic: Tensor,
    num_classes: int,
    augmentation: DSAParams | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the loss (a scalar without graph) and its gradient with respect to the synthetic images.

    embed: [B, ch, ...] -> features [B, F]. real: [C * m, ch, ...], m images of each of C classes, read one chunk at a
    time. synthetic: [C * n, ch, ...]. Both are grouped by class.
    augmentation: one parameter set per class, or None.
    chunk: at most this many images per forward pass; None for all at once, which a network with batch statistics needs.
    The chunk does not change the result. Whole classes share a pass if they fit into one. A class larger than a chunk
    is embedded twice, once for its mean and once for its gradient.
    num_classes: C; 0 for a process that has no classes to match, with a zero loss and an empty gradient.
    """
    synthetic = synthetic.detach()
    if num_classes == 0:
        return synthetic.new_zeros(()), torch.empty_like(synthetic)
    per_class = len(synthetic) // num_classes
    target = _class_means(embed, real, num_classes, augmentation, chunk)
    gradient = torch.empty_like(synthetic)
    loss = target.new_zeros(())
    for first, last in class_ranges(num_classes, per_class, chunk):
        rows = slice(first * per_class, last * per_class)
        some = None if augmentation is None else augmentation[first:last]
        if chunk is None or (last - first) * per_class <= chunk:
            images = synthetic[rows].requires_grad_()
            means = _embed(embed, images, some).unflatten(0, (last - first, per_class)).mean(dim=1)
            part = (means - target[first:last]).square().sum()
            (gradient[rows],) = torch.autograd.grad(part, images)
            loss += part.detach()
        else:
            part, gradient[rows] = _match_large_class(embed, synthetic[rows], target[first], some, chunk)
            loss += part
    return loss, gradient


def _match_large_class(
    embed: Embed, images: Tensor, target: Tensor, augmentation: DSAParams | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Match one class of n images in pieces.

    By the chain rule, the gradient of the loss with respect to each row of features is 2 (mean - target) / n.
    """
    difference = _class_means(embed, images, 1, augmentation, chunk)[0] - target
    cotangent = 2 * difference / len(images)
    pieces = []
    for piece in images.split(chunk):
        piece = piece.detach().requires_grad_()
        features = _embed(embed, piece, augmentation)
        pieces.append(torch.autograd.grad(features, piece, cotangent.expand_as(features))[0])
    return difference.square().sum(), torch.cat(pieces)


@torch.no_grad()
def _class_means(
    embed: Embed, images: Tensor | Rows, num_classes: int, augmentation: DSAParams | None, chunk: int | None
) -> Tensor:
    """Return the mean features [C, F] of each class of images [C * m, ch, ...], without gradient."""
    per_class = len(images) // num_classes
    means = []
    for first, last in class_ranges(num_classes, per_class, chunk):
        some = None if augmentation is None else augmentation[first:last]
        rows = images[first * per_class : last * per_class]
        if chunk is None or len(rows) <= chunk:
            means.append(_embed(embed, rows, some).unflatten(0, (last - first, per_class)).mean(dim=1))
        else:
            sums = [_embed(embed, piece, some).sum(dim=0) for piece in rows.split(chunk)]
            means.append(torch.stack(sums).sum(dim=0, keepdim=True) / per_class)
    return torch.cat(means)


def _embed(embed: Embed, images: Tensor, augmentation: DSAParams | None) -> Tensor:
    features = embed(images if augmentation is None else apply(images, augmentation))
    # The difference of two nearly equal means would be mostly rounding error in half precision.
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


def default_chunk(device: torch.device, batch_real: int, im_size: Sequence[int]) -> int:
    """Return the chunk: on a CPU the real images of one class; on a GPU about 4 GB of activations (untried)."""
    return batch_real if device.type == "cpu" else max(1, _GPU_PIXELS // math.prod(im_size))


def class_ranges(num_classes: int, per_class: int, chunk: int | None) -> list[tuple[int, int]]:
    """Split classes into ranges [first, last) of as many whole classes as fit into a chunk, but at least one."""
    step = num_classes if chunk is None else max(1, chunk // per_class)
    return [(c, min(c + step, num_classes)) for c in range(0, num_classes, step)]
