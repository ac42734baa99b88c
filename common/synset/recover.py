"""From decoded images back to what was stored: the positions and coefficients of a FreD set.

Each image is an inverse DCT of k coefficients per channel, at positions that the images of a class share, so the
forward DCT gives zeros everywhere else, up to rounding: in float32 1e-6 of the mean magnitude of what is kept at 32 px,
1e-5 at 128 px.
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

# A coefficient is kept where its largest magnitude in a class exceeds this share of the mean magnitude of those kept;
# the second share is for sets decoded in TF32, the default of the authors' version of torch on GPUs that have it, whose
# rounding leaves up to 0.007 (128 px, simulated).
_KEPT = (1e-3, 3e-2)
# Between the smallest of those and the largest of the others a FreD set has a gap, other images have a slope. The ratio
# of the two is 1e-5 in float32, 0.01 in TF32 (simulated).
_GAP = 0.25


class Recovered(NamedTuple):
    """What a FreD set stores: float32 [C, n, ch, k] and int32 [C, k], with the budget that pays for it."""

    coefficients: Tensor
    positions: Tensor
    ipc: int
    residual: float
    """the largest magnitude that is left out, relative to the mean magnitude of what is kept"""


def recover(authors: AuthorsSet, ipc: int | None = None) -> Recovered:
    """The DCT coefficients and positions that decode to these images.

    k is the largest number of coefficients that any class shows. A kept coefficient that is zero in all images of a
    class cannot be seen: a class that shows fewer gets those of its other positions where most is left, the lower index
    first. Where n images of k coefficients are no whole budget, k is raised to the next that is.
    ipc: the budget, if it is known. Raises InputError for images that are no FreD set, with what was measured, and for
    a budget that does not fit.
    """
    c, n, d, ndim = authors.num_classes, authors.num_per_class, math.prod(authors.im_size), len(authors.im_size)
    by_class = authors.images.unflatten(0, (c, n))
    peaks = torch.empty(c, d, dtype=torch.float64)
    means = torch.empty_like(peaks)
    for number, images in enumerate(by_class):
        # Double precision, so that what is left over is the file's own rounding.
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
    """Boolean [C, d]: the coefficients that are not zero. peaks, means: [C, d] of their magnitudes.

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
    """Boolean [d]: peaks [d] above this share of the mean of `means` [d] over those that are above it."""
    kept = peaks > 0
    while kept.any():
        fewer = kept & (peaks > share * means[kept].mean())
        if torch.equal(fewer, kept):
            break
        kept = fewer
    return kept


def _mean_kept(means: Tensor, kept: Tensor) -> Tensor:
    """[C] mean magnitude of the kept coefficients of each class, 0 for a class without any."""
    return torch.where(kept, means, 0.0).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def _budget(authors: AuthorsSet, k: int, ipc: int | None) -> tuple[int, int]:
    """(k, ipc): the least ipc of which n = int(ipc * d / k), with k raised where only a larger one fits.

    A budget that is known may be larger, if k leaves it n. Raises InputError where it does not fit.
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
        f"--ipc {ipc} does not fit {authors.files[0]}, which holds {n} images per class of {k} coefficients per "
        f"channel (of {d}): leave it out, or give {each}"
    )
