"""Checks images that are mapped from a file, part by part, when they are first used."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.system.errors import InputError

PART_BYTES = 1 << 22  # about this much is checked at a time


def rows_per_part(row_bytes: int) -> int:
    """How many rows of this size are checked together."""
    return max(1, PART_BYTES // max(1, row_bytes))


class PartChecksums:
    """Computes the CRC-32 of each part of a tensor whose rows come piece by piece."""

    def __init__(self) -> None:
        self._checksums: list[int] = []
        self._waiting = 0  # rows in the last part, which is not complete

    def update(self, rows: np.ndarray) -> None:
        """Add contiguous uint8 rows [B, ...]."""
        size = rows_per_part(rows[0].nbytes)
        while len(rows):
            if self._waiting == 0:
                self._checksums.append(0)
            some = rows[: size - self._waiting]
            self._checksums[-1] = zlib.crc32(np.ascontiguousarray(some).data, self._checksums[-1])
            self._waiting = (self._waiting + len(some)) % size
            rows = rows[len(some) :]

    def as_rows(self) -> np.ndarray:
        """The checksums of the M parts, uint8 [M, 4], little-endian."""
        return np.array(self._checksums, dtype="<u4").view(np.uint8).reshape(-1, 4)


class PartCheck:
    """Compares each part of mapped images [N, ...] with its checksum when one of its rows is first used.

    checksums: `PartChecksums.as_rows`. file: the file, for the message. Raises ValueError for another number of parts.
    """

    def __init__(self, images: Tensor, checksums: Tensor, file: Path) -> None:
        self._images, self._file = images, file
        self._size = rows_per_part(images[0].numel() * images.element_size())
        self._expected = checksums.contiguous().numpy().view("<u4").ravel()
        if len(self._expected) != -(-len(images) // self._size):
            raise ValueError(f"{len(self._expected)} checksums for {len(images)} images")
        self._checked = torch.zeros(len(self._expected), dtype=torch.bool)

    def check(self, indices: Tensor | slice) -> None:
        """Check the parts of these rows that have not been checked before.

        indices: int64 of any shape, or a slice. Raises InputError for a part that differs from what was written.
        """
        if isinstance(indices, slice):
            indices = torch.arange(len(self._images))[indices]
        parts = torch.zeros_like(self._checked)
        parts[(indices.cpu().flatten() % len(self._images)) // self._size] = True
        for part in (parts & ~self._checked).nonzero().flatten().tolist():
            rows = self._images[part * self._size : (part + 1) * self._size]
            if zlib.crc32(rows.contiguous().numpy().data) != self._expected[part]:
                raise InputError(
                    f"{self._file} is damaged (images {part * self._size} and following): remove it, "
                    "and the images are decoded again"
                )
            self._checked[part] = True
