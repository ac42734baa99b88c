"""The probabilities of codes as integers, the same on every machine: TABLES tables with codes -L..L, in 1 / 2^24.

A code q is 0 with probability 1 - rho, else +m or -m with rho / 2 (1 - theta) theta^(m - 1) each. Table i has the odds
rho / (1 - rho) = 2^((i - 17) / 2), in fixed point (docs/format.md); theta follows from rho as measured on coefficients
of real images, whose few large values are larger than those of a Laplace distribution. Table 0 is that of a
coefficient that is always zero, which takes no bits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TABLES = 44
LARGEST = 1 << 14
"""The largest magnitude of a code, and the support of the last table."""
PRECISION = 24
_ONE = 1 << 40  # 1 in fixed point
_ROOT = 1554944255988  # sqrt(2) in fixed point, rounded
_SMALLEST_SUPPORT = 15


@lru_cache(maxsize=1)
def _magnitudes() -> tuple[list[int], ...]:
    """For each table from 1 the counts f_1 .. f_L of one sign; 2^24 less twice their sum is the count of zero."""
    return tuple(_counts(*_odds(i)) for i in range(1, TABLES))


def _odds(i: int) -> tuple[int, int]:
    """(rho, theta) of table i, in fixed point."""
    half, odd = divmod(i - 17, 2)
    odds = _ROOT if odd else _ONE
    odds = odds << half if half >= 0 else odds >> -half
    rho = odds * _ONE // (_ONE + odds)
    square = rho * rho // _ONE
    return rho, square * (3 * _ONE + rho) // (4 * _ONE) + (_ONE - rho) // 64


def _counts(rho: int, theta: int) -> list[int]:
    counts: list[int] = []
    weight = rho * (_ONE - theta) // (2 * _ONE)
    while len(counts) < LARGEST and (len(counts) < _SMALLEST_SUPPORT or weight >> (40 - PRECISION)):
        counts.append(max(1, weight >> (40 - PRECISION)))
        weight = weight * theta // _ONE
    return counts


@lru_cache(maxsize=TABLES)
def counts(i: int) -> np.ndarray:
    """The counts of the codes -L..L of table i >= 1, which add up to 2^24: int64 [2 L + 1]."""
    one_sided = np.array(_magnitudes()[i - 1])
    zero = (1 << PRECISION) - 2 * one_sided.sum()
    return np.concatenate([one_sided[::-1], [zero], one_sided])


class Lengths(NamedTuple):
    """What each table says of codes, float64 [TABLES] each, in bits; table 0 has zeros and no support."""

    zero: Tensor
    """the length of a zero"""
    one: Tensor
    """the length of +1 or -1"""
    more: Tensor
    """what each further unit of magnitude adds"""
    support: Tensor
    """L, the largest magnitude"""


@lru_cache(maxsize=1)
def lengths() -> Lengths:
    """The lengths of codes by table. From the second unit on they are those of the geometric part alone."""
    rows = [(0.0, 0.0, 0.0, 0.0)]
    for i in range(1, TABLES):
        middle, both = len(counts(i)) // 2, -np.log2(counts(i) / 2**PRECISION)
        rows.append((both[middle], both[middle + 1], -np.log2(_odds(i)[1] / _ONE), float(middle)))
    return Lengths(*torch.tensor(rows, dtype=torch.float64, device="cpu").T)


def exact_bits(codes: np.ndarray, tables: np.ndarray) -> float:
    """The ideal length in bits of codes int [N] under the tables int [N], from the integer counts."""
    total = 0.0
    for i in np.unique(tables[tables > 0]):
        both = -np.log2(counts(int(i)) / 2**PRECISION)
        total += float(both[codes[tables == i] + len(both) // 2].sum())
    return total
