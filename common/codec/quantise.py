"""Rounding to whole steps where error and rate are least together, and the step at which the codes fit a budget."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.codec.rate import Sums, shortest
from common.codec.tables import LARGEST, TABLES, lengths

BIT = 0.12
"""The squared error, in squared steps, that one bit is worth (docs/log.md)."""
_MEANS_LIMIT = 0.65  # of a step, above which a mean is rounded up
_NARROWEST = 1e-3  # mean magnitude in steps: below it every code is zero
_WIDEST = (1.0, 0.95)  # limits in steps, of the first unit and of further ones
_NEAR = 0.15  # of log2 of the step: how far a start is trusted
_EXACT = 0.002  # of log2 of the step; the bits change by as many thousandths
_BISECTIONS = 14


def mean_shift(count: int) -> int:
    """How many times the step is halved for the means of `count` images each: the finer, the more images share one."""
    return (count.bit_length() - 1) // 4


class Limits(NamedTuple):
    """Where rounding changes, in steps, [C, P] each: the magnitude above which a code is not 0, and how far above
    m - 1 a magnitude becomes m, for m > 1.
    """

    first: Tensor
    further: Tensor

    @classmethod
    def of(cls, spread: Tensor) -> Limits:
        """The limits for coefficients whose magnitudes have the mean `spread`, in steps.

        At a limit both codes cost the same, squared error plus `BIT` times the code length of a Laplace distribution.
        So rare codes are rounded to zero sooner than frequent ones.
        """
        spread = spread.clamp(_NARROWEST, LARGEST)
        further = BIT / 2 / (math.log(2) * spread)  # what a further unit adds is 1 / (spread ln 2) bits
        rho = (-_MEANS_LIMIT / spread).exp()  # the share of codes that are not 0
        # expm1, for 1 - exp(-x) of a small x would be rounding, another one on each kind of CPU.
        zero, last = -(-_MEANS_LIMIT / spread).expm1(), -(-1 / spread).expm1()
        one = (zero / (rho * last / 2)).log2()  # bits that a code of 1 has more than a 0
        return cls((0.5 + BIT / 2 * one).clamp(0.5, _WIDEST[0]), (0.5 + further).clamp_max(_WIDEST[1]))

    def magnitudes(self, sizes: Tensor) -> Tensor:
        """The magnitudes of the codes of sizes [C, n, P] in steps."""
        first, further = self.first[:, None], self.further[:, None]
        return (sizes + (1 - further)).floor_().clamp_min_(1).mul_(sizes >= first)


class Rounding(NamedTuple):
    """How the coefficients of each class and position are rounded: to a mean and whole steps from it.

    step [C]; means, whole numbers [C, P]; centres, their values [C, P].
    """

    step: Tensor
    means: Tensor
    centres: Tensor
    limits: Limits

    @classmethod
    def of(cls, coefficients: Tensor, step: Tensor) -> Rounding:
        """The rounding of coefficients [C, n, P] with the steps [C]."""
        means, centres = means_of(coefficients, step)
        sizes = (coefficients - centres[:, None]).abs_().div_(step[:, None, None])
        return cls(step, means, centres, Limits.of(sizes.mean(dim=1)))

    def of_classes(self, classes: slice | Tensor) -> Rounding:
        """The rounding of some classes, or, by an index for each, of some images."""
        return Rounding(
            self.step[classes], self.means[classes], self.centres[classes],
            Limits(self.limits.first[classes], self.limits.further[classes]),
        )  # fmt: skip

    def codes(self, values: Tensor) -> Tensor:
        """The codes of coefficients [C, n, P], whole numbers of the same type."""
        scaled = (values - self.centres[:, None]) / self.step[:, None, None]
        return (self.limits.magnitudes(scaled.abs()) * scaled.sign()).clamp_(-LARGEST, LARGEST)

    def round(self, values: Tensor) -> Tensor:
        """Coefficients [C, n, P] as they would be stored."""
        return self.centres[:, None] + self.codes(values) * self.step[:, None, None]


def means_of(coefficients: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """(means [C, P], their values [C, P]) of coefficients [C, n, P] with the steps [C].

    A mean is a whole number of parts of the step, step / 2^shift with the shift that `mean_shift` gives.
    """
    part = step[:, None] / 2 ** mean_shift(coefficients.shape[1])
    scaled = coefficients.mean(dim=1) / part
    means = ((scaled.abs() + (1 - _MEANS_LIMIT)).floor() * scaled.sign()).clamp(-LARGEST, LARGEST)
    return means, means * part


def codes_of(coefficients: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """(means [C, P], codes [C, n, P]), whole numbers, of coefficients [C, n, P] with the steps [C]."""
    rounding = Rounding.of(coefficients, step)
    return rounding.means, rounding.codes(coefficients)


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
    sizes = centred.abs().div_(step[:, None, None])
    sizes = Limits.of(sizes.mean(dim=1)).magnitudes(sizes)
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
