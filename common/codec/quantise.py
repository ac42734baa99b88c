"""Rounding to whole steps with a dead zone, and the step at which the codes fit a budget."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from common.codec.rate import Sums, shortest
from common.codec.tables import LARGEST, TABLES, lengths

DEAD_ZONE = 0.65
"""A coefficient below this many steps from its mean is coded as zero, and the other limits lie as far above halves."""
_NEAR = 0.15  # of log2 of the step: how far a start is trusted
_EXACT = 0.002  # of log2 of the step; the bits change by as many thousandths
_BISECTIONS = 14


def mean_shift(count: int) -> int:
    """How many times the step is halved for the means of `count` images each: the finer, the more images share one."""
    return (count.bit_length() - 1) // 4


def round_off(values: Tensor, step: Tensor) -> Tensor:
    """The codes of values [...], whole numbers of the same type; step broadcasts against the values."""
    scaled = values / step
    return ((scaled.abs() + (1 - DEAD_ZONE)).floor() * scaled.sign()).clamp(-LARGEST, LARGEST)


def means_of(coefficients: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """(means [C, P], their values [C, P]) of coefficients [C, n, P] with the steps [C].

    A mean is a whole number of parts of the step, step / 2^shift with the shift that `mean_shift` gives.
    """
    part = step[:, None] / 2 ** mean_shift(coefficients.shape[1])
    means = round_off(coefficients.mean(dim=1), part)
    return means, means * part


def codes_of(coefficients: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """(means [C, P], codes [C, n, P]), whole numbers, of coefficients [C, n, P] with the steps [C]."""
    means, values = means_of(coefficients, step)
    return means, round_off(coefficients - values[:, None], step[:, None, None])


def values_of(means: Tensor, codes: Tensor, step: Tensor, shift: int | None = None) -> Tensor:
    """The coefficients float32 [C, n, P] that means [C, P] and codes [C, n, P] stand for, with the steps [C].

    (code + mean / 2^shift) * step: the sum is exact, so each value is rounded once. shift: of the whole set, if these
    are not all images of it.
    """
    parts = 2 ** (mean_shift(codes.shape[1]) if shift is None else shift)
    return ((codes.double() + (means.double() / parts)[:, None]) * step.double()[:, None, None]).float()


def bits_of(coefficients: Tensor, step: Tensor) -> Tensor:
    """The least bits [C] of codes and means of coefficients [C, n, P] with the steps [C], without the tables."""
    return _coded(coefficients, step)[2]


def _coded(coefficients: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(coefficients less their means [C, n, P], tables of their codes [C, P], what `bits_of` returns [C])."""
    means, values = means_of(coefficients, step)
    centred = coefficients - values[:, None]
    bits, tables = shortest(_sums(centred, step))
    return centred, tables, bits.sum(dim=1) + _bits_of_means(means, tables)


def _bits_of_means(means: Tensor, tables: Tensor) -> Tensor:
    """The least bits [C] of means [C, P], each under a table that follows from that of its codes, [C, P].

    In a file the classes share these tables; here each has its own, so that its bits are those of its own step.
    """
    classes = len(means)
    where = (torch.arange(classes, device=means.device)[:, None] * TABLES + tables).flatten()
    sums = Sums.grouped(means.long().flatten(), where, classes * TABLES)
    return shortest(sums)[0].unflatten(0, (classes, TABLES)).sum(dim=1)


def rate_gradient(coefficients: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient [C, n, P], bits [C]): how the bits of the codes grow with each coefficient, their tables held fixed.

    Rounding has no gradient. In its place is that of the line from the length of 0 to that of 1, and from there on of
    what each further unit of magnitude adds. The bits are those of `bits_of`; how the means grow is left out.
    """
    centred, tables, bits = _coded(coefficients, step)
    told = lengths()
    to_one = (told.one - told.zero).to(centred)[tables][:, None]
    further = told.more.to(centred)[tables][:, None]
    each = step[:, None, None]
    return torch.where(centred.abs() < each, to_one, further) * centred.sign() / each, bits


def _sums(centred: Tensor, step: Tensor) -> Sums:
    """What the code lengths of coefficients [C, n, P] less their means depend on, [C, P]."""
    sizes = centred.abs().div_(step[:, None, None]).add_(1 - DEAD_ZONE).floor_()
    used = sizes.gt(0).float().sum(dim=1)
    return Sums(torch.full_like(used, centred.shape[1]), used, sizes.sum(dim=1), sizes.amax(dim=1))


def step_range(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """(finest [C], coarsest [C]) steps of coefficients [C, n, P].

    At finer ones codes or means would be too large for the tables; at the coarsest all are zero.
    """
    tiny = torch.finfo(torch.float32).tiny * 2**20
    peak = coefficients.abs().amax(dim=(1, 2)).clamp_min(tiny)
    mean = coefficients.mean(dim=1).abs().amax(dim=1) * 2 ** mean_shift(coefficients.shape[1])
    largest = torch.maximum(peak, mean)
    return largest * 2 / LARGEST, largest * 4


def fit_step(coefficients: Tensor, bits: Tensor, start: Tensor | None = None) -> Tensor:
    """The steps [C], float32, by bisection, at which codes and means of coefficients [C, n, P] take at most `bits` [C].

    The finest steps if even those take fewer, the coarsest if those take more.
    start: steps of a moment ago; if they are near, fewer have to be tried.
    """
    low, high = (end.log2() for end in step_range(coefficients))
    rounds = _BISECTIONS
    if start is not None:
        below, above = start.log2() - _NEAR, start.log2() + _NEAR
        low = torch.where((below > low) & (bits_of(coefficients, below.exp2()) > bits), below, low)
        high = torch.where((above < high) & (bits_of(coefficients, above.exp2()) <= bits), above, high)
        width = float((high - low).max())
        # Coefficients that are not finite have no step; the run ends when it next looks at them.
        rounds = max(1, math.ceil(math.log2(width / _EXACT))) if math.isfinite(width) else 1
    for _ in range(rounds):
        middle = (low + high) / 2
        fits = bits_of(coefficients, middle.exp2()) <= bits
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return high.exp2()


class StraightThrough(torch.autograd.Function):
    """Rounded values, whose gradient is that of the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def int8_scales(values: Tensor) -> Tensor:
    """For each class and position of values [C, n, K] the unit of its int8 codes, bfloat16 [C, K].

    A 127th of the largest magnitude, rounded up so that no code is larger than 127; 1 where all are zero.
    """
    exact = values.abs().amax(dim=1) / 127
    near = exact.bfloat16()
    # The next number of bfloat16 has the next pattern of bits.
    higher = (near.view(torch.int16) + 1).view(torch.bfloat16)
    scales = torch.where(near.float() * 127.49 < exact * 127, higher, near)
    return torch.where(exact > 0, scales, torch.ones_like(scales))
