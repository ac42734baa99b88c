"""Code lengths by the model, for all classes and positions at once, and the tables of the shortest codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from common.codec.tables import TABLES, lengths


class Sums(NamedTuple):
    """What the length of codes depends on, [...] each: their number, how many are used, that is not zero, and the sum
    and the largest of their magnitudes.
    """

    number: Tensor
    used: Tensor
    magnitude: Tensor
    largest: Tensor

    @classmethod
    def of(cls, codes: Tensor, dim: int) -> Sums:
        """The sums of whole codes along an axis."""
        sizes = codes.abs()
        used = sizes.ne(0).sum(dim)
        return cls(torch.full_like(used, codes.shape[dim]), used, sizes.sum(dim), sizes.amax(dim))

    @classmethod
    def grouped(cls, codes: Tensor, groups: Tensor, count: int) -> Sums:
        """The sums [count] of whole codes by group: int64 [N] each."""
        sizes, zeros = codes.abs(), codes.new_zeros(count)
        return cls(
            zeros.index_add(0, groups, torch.ones_like(sizes)),
            zeros.index_add(0, groups, sizes.ne(0).long()),
            zeros.index_add(0, groups, sizes),
            zeros.scatter_reduce(0, groups, sizes, "amax"),
        )


def shortest(sums: Sums, more: Callable[[int], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """(bits, tables) [...]: the least length of codes with these sums under one table, and that table, int64.

    Codes that are all zero have table 0, and no length. A magnitude above every table's support has infinite length.
    more: the bits that it takes to name a table, [...], which are added to the length.
    """
    zeros, used = (sums.number - sums.used).double(), sums.used.double()
    further, largest = sums.magnitude.double() - used, sums.largest
    found = torch.full_like(zeros, torch.inf)
    tables = torch.full_like(zeros, TABLES - 1, dtype=torch.long)
    told = lengths()
    for i in range(TABLES):
        bits = zeros * told.zero[i] + used * told.one[i] + further * told.more[i]
        if more is not None:
            bits = bits + more(i)
        better = (bits < found) & (largest <= told.support[i])
        found = torch.where(better, bits, found)
        tables = torch.where(better, i, tables)
    return found, tables
