"""Selection of the k coefficients that a class keeps: one set of positions, shared by its images and channels.

variance  the paper's rule (Section 3.2, explained variance ratio): for a basis vector e_j, e_j^T Cov e_j / tr Cov is
          the variance of coefficient j over the total, so the top k are the k coefficients of largest variance. Like
          the authors' code, this rule first averages the coefficients over channels.
energy    the k coefficients of largest mean square in orthonormal units, over images and channels. By Parseval's
          theorem no other k coefficients reconstruct the images with a smaller squared error. Unlike `variance`, it
          keeps what all images of a class have in common.
low       the lowest frequencies (`frequency.frequencies`; zig-zag order for the DCT), the same for every class.
random    uniformly random positions, drawn separately for each class.

Ties go to the larger energy, then to the lower index (flattened, row-major).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, get_args

import torch
from torch import Tensor

from common import frequency
from common.system.devices import exact
from common.system.errors import InputError

SelectionRule = Literal["variance", "energy", "low", "random"]
RULES: tuple[str, ...] = get_args(SelectionRule)

# A variance below this fraction of the class's largest energy is rounding error of a constant coefficient.
_ROUNDING = 1e-12


def check_rule(rule: str) -> None:
    """Raise InputError for a rule that does not exist."""
    if rule not in RULES:
        raise InputError(f"unknown selection rule '{rule}': choose one of {', '.join(RULES)}")


def check_k(k: int, im_size: Sequence[int]) -> None:
    """Raise InputError unless 1 <= k <= the number of positions of an image."""
    d = math.prod(im_size)
    if not 1 <= k <= d:
        sides = "x".join(map(str, im_size))
        raise InputError(f"msz_per_channel {k} is out of range: {sides} images have {d} coefficients per channel")


def select(
    rule: str, samples: Iterable[Iterable[Tensor]], k: int, transform: str, generator: torch.Generator | None = None
) -> Tensor:
    """Return the positions int32 [C, k] that the rule selects, ascending within each class.

    samples: for each class an iterable of image chunks [B, ch, *im_size]. It is read once and one chunk at a time, so
        a class may be larger than memory. generator: used by `random` only; torch's default generator is never used.
    Raises InputError for an unknown rule, k < 1, k > d (the number of positions), or a class without images.
    """
    check_rule(rule)
    rows = [_select_class(rule, iter(chunks), k, transform, generator) for chunks in samples]
    if not rows:
        raise InputError("cannot select coefficients: no class was given")
    return torch.stack(rows).sort(dim=1).values.to(torch.int32)


def _select_class(
    rule: str, chunks: Iterator[Tensor], k: int, transform: str, generator: torch.Generator | None
) -> Tensor:
    first = next(chunks, None)
    if first is None or first.shape[0] == 0:
        raise InputError("cannot select coefficients for a class that has no images")
    im_size = tuple(first.shape[2:])
    d = first[0, 0].numel()
    check_k(k, im_size)
    if k == d:
        return torch.arange(d, device=first.device)
    if rule == "low":
        return frequency.frequencies(im_size, transform).flatten().argsort(stable=True)[:k].to(first.device)
    if rule == "random":
        if generator is None:
            raise InputError("selection 'random' needs a generator")
        return torch.randperm(d, generator=generator, device="cpu")[:k].to(first.device)
    variance, energy = _moments(first, chunks, transform, exact(first.device))
    order = energy.argsort(descending=True, stable=True)
    if rule == "variance":
        # The stable sort keeps the energy order among equal variances, so the result is well defined for a single
        # image (no variance at all) and for constant coefficients.
        variance = torch.where(variance > _ROUNDING * energy.max(), variance, 0.0)
        order = order[variance[order].argsort(descending=True, stable=True)]
    return order[:k].to(first.device)


def _moments(first: Tensor, rest: Iterator[Tensor], transform: str, where: torch.device) -> tuple[Tensor, Tensor]:
    """Return (variance, energy) of the coefficients over all chunks, float64 [d] each, computed on `where`.

    The variance is that of the channel-mean coefficient (unbiased; zero for one image). The energy is the mean square
    of the orthonormal coefficient over images and channels.
    """
    ndim = first.dim() - 2
    scale = frequency.orthonormal_scale(tuple(first.shape[2:]), transform).flatten().to(where)
    count, values = 0, 0
    mean = squares = energy = torch.zeros((), dtype=torch.float64, device=where)
    for chunk in chain([first], rest):
        x = frequency.forward(chunk.to(where).double(), ndim, transform).flatten(2)  # [B, ch, d]
        channel_mean = x.mean(dim=1)
        # Chan et al.'s update joins the chunk's centred sum of squares to the running one without cancellation.
        chunk_mean = channel_mean.mean(dim=0)
        delta, total = chunk_mean - mean, count + len(chunk)
        squares = (
            squares + (channel_mean - chunk_mean).square().sum(dim=0) + delta.square() * count * len(chunk) / total
        )
        mean = mean + delta * len(chunk) / total
        energy = energy + x.square().sum(dim=(0, 1))
        count, values = total, values + len(chunk) * chunk.shape[1]
    return squares / max(count - 1, 1), energy / values / scale.square()
