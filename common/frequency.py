"""Orthogonal transforms along the last two or three axes of a batch of images.

Every transform maps d real pixels to d real coefficients at d positions (d = product of the sides), so k kept positions
cost the same k numbers whichever transform they belong to.

dct       DCT-II and its inverse as in `scipy.fft.dctn(norm=None)` (Section 3 of the paper). Its coefficients are
          those of the orthonormal DCT times s_k per axis, s_0 = 2 sqrt(N), s_k = sqrt(2N). Published learning rates are
          in these units: an SGD step lr in them is a step lr / (s_k s_l)^2 in pixel-norm-preserving ones.
dft       the discrete Fourier transform of `torch.fft.fftn(norm="backward")`. Real images have X[-u] = conj X[u], so
          of each conjugate pair the position that comes first holds the real part and the other one the imaginary
          part: d real numbers in all, none counted twice, and whatever is kept decodes to a real image.
dwt       the Haar wavelet pyramid (bases from PyWavelets), orthonormal, over as many levels as all sides can be
          halved; the layout is the usual one, the coarsest averages at the top left.
identity  plain pixels: with every position kept, the ordinary pixel parameterisation of DC, DM and MTT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy import fft
from torch import Tensor
from torch.amp import is_autocast_available

from common.system.errors import InputError

TransformName = Literal["dct", "dft", "dwt", "identity"]
TRANSFORMS: tuple[str, ...] = get_args(TransformName)


def dct(x: Tensor, ndim: int) -> Tensor:
    """Unnormalised DCT-II along the last `ndim` axes: equal to `scipy.fft.dctn(x, type=2, norm=None, axes=...)`."""
    return forward(x, ndim, "dct")


def idct(x: Tensor, ndim: int) -> Tensor:
    """The inverse of `dct`: equal to `scipy.fft.idctn(x, type=2, norm=None, axes=...)`."""
    return inverse(x, ndim, "dct")


def forward(x: Tensor, ndim: int, transform: str = "dct") -> Tensor:
    """Images [..., H, W] (ndim 2) or [..., D, H, W] (ndim 3) to coefficients of the same shape; differentiable.

    Raises InputError for an unknown transform, or images that it cannot take.
    """
    return _apply(_get(transform).forward, x, ndim)


def inverse(x: Tensor, ndim: int, transform: str = "dct") -> Tensor:
    """Coefficients to images: inverts `forward` to rounding error; differentiable."""
    return _apply(_get(transform).inverse, x, ndim)


def orthonormal_scale(im_size: Sequence[int], transform: str = "dct") -> Tensor:
    """Float64 [*im_size]: coefficient = scale * coefficient of the orthonormal transform of the same name."""
    return _get(transform).scale(tuple(im_size))


def frequencies(im_size: Sequence[int], transform: str = "dct") -> Tensor:
    """Float64 [*im_size]: how fast the image of each position varies, to rank them by; 0 for the slowest.

    dct, dft: the sum over axes of the index's frequency, relative to the highest. dwt: the scale, 0 for the averages.
    identity: pixels have no frequency; the sum of relative indices stands in, which ranks them from the top left.
    Positions of the same frequency have the same value to the last bit.
    """
    return _get(transform).frequencies(tuple(im_size))


def convert_step(lr: float, im_size: Sequence[int], source: str, target: str) -> float:
    """The step size of `target` that moves images as `lr` does with `source`.

    Equal in orthonormal units for most positions; a few, such as the DCT's constant one, have a scale of their own.
    """
    before, after = (orthonormal_scale(im_size, transform).median().item() for transform in (source, target))
    return float(f"{lr * (after / before) ** 2:.12g}")  # without the rounding of the scales, for people to read


def check_transform(transform: str, im_size: Sequence[int] | None = None) -> None:
    """Raises InputError for a transform that does not exist, or that cannot take images of this size."""
    if transform not in TRANSFORMS:
        raise InputError(f"unknown transform '{transform}': choose one of {', '.join(TRANSFORMS)}")
    if transform == "dwt" and im_size is not None and _levels(im_size) == 0:
        sides = "x".join(map(str, im_size))
        raise InputError(f"the wavelet transform halves every side, which {sides} does not allow: choose dct or dft")


class _Transform(NamedTuple):
    forward: Callable[[Tensor, int], Tensor]
    inverse: Callable[[Tensor, int], Tensor]
    scale: Callable[[tuple[int, ...]], Tensor]
    frequencies: Callable[[tuple[int, ...]], Tensor]


def _get(transform: str) -> _Transform:
    check_transform(transform)
    return _TRANSFORMS[transform]


def _apply(function: Callable[[Tensor, int], Tensor], x: Tensor, ndim: int) -> Tensor:
    if x.dim() < ndim:
        raise InputError(f"a transform along {ndim} axes needs images with at least {ndim} axes, got {tuple(x.shape)}")
    # Mixed precision would round coefficients that span four orders of magnitude; the transform is never worth it.
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
        return function(x if x.dtype in (torch.float32, torch.float64) else x.float(), ndim)


def _summed_shares(indices: Sequence[Tensor], im_size: Sequence[int]) -> Tensor:
    """Float64 [*im_size]: the sum over axes of index / side; sums that are equal are equal to the last bit.

    indices: for each axis int64 [side].
    """
    # In whole numbers, since a sum of rounded shares depends on its terms: 1/28 + 4/28 is not 0/28 + 5/28.
    whole = math.lcm(*im_size)
    rows = [index * (whole // side) for index, side in zip(indices, im_size, strict=True)]
    return torch.stack(torch.meshgrid(*rows, indexing="ij")).sum(dim=0).double() / whole


# -- separable: along each axis a length-N signal x becomes F x, and X becomes back D X, with F and D [N, N] ---------


def _separable(x: Tensor, ndim: int, name: str, *, analysis: bool) -> Tensor:
    for axis in range(-ndim, 0):
        matrix = _matrix(name, x.shape[axis], analysis, x.dtype, x.device)
        x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return x.contiguous()


@lru_cache(maxsize=64)
def _matrices(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Float64 (F, D), each [size, size]."""
    unit = np.eye(size)
    if name == "dct":
        return fft.dct(unit, type=2, norm=None, axis=0), fft.idct(unit, type=2, norm=None, axis=0)
    import pywt

    analysis = np.concatenate(pywt.dwt(unit, "haar", axis=0))  # averages of neighbours, then their differences
    return analysis, analysis.T


@lru_cache(maxsize=64)
def _matrix(name: str, size: int, analysis: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(_matrices(name, size)[0 if analysis else 1]).to(device=device, dtype=dtype)


def _dct_scale(im_size: tuple[int, ...]) -> Tensor:
    scale = torch.ones((), dtype=torch.float64)
    for size in im_size:
        # The rows of F are orthogonal, and their norms are the factors s_k.
        scale = scale[..., None] * torch.from_numpy(_matrices("dct", size)[0]).norm(dim=1)
    return scale


def _summed_indices(im_size: tuple[int, ...]) -> Tensor:
    return _summed_shares([torch.arange(size) for size in im_size], im_size)


# -- Fourier ---------------------------------------------------------------------------------------------------------


def _dft(x: Tensor, ndim: int) -> Tensor:
    spectrum = torch.fft.fftn(x, dim=tuple(range(-ndim, 0)))
    real_part, _ = _conjugate_pairs(tuple(x.shape[-ndim:]), x.device)
    return torch.where(real_part, spectrum.real, spectrum.imag)


def _inverse_dft(x: Tensor, ndim: int) -> Tensor:
    axes = tuple(range(-ndim, 0))
    real_part, alone = _conjugate_pairs(tuple(x.shape[-ndim:]), x.device)
    partner = _negate_frequencies(x, axes)
    real = torch.where(real_part, x, partner)
    imaginary = torch.where(real_part, -partner, x).masked_fill(alone, 0.0)
    return torch.fft.ifftn(torch.complex(real, imaginary), dim=axes).real.contiguous()


def _negate_frequencies(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """What stands at -u, for every u; indices are frequencies modulo the side."""
    return x.flip(axes).roll([1] * len(axes), axes)


@lru_cache(maxsize=64)
def _conjugate_pairs(im_size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Boolean [*im_size] each: positions that hold a real part, and those that are their own partner (u = -u)."""
    index = torch.arange(math.prod(im_size)).view(im_size)
    partner = _negate_frequencies(index, tuple(range(-len(im_size), 0)))
    return (index <= partner).to(device), (index == partner).to(device)


def _dft_scale(im_size: tuple[int, ...]) -> Tensor:
    # A pair shares its energy between cosine and sine: each has norm sqrt(d / 2), a wave without a sine sqrt(d).
    _, alone = _conjugate_pairs(im_size, torch.device("cpu"))
    d = math.prod(im_size)
    return torch.where(alone, d, d / 2).double().sqrt()


def _dft_frequencies(im_size: tuple[int, ...]) -> Tensor:
    # Index u stands for the frequency u or u - side, whichever is nearer to 0.
    return _summed_shares([torch.arange(size).minimum(size - torch.arange(size)) for size in im_size], im_size)


# -- wavelets --------------------------------------------------------------------------------------------------------


def _levels(im_size: Sequence[int]) -> int:
    """How often all sides can be halved."""
    common = math.gcd(*im_size)
    return (common & -common).bit_length() - 1


def _corner(im_size: Sequence[int], level: int) -> tuple[Any, ...]:
    """Index of what is left to transform after `level` levels: the averages, at the top left."""
    return (..., *(slice(side >> level) for side in im_size))


def _dwt(x: Tensor, ndim: int) -> Tensor:
    im_size = x.shape[-ndim:]
    check_transform("dwt", im_size)
    x = x.clone()
    for level in range(_levels(im_size)):
        corner = _corner(im_size, level)
        x[corner] = _separable(x[corner], ndim, "haar", analysis=True)
    return x


def _inverse_dwt(x: Tensor, ndim: int) -> Tensor:
    im_size = x.shape[-ndim:]
    check_transform("dwt", im_size)
    x = x.clone()
    for level in reversed(range(_levels(im_size))):
        corner = _corner(im_size, level)
        x[corner] = _separable(x[corner], ndim, "haar", analysis=False)
    return x


def _dwt_frequencies(im_size: tuple[int, ...]) -> Tensor:
    levels = _levels(im_size)
    scale = torch.full(im_size, levels, dtype=torch.float64)
    for level in range(1, levels + 1):
        scale[_corner(im_size, level)] = levels - level
    return scale


def _unchanged(x: Tensor, ndim: int) -> Tensor:
    return x


def _ones(im_size: tuple[int, ...]) -> Tensor:
    return torch.ones(im_size, dtype=torch.float64)


_TRANSFORMS = {
    "dct": _Transform(
        lambda x, ndim: _separable(x, ndim, "dct", analysis=True),
        lambda x, ndim: _separable(x, ndim, "dct", analysis=False),
        _dct_scale,
        _summed_indices,
    ),
    "dft": _Transform(_dft, _inverse_dft, _dft_scale, _dft_frequencies),
    "dwt": _Transform(_dwt, _inverse_dwt, _ones, _dwt_frequencies),
    "identity": _Transform(_unchanged, _unchanged, _ones, _summed_indices),
}
