"""Kept positions as bytes: a bitmap per class, or ascending numbers by their differences, whichever is smaller."""

from __future__ import annotations

import struct

import numpy as np

from common.codec.planes import Planes
from common.system.errors import InputError

_HEAD = struct.Struct("<BI")  # 1 if they are over all channels, + 2 if they are differences; positions per class
_JOINT, _AS_DIFFERENCES = 1, 2


def positions_bytes(positions: np.ndarray | None, joint: bool, limit: int, classes: int = 0, count: int = 0) -> bytes:
    """The bytes of positions int [C, K], ascending numbers below `limit` for each class.

    None: as many bytes as those of K = `count` positions of `classes` classes take at most.
    """
    if positions is None:
        return bytes(_HEAD.size + classes * (-(-limit // 8)))
    used = np.zeros((len(positions), limit), dtype=bool)
    np.put_along_axis(used, positions.astype(np.int64), True, axis=1)
    bitmap = np.packbits(used, axis=1, bitorder="little").tobytes()
    steps = _seven_bits(np.diff(positions.astype(np.int64), axis=1, prepend=-1) - 1)
    flags = _JOINT * joint + _AS_DIFFERENCES * (len(steps) < len(bitmap))
    return _HEAD.pack(flags, positions.shape[1]) + min(bitmap, steps, key=len)


def read_positions(data: bytes, classes: int, planes: Planes) -> tuple[np.ndarray, bool, bytes]:
    """(positions int64 [C, K], whether they are over all channels, the bytes after them). Raises InputError."""
    if len(data) < _HEAD.size:
        raise _damaged()
    flags, count = _HEAD.unpack_from(data)
    joint, rest = bool(flags & _JOINT), data[_HEAD.size :]
    limit = planes.size if joint else planes.d
    if flags > _JOINT + _AS_DIFFERENCES or not 1 <= count <= limit:
        raise _damaged()
    if flags & _AS_DIFFERENCES:
        numbers, length = _read_seven_bits(rest, classes * count)
        positions = (numbers.reshape(classes, count) + 1).cumsum(axis=1) - 1
        if positions.max() >= limit:
            raise _damaged()
        return positions, joint, rest[length:]
    width = -(-limit // 8)
    if len(rest) < classes * width:
        raise _damaged()
    rows = np.frombuffer(rest[: classes * width], dtype=np.uint8).reshape(classes, width)
    used = np.unpackbits(rows, axis=1, bitorder="little")
    if (used.sum(axis=1) != count).any() or used[:, limit:].any():
        raise _damaged()
    return np.nonzero(used)[1].reshape(classes, count), joint, rest[classes * width :]


def _seven_bits(numbers: np.ndarray) -> bytes:
    """Numbers >= 0 with seven bits in a byte, the lowest first; a byte above 127 says that more follow (LEB128)."""
    parts = (numbers.ravel()[:, None] >> np.arange(0, 35, 7)) & 127  # [N, 5]
    length = np.maximum(1, 5 - np.argmax(parts[:, ::-1] > 0, axis=1) - 5 * ~parts.any(axis=1))
    place = np.arange(5)
    parts = parts | (128 * (place < length[:, None] - 1))
    return parts[place < length[:, None]].astype(np.uint8).tobytes()


def _read_seven_bits(data: bytes, count: int) -> tuple[np.ndarray, int]:
    """The first `count` numbers int64, and how many bytes they take. Raises InputError."""
    found = np.frombuffer(data[: 5 * count], dtype=np.uint8)
    ends = np.nonzero(found < 128)[0][:count]
    if len(ends) < count:
        raise _damaged()
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= 5:
        raise _damaged()
    length = int(ends[-1]) + 1
    within = np.arange(length) - np.repeat(starts, ends - starts + 1)
    parts = (found[:length].astype(np.int64) & 127) << (7 * within)
    return np.add.reduceat(parts, starts), length


def _damaged() -> InputError:
    return InputError("the kept positions in the file are damaged: copy the file again")
