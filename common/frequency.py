"""Orthogonal transforms along the last two or three axes of a batch of images.

Every transform maps the d real pixels of a channel (d = product of the image's sides) to d real coefficients at d
positions. So keeping k positions costs k numbers with every transform.

dct       DCT-II and its inverse as in `scipy.fft.dctn(norm=None)` (Section 3 of the paper). Along an axis of length N,
          coefficient k is s_k times that of the orthonormal DCT, with s_0 = 2 sqrt(N) and s_k = sqrt(2N) for k > 0.
          Published learning rates are in these units: for coefficient (k, l), SGD with learning rate lr moves the
          image as it would with learning rate lr / (s_k s_l)^2 on the orthonormal coefficients.
dft       The discrete Fourier transform of `torch.fft.fftn(norm="backward")`. The coefficients X of a real image come
          in conjugate pairs, X[-u] = conj X[u]. The first position of each pair holds the real part, and the second
          one holds the imaginary part. So there are d real numbers without repetition, and every selection of
          positions decodes to a real image.
dwt       The orthonormal Haar wavelet pyramid (bases from PyWavelets). It has as many levels as all sides can be
          halved. The layout is the usual one: the coarsest averages are at the top left.
identity  Plain pixels. With every position kept, this is the usual pixel parameterisation of DC, DM and MTT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
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


def number_of(transform: str) -> str:
    """What a kept number is, for people: "DCT coefficient", "DFT coefficient", "DWT coefficient" or "pixel"."""
    return "pixel" if transform == "identity" else f"{transform.upper()} coefficient"


def forward(x: Tensor, ndim: int, transform: str = "dct") -> Tensor:
    """Transform images [..., H, W] (ndim 2) or [..., D, H, W] (ndim 3) to coefficients of the same shape.

    The result is differentiable. Raises InputError if the transform is unknown or cannot take images of this size.
    """
    return _apply(_get(transform).forward, x, ndim)


def inverse(x: Tensor, ndim: int, transform: str = "dct") -> Tensor:
    """Transform coefficients back to images; inverts `forward` up to rounding errors, and is differentiable."""
    return _apply(_get(transform).inverse, x, ndim)


def orthonormal_scale(im_size: Sequence[int], transform: str = "dct") -> Tensor:
    """The ratio of each coefficient to that of the orthonormal transform of the same name: float64 [*im_size]."""
    return _get(transform).scale(tuple(im_size))


def frequencies(im_size: Sequence[int], transform: str = "dct") -> Tensor:
    """A number that ranks the positions by how fast their basis image varies; 0 is the slowest. Float64 [*im_size].

    dct: the sum over the axes of index / side. dft: the sum over the axes of the frequency in cycles per pixel.
    dwt: the level of detail, 0 for the coarsest averages. identity: pixels have no frequency, so this is the sum over
    the axes of index / side, which ranks the pixels from the top left. Equal frequencies are equal to the last bit.
    """
    return _get(transform).frequencies(tuple(im_size))


def convert_step(lr: float, im_size: Sequence[int], source: str, target: str) -> float:
    """The learning rate for the transform `target` that moves images as `lr` does for the transform `source`.

    The match is exact for the positions that have the median scale, which are most of them. A few positions, such as
    the constant one of the DCT, have a different scale and do not match.
    """
    before, after = (orthonormal_scale(im_size, transform).median().item() for transform in (source, target))
    return float(f"{lr * (after / before) ** 2:.12g}")  # 12 digits drop the rounding errors of the scales


def check_transform(transform: str, im_size: Sequence[int] | None = None) -> None:
    """Raises InputError if the transform does not exist or cannot take images of this size."""
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
    # Coefficients span four orders of magnitude, and mixed precision would round them. The transform is too cheap for
    # lower precision to be worth that.
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
        return function(x if x.dtype in (torch.float32, torch.float64) else x.float(), ndim)


def _summed_shares(indices: Sequence[Tensor], im_size: Sequence[int]) -> Tensor:
    """Return the sum over the axes of index / side, float64 [*im_size]; equal sums are equal to the last bit.

    indices: int64 [side] for each axis.
    """
    # Sums are computed in integers, because sums of rounded fractions depend on the terms: for some indices u + v =
    # u' + v', but u/28 + v/28 != u'/28 + v'/28.
    whole = math.lcm(*im_size)
    rows = [index * (whole // side) for index, side in zip(indices, im_size, strict=True)]
    return torch.stack(torch.meshgrid(*rows, indexing="ij")).sum(dim=0).double() / whole


# -- separable: matrices F and D [N, N] per axis transform a signal x of length N to X = F x, and back to x = D X -----


def _separable(x: Tensor, ndim: int, name: str, *, analysis: bool) -> Tensor:
    for axis in range(-ndim, 0):
        matrix = _matrix(name, x.shape[axis], analysis, x.dtype, x.device)
        x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return x.contiguous()


@lru_cache(maxsize=64)
def _matrices(name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices (F, D) of a one-dimensional transform and its inverse, each float64 [size, size]."""
    unit = np.eye(size)
    if name == "dct":
        from scipy import fft

        return fft.dct(unit, type=2, norm=None, axis=0), fft.idct(unit, type=2, norm=None, axis=0)
    import pywt

    analysis = np.concatenate(pywt.dwt(unit, "haar", axis=0))  # averages of neighbours, then their differences
    return analysis, analysis.T


@lru_cache(maxsize=64)
def _matrix(name: str, size: int, analysis: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(_matrices(name, size)[0 if analysis else 1]).to(device=device, dtype=dtype)


def _dct_scale(im_size: tuple[int, ...]) -> Tensor:
    scale = torch.ones((), dtype=torch.float64, device="cpu")
    for size in im_size:
        # The rows of F are orthogonal, and the norm of row k is the factor s_k of the module's docstring.
        scale = scale[..., None] * torch.from_numpy(_matrices("dct", size)[0]).norm(dim=1)
    return scale


def _summed_indices(im_size: tuple[int, ...]) -> Tensor:
    return _summed_shares([torch.arange(size, device="cpu") for size in im_size], im_size)


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
    """Move the value at every frequency -u to u, where an index is a frequency modulo the side."""
    return x.flip(axes).roll([1] * len(axes), axes)


@lru_cache(maxsize=64)
def _conjugate_pairs(im_size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Two boolean masks [*im_size]: the positions that hold a real part, and those that are their own partner (u = -u).

    Positions that are their own partner hold a real part, too.
    """
    index = torch.arange(math.prod(im_size), device="cpu").view(im_size)
    partner = _negate_frequencies(index, tuple(range(-len(im_size), 0)))
    return (index <= partner).to(device), (index == partner).to(device)


def _dft_scale(im_size: tuple[int, ...]) -> Tensor:
    # In a pair, cosine and sine share the energy: each has norm sqrt(d / 2). A position without a partner has a cosine
    # alone, of norm sqrt(d).
    _, alone = _conjugate_pairs(im_size, torch.device("cpu"))
    d = math.prod(im_size)
    return ((1 + alone.double()) * (d / 2)).sqrt()


def _dft_frequencies(im_size: tuple[int, ...]) -> Tensor:
    # Index u stands for the frequency u or u - side, whichever is nearer to 0.
    axes = [torch.arange(size, device="cpu") for size in im_size]
    return _summed_shares([axis.minimum(len(axis) - axis) for axis in axes], im_size)


# -- wavelets --------------------------------------------------------------------------------------------------------


def _levels(im_size: Sequence[int]) -> int:
    """How many times all sides can be halved."""
    common = math.gcd(*im_size)
    return (common & -common).bit_length() - 1


def _corner(im_size: Sequence[int], level: int) -> tuple[Any, ...]:
    """The index of the averages after `level` levels, at the top left; the next level transforms these."""
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
    scale = torch.full(im_size, levels, dtype=torch.float64, device="cpu")
    for level in range(1, levels + 1):
        scale[_corner(im_size, level)] = levels - level
    return scale


def _unchanged(x: Tensor, ndim: int) -> Tensor:
    return x


def _ones(im_size: tuple[int, ...]) -> Tensor:
    return torch.ones(im_size, dtype=torch.float64, device="cpu")


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
