"""The entropy coder: codes under tables to 32-bit words, and back (range coding, library constriction).

Codes are coded in the order of their tables, so a set takes one call per table. The library turns the floating-point
numbers that it is given into counts of 2^-24: count = 1 + number, if the numbers add up to 2^24 less their number.
Ours are such whole numbers, so no rounding is involved, and every machine decodes the same codes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import constriction
import numpy as np

from common.codec.tables import TABLES, counts
from common.system.errors import InputError

_PART = 1 << 20  # codes that are read at a time


class Writer:
    """Collects codes. `words` are the coded ones."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, codes: np.ndarray, tables: np.ndarray) -> None:
        """Add the codes int [N, ...] under the tables int [N]; each is within its table's support."""
        for i, rows in _by_table(tables):
            self._coder.encode(codes[rows].ravel().astype(np.int32) + len(counts(i)) // 2, _model(i))

    @property
    def bits(self) -> int:
        """The bits so far, but for rounding up to whole words."""
        return int(self._coder.num_bits())

    @property
    def words(self) -> np.ndarray:
        """The words so far, uint32."""
        return self._coder.get_compressed()


class Reader:
    """Gives back codes from words uint32, in the order in which `Writer` took them."""

    def __init__(self, words: np.ndarray) -> None:
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def take(self, tables: np.ndarray, each: int = 1) -> np.ndarray:
        """The codes int16 [N, each] under the tables int [N]. Raises InputError for words that no codes have."""
        codes = np.zeros((len(tables), each), dtype=np.int16)
        self.fill(codes, tables)
        return codes

    def fill(self, codes: np.ndarray, tables: np.ndarray) -> None:
        """As `take`, into int16 [N, each]; a few codes at a time, since the decoder's own take more memory."""
        each = codes.shape[1]
        try:
            for i in range(1, TABLES):
                for first in range(0, len(tables), _PART):
                    rows = first + np.flatnonzero(tables[first : first + _PART] == i)
                    for part in range(0, len(rows), max(1, _PART // each)):
                        some = rows[part : part + max(1, _PART // each)]
                        read = self._coder.decode(_model(i), len(some) * each) - len(counts(i)) // 2
                        codes[some] = read.reshape(-1, each)
        except (AssertionError, ValueError) as error:
            raise InputError(f"the coded part is damaged ({error}): copy the file again") from error

    def check_end(self) -> None:
        """Raise InputError if there are more words than the codes so far need."""
        if not self._coder.maybe_exhausted():
            raise InputError("the coded part goes on after its last code: it is damaged, copy the file again")


def _by_table(tables: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(table, rows of the codes under it, ascending) for each table from 1 that is used, ascending."""
    order = np.argsort(tables, kind="stable")
    ends = np.searchsorted(tables[order], np.arange(1, TABLES + 1))
    spans = zip(range(1, TABLES), ends[:-1], ends[1:], strict=True)
    return [(i, order[first:last]) for i, first, last in spans if last > first]


@lru_cache(maxsize=TABLES)
def _model(i: int) -> Any:
    return constriction.stream.model.Categorical((counts(i) - 1).astype(np.float64), perfect=False)
