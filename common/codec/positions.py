"""Kept positions as bytes: a bitmap per class, or the differences of ascending numbers, whichever is smaller."""

from __future__ import annotations

import struct

import numpy as np

from common.codec.planes import Planes
from common.system.errors import InputError

_HEAD = struct.Struct(
    "<BBI"
)  # whether over all channels; bytes of a difference, or 0 for a bitmap; positions per class
_WIDTHS = (1, 2, 4)


def positions_bytes(positions: np.ndarray | None, joint: bool, limit: int, classes: int = 0) -> bytes:
    """The bytes of positions int [C, K], ascending numbers below `limit` for each class.

    A difference is the number of positions that are skipped. None: as many bytes as those of any positions of `classes`
    classes take at most.
    """
    if positions is None:
        return bytes(_HEAD.size + classes * (-(-limit // 8)))
    used = np.zeros((len(positions), limit), dtype=bool)
    np.put_along_axis(used, positions.astype(np.int64), True, axis=1)
    bitmap = np.packbits(used, axis=1, bitorder="little").tobytes()
    skipped = np.diff(positions.astype(np.int64), axis=1, prepend=-1) - 1
    width = next(width for width in _WIDTHS if skipped.max() < 1 << 8 * width)
    if width * skipped.size >= len(bitmap):
        return _HEAD.pack(joint, 0, positions.shape[1]) + bitmap
    return _HEAD.pack(joint, width, positions.shape[1]) + skipped.astype(f"<u{width}").tobytes()


def read_positions(data: bytes, classes: int, planes: Planes) -> tuple[np.ndarray, bool, bytes]:
    """(positions int64 [C, K], whether they are over all channels, the bytes after them). Raises InputError."""
    if len(data) < _HEAD.size:
        raise _damaged()
    joint, width, count = _HEAD.unpack_from(data)
    rest, limit = data[_HEAD.size :], planes.size if joint else planes.d
    if joint > 1 or width not in (0, *_WIDTHS) or not 1 <= count <= limit:
        raise _damaged()
    length = classes * (count * width or -(-limit // 8))
    if len(rest) < length:
        raise _damaged()
    if width:
        skipped = np.frombuffer(rest[:length], dtype=f"<u{width}").astype(np.int64).reshape(classes, count)
        positions = (skipped + 1).cumsum(axis=1) - 1
        if positions.max() >= limit:
            raise _damaged()
        return positions, bool(joint), rest[length:]
    rows = np.frombuffer(rest[:length], dtype=np.uint8).reshape(classes, -1)
    used = np.unpackbits(rows, axis=1, bitorder="little")
    if (used.sum(axis=1) != count).any() or used[:, limit:].any():
        raise _damaged()
    return np.nonzero(used)[1].reshape(classes, count), bool(joint), rest[length:]


def _damaged() -> InputError:
    return InputError("the kept positions in the file are damaged: copy the file again")
