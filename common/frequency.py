"""Orthogonal transforms along the last two or three axes of a batch of images.

A transform is separable: along each axis a length-N signal x becomes F x, and X becomes back D X, with F and D [N, N].

dct       DCT-II and its inverse as in `scipy.fft.dctn(norm=None)` (Section 3 of the paper). Its coefficients are
          those of the orthonormal DCT times s_k per axis, s_0 = 2 sqrt(N), s_k = sqrt(2N). Published learning rates are
          in these units: an SGD step lr in them is a step lr / (s_k s_l)^2 in pixel-norm-preserving ones.
identity  plain pixels: with every position kept, the ordinary pixel parameterisation of DC, DM and MTT.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from scipy import fft
from torch import Tensor

from common.errors import InputError

TransformName = Literal["dct", "identity"]
TRANSFORMS: tuple[str, ...] = get_args(TransformName)


def dct(x: Tensor, ndim: int) -> Tensor:
    """Unnormalised DCT-II along the last `ndim` axes: equal to `scipy.fft.dctn(x, type=2, norm=None, axes=...)`."""
    return forward(x, ndim, "dct")


def idct(x: Tensor, ndim: int) -> Tensor:
    """The inverse of `dct`: equal to `scipy.fft.idctn(x, type=2, norm=None, axes=...)`."""
    return inverse(x, ndim, "dct")


def forward(x: Tensor, ndim: int, transform: str = "dct") -> Tensor:
    """Images [..., H, W] (ndim 2) or [..., D, H, W] (ndim 3) to coefficients of the same shape; differentiable."""
    return _along_axes(x, ndim, transform, analysis=True)


def inverse(x: Tensor, ndim: int, transform: str = "dct") -> Tensor:
    """Coefficients to images: inverts `forward` to rounding error; differentiable."""
    return _along_axes(x, ndim, transform, analysis=False)


def orthonormal_scale(im_size: tuple[int, ...], transform: str = "dct") -> Tensor:
    """Float64 [*im_size]: coefficient = scale * coefficient of the orthonormal transform of the same name."""
    scale = torch.ones((), dtype=torch.float64)
    for size in im_size:
        # The rows of F are orthogonal, and their norms are the factors s_k.
        rows = (
            torch.ones(size) if transform == "identity" else torch.from_numpy(_matrices(transform, size)[0]).norm(dim=1)
        )
        scale = scale[..., None] * rows
    return scale


def check_transform(transform: str) -> None:
    """Raises InputError for a transform that does not exist."""
    if transform not in TRANSFORMS:
        raise InputError(f"unknown transform '{transform}': choose one of {', '.join(TRANSFORMS)}")


def _along_axes(x: Tensor, ndim: int, transform: str, *, analysis: bool) -> Tensor:
    check_transform(transform)
    if x.dim() < ndim:
        raise InputError(f"a transform along {ndim} axes needs images with at least {ndim} axes, got {tuple(x.shape)}")
    if transform == "identity":
        return x
    # Mixed precision would round coefficients that span four orders of magnitude; the transform is never worth it.
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        for axis in range(-ndim, 0):
            matrix = _matrix(transform, x.shape[axis], analysis, x.dtype, x.device)
            x = (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
    return x.contiguous()


@lru_cache(maxsize=64)
def _matrices(transform: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Float64 (F, D), each [size, size]."""
    check_transform(transform)
    unit = np.eye(size)
    return fft.dct(unit, type=2, norm=None, axis=0), fft.idct(unit, type=2, norm=None, axis=0)


@lru_cache(maxsize=64)
def _matrix(transform: str, size: int, analysis: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(_matrices(transform, size)[0 if analysis else 1]).to(device=device, dtype=dtype)
