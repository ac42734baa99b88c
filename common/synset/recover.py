"""Recovers the positions and coefficients of a FreD set from its decoded images.

Each image is an inverse DCT of k coefficients per channel, at positions that all images of a class share. The forward
DCT therefore gives zeros at all other positions, up to rounding: in float32 at most 4e-6 of the mean magnitude of the
kept coefficients at 32 px, and 2e-5 at 128 px (measured on MNIST, CIFAR-10 and Imagenette, with all selection rules).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common import frequency
from common.synset.authors import AuthorsSet
from common.system.errors import InputError
from common.system.text import counted

# A coefficient counts as kept if its largest magnitude in a class exceeds this share of the mean magnitude of the kept
# ones. The second share is for sets decoded in TF32, the default of the authors' version of torch on GPUs that have it;
# TF32 rounding leaves up to 0.007 (128 px, simulated).
_KEPT = (1e-3, 3e-2)
# In a FreD set, the largest coefficient that is not kept is at most this share of the smallest kept one: measured 5e-4
# in float32 and 0.01 in TF32 (simulated). In other images the magnitudes fall gradually, without such a gap.
_GAP = 0.25


class Recovered(NamedTuple):
    """The coefficients float32 [C, n, ch, k] and positions int32 [C, k] of a FreD set, and its budget ipc."""

    coefficients: Tensor
    positions: Tensor
    ipc: int
    residual: float
    """the largest magnitude that is not kept, divided by the mean magnitude of the kept coefficients"""


def recover(authors: AuthorsSet, ipc: int | None = None) -> Recovered:
    """Return the DCT coefficients and positions that decode to these images.

    k is the largest number of nonzero positions in any class. A class with fewer (a kept coefficient that is zero in
    all of its images cannot be detected) is filled up to k with the largest of its other positions, the lower index
    first among equals. If n images of k coefficients match no whole ipc, k is raised to the next number that does.
    ipc: the budget, if it is known.
    Raises InputError if the images are not a FreD set (the message gives the magnitudes measured) or the budget does
    not fit.
    """
    c, n, d, ndim = authors.num_classes, authors.num_per_class, math.prod(authors.im_size), len(authors.im_size)
    by_class = authors.images.unflatten(0, (c, n))
    peaks = torch.empty(c, d, dtype=torch.float64, device="cpu")
    means = torch.empty_like(peaks)
    for number, images in enumerate(by_class):
        # Double precision, so that the residual shows only the rounding of the file.
        magnitudes = frequency.forward(images.double(), ndim).flatten(2).abs()  # [n, ch, d]
        peaks[number], means[number] = magnitudes.amax(dim=(0, 1)), magnitudes.mean(dim=(0, 1))
    kept = _kept(authors.files[0], peaks, means)
    k, ipc = _budget(authors, int(kept.sum(dim=1).max()), ipc)
    positions = peaks.argsort(dim=1, descending=True, stable=True)[:, :k].sort(dim=1).values
    coefficients = torch.stack([
        frequency.forward(images.double(), ndim).flatten(2)[:, :, chosen].float()
        for images, chosen in zip(by_class, positions, strict=True)
    ])  # fmt: skip
    left = peaks.scatter(1, positions, 0.0).max() / _mean_kept(means, kept).max()
    return Recovered(coefficients, positions.to(torch.int32), ipc, float(left))


def _kept(file: Path, peaks: Tensor, means: Tensor) -> Tensor:
    """Return a boolean [C, d] that marks the nonzero coefficients.

    peaks, means [C, d]: largest and mean magnitude of each coefficient over the images and channels of a class.
    Raises InputError unless a few coefficients of each class are far above all others.
    """
    advice = "--as_pixels stores the images as they are"
    for share in _KEPT:
        kept = torch.stack([_above(share, *rows) for rows in zip(peaks, means, strict=True)])
        if not kept.any():
            raise InputError(f"{file} holds nothing but zeros, which is no set of frequency coefficients: {advice}")
        smallest = torch.where(kept, peaks, torch.inf).amin(dim=1)
        left = torch.where(kept, 0.0, peaks).amax(dim=1)
        worst = int((left / smallest).argmax())
        if float(left[worst]) <= _GAP * float(smallest[worst]) and not kept.all(dim=1).any():
            return kept
    counts, d = kept.sum(dim=1), peaks.shape[1]
    if int(counts.max()) == d:
        worst = int(counts.argmax())
    told = f", and of the others the largest is {float(left[worst] / _mean_kept(means, kept)[worst]):.1e} of it"
    raise InputError(
        f"{file} is not a set of FreD, whose images are zero at most positions of the DCT: in class {worst} "
        f"{int(counts[worst])} of {d} magnitudes are above {share:g} of their mean{told if counts[worst] < d else ''} "
        f"(rounding leaves 1e-6 to 1e-2); {advice}"
    )


def _above(share: float, peaks: Tensor, means: Tensor) -> Tensor:
    """Return a boolean [d] that marks the kept coefficients of one class.

    A coefficient is kept if its value in `peaks` [d] exceeds `share` times the mean of `means` [d] over all kept ones.
    """
    kept = peaks > 0
    while kept.any():
        fewer = kept & (peaks > share * means[kept].mean())
        if torch.equal(fewer, kept):
            break
        kept = fewer
    return kept


def _mean_kept(means: Tensor, kept: Tensor) -> Tensor:
    """Return the mean magnitude [C] of the kept coefficients of each class, 0 for a class without any."""
    return torch.where(kept, means, 0.0).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def _budget(authors: AuthorsSet, k: int, ipc: int | None) -> tuple[int, int]:
    """Return (k, ipc) with the least ipc for which n = int(ipc * d / k); k is raised if only a larger k fits.

    A known `ipc` may be larger than the least one if it gives n images with k as it is.
    Raises InputError if it does not.
    """
    n, d = authors.num_per_class, math.prod(authors.im_size)
    least = -(-n * k // d)
    for each in range(least, n + 1):
        larger = max(k, each * d // (n + 1) + 1)  # with fewer coefficients there would be more than n images
        if larger <= min(d, each * d // n):
            break
    if ipc in (None, each):
        return larger, each
    if ipc * d // k == n:
        return k, ipc
    raise InputError(
        f"--ipc {ipc} does not fit {authors.files[0]}, which holds {counted(n, 'image')} per class of "
        f"{counted(k, 'coefficient')} per channel (of {d}): leave it out, or give {each}"
    )
