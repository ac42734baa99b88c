"""Codes of a set, [C, n, P], with their means and tables as one coded stream.

The tables are coded, too: those of all classes together as one row of P (a base, their median), each class by its
differences from it. The table of a difference depends on the base, that of a mean on the table of the mean's codes;
these few are stated first. Neighbours in `Planes.scan` have similar bases, so the base is coded by its differences.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.codec.coder import Reader, Writer
from common.codec.rate import Sums, shortest
from common.codec.tables import PRECISION, TABLES, counts
from common.system.errors import InputError

_FIXED = 24
"""The table of the numbers of tables, which are stated as differences: up to TABLES in either direction."""
_NEAREST = 15  # the differences that the tables with the smallest support hold
_FEW = 64  # images; the tables of more are nearer to 0 where nearly all codes are zero
_ROUNDS = 6  # choosing tables for codes, and tables for the differences of those: after six nothing is left to gain


class Stream(NamedTuple):
    """What is coded: codes and means int16, [C, n, P] and [C, P]."""

    codes: np.ndarray
    means: np.ndarray


class Parts(NamedTuple):
    """The bits of a stream by what they say."""

    base: int
    tables: int
    means: int
    codes: int


def write(stream: Stream, scan: np.ndarray) -> tuple[np.ndarray, Parts]:
    """The words uint32 of a stream, and what their bits are for. scan: see `Planes.scan`, int64 [P]."""
    base, tables, of_base, of_tables = _choose(torch.from_numpy(stream.codes), scan)
    of_means = _contexts(stream.means[:, scan], tables[:, scan])
    writer, ends = Writer(), []
    _state(writer, np.array([of_base]))
    writer.put(np.diff(base[scan], prepend=0), np.full(len(scan), of_base))
    ends.append(writer.bits)
    _state(writer, of_tables)
    writer.put((tables - base)[:, scan].ravel(), of_tables[np.broadcast_to(base, tables.shape)[:, scan].ravel()])
    ends.append(writer.bits)
    _state(writer, of_means)
    writer.put(stream.means[:, scan].ravel(), of_means[tables[:, scan].ravel()])
    ends.append(writer.bits)
    used = tables > 0
    writer.put(stream.codes.transpose(0, 2, 1)[used], tables[used])
    ends.append(writer.bits)
    return writer.words, Parts(*(int(part) for part in np.diff(ends, prepend=0)))


def read(words: np.ndarray, shape: tuple[int, int, int], scan: np.ndarray) -> Stream:
    """The stream [C, n, P] = shape that `write` made words of. Raises InputError for words that it did not make."""
    classes, count, size = shape
    reader = Reader(words)
    base, tables = np.zeros(size, dtype=np.int8), np.zeros((classes, size), dtype=np.int8)
    of_base = _told(reader, 1)[0]
    base[scan] = _tables(_one(reader, np.full(size, of_base)).cumsum(dtype=np.int64))
    of_tables = _told(reader, int(base.max()) + 1)
    expected = np.tile(base[scan], classes)
    tables[:, scan] = _tables(expected + _one(reader, of_tables[expected])).reshape(classes, size)
    del expected
    of_means = _told(reader, int(tables.max()) + 1)
    means = np.zeros((classes, size), dtype=np.int16)
    means[:, scan] = _one(reader, of_means[tables[:, scan].ravel()]).reshape(classes, size)
    codes = np.zeros((classes, size, count), dtype=np.int16)
    reader.fill(codes.reshape(-1, count), tables.ravel())
    reader.check_end()
    return Stream(codes.transpose(0, 2, 1), means)


def chosen_tables(codes: Tensor) -> np.ndarray:
    """The tables int64 [C, P] under which `write` puts codes [C, n, P]."""
    return _choose(codes, np.arange(codes.shape[2]))[1]


def _state(writer: Writer, tables: np.ndarray) -> None:
    writer.put(np.diff(tables, prepend=0), np.full(len(tables), _FIXED))


def _told(reader: Reader, count: int) -> np.ndarray:
    return _tables(_one(reader, np.full(count, _FIXED)).cumsum(dtype=np.int64)).astype(np.int8)


def _one(reader: Reader, tables: np.ndarray) -> np.ndarray:
    return reader.take(tables)[:, 0]


def _tables(numbers: np.ndarray) -> np.ndarray:
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= TABLES):
        raise InputError("the coded part names a table that does not exist: it is damaged, copy the file again")
    return numbers


def _choose(codes: Tensor, scan: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """(base [P], tables [C, P], table of the base's differences, tables of the classes' differences by base).

    The tables with the fewest bits, those of the differences included: each depends on the other, so in turns. Where
    nearly all codes are zero, a table that is further than `_NEAREST` from a base of 0 makes every difference there
    longer, which no single class can mend; so the turns also start from tables that are no further.
    """
    sums = Sums.of(codes, 1)
    start = shortest(sums)[1]
    found = [_in_turns(sums, start)]
    if int(start.max()) > _NEAREST and codes.shape[1] < _FEW:
        found.append(_in_turns(sums, start.clamp_max(_NEAREST)))
    tables = min(found, key=lambda each: each[0])[1]
    base, of_tables = _differences(tables)
    of_base = _contexts(np.diff(base.numpy()[scan], prepend=0), np.zeros(len(scan), dtype=np.int64))
    return base.numpy(), tables.numpy(), int(of_base[0]), of_tables


def _in_turns(sums: Sums, tables: Tensor) -> tuple[float, Tensor]:
    """(bits of codes and differences, tables [C, P]) of codes with these sums [C, P], from the tables [C, P] on."""
    total = math.inf
    for _ in range(_ROUNDS):
        base, of_tables = _differences(tables)
        # Table 0 would forbid for good what no class has done so far.
        named = torch.from_numpy(of_tables).clamp_min(1)[base]  # [P]
        bits, tables = shortest(
            sums,
            lambda i, named=named, base=base: _difference_bits()[named, i - base + TABLES],  # type: ignore[misc]
        )
        total = float(bits.sum())
    return total, tables


def _differences(tables: Tensor) -> tuple[Tensor, np.ndarray]:
    """The base [P] of tables [C, P], and the table of the differences from it for each value of the base."""
    base = tables.median(dim=0).values
    return base, _contexts((tables - base).numpy(), base.expand_as(tables).numpy())


@lru_cache(maxsize=1)
def _difference_bits() -> Tensor:
    """The bits of a difference from -TABLES to TABLES under each table, float64 [TABLES, 2 TABLES + 1]."""
    bits = torch.full((TABLES, 2 * TABLES + 1), torch.inf, dtype=torch.float64, device="cpu")
    bits[0, TABLES] = 0
    for i in range(1, TABLES):
        told = -np.log2(counts(i) / 2**PRECISION)
        reach = min(len(told) // 2, TABLES)
        middle = slice(len(told) // 2 - reach, len(told) // 2 + reach + 1)
        bits[i, TABLES - reach : TABLES + reach + 1] = torch.from_numpy(told[middle])
    return bits


def _contexts(codes: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """The best table int64 for each context 0 .. the largest, of the codes [...] in their contexts [...].

    A context without codes has the table of the one before.
    """
    where = torch.from_numpy(np.ascontiguousarray(contexts)).flatten()
    sums = Sums.grouped(torch.from_numpy(codes.astype(np.int64)).flatten(), where, int(where.max()) + 1)
    tables = shortest(sums)[1].numpy()
    last = np.maximum.accumulate(np.where(sums.number.numpy() > 0, np.arange(len(tables)), 0))
    return tables[last]
