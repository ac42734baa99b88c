"""Files that keep what takes long to make from a dataset, so that only the first start has to make it.

Decoded images of a folder are one such thing, fitted whitenings another. A file is whole or not there, and what it
holds is checked when it is read. All are safetensors; what is too large for memory is written piece by piece, and
mapped into memory instead of read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import mmap
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.system.errors import InputError
from common.system.files import write_atomically

Stored = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by name, and details as JSON values."""

_HEADER = 4096  # bytes before the data of a file that is written piece by piece; a page, so that rows are aligned
_LONGEST_HEADER = 1 << 20  # bytes; what claims more is not one of these files
_ABANDONED = 3600.0  # seconds after which an unfinished file that nobody writes to is removed


def named_file(kind: str, names: Sequence[str | float | None]) -> Path:
    """Where a `kind` of thing told apart by `names` belongs: in $FRED_CACHE, $XDG_CACHE_HOME/fred or ~/.cache/fred."""
    if chosen := os.environ.get("FRED_CACHE"):
        root = Path(chosen).expanduser()
    elif base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base) / "fred"
    else:
        root = Path.home() / ".cache" / "fred"
    key = hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=10).hexdigest()
    return root / f"{kind}-{key}.safetensors"


def read(file: Path, fingerprint: str, map_above: int | None = None) -> Stored | None:
    """The tensors and the details that were stored, or None if there are none for `fingerprint`, or damaged ones.

    A file of more than `map_above` bytes is mapped: its tensors are read-only and take no memory of their own. Then
    only its length is checked. To compare the checksum, as is done with every other file, would read it all before
    the first image is used, minutes for tens of GB; and as a file gets its name only when it is whole and on the disk,
    the checksum could only tell of a failing disk.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        if map_above is not None and file.stat().st_size > map_above:
            tensors, metadata = _map(file)
            return (tensors, json.loads(metadata["facts"])) if metadata["fingerprint"] == fingerprint else None
        with safe_open(str(file), framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        if metadata["checksum"] == _checksum(tensors):
            return tensors, json.loads(metadata["facts"])
        reason = "wrong checksum"
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = str(error)
    logging.getLogger(__name__).warning("%s is damaged (%s): making it anew", file, reason)
    return None


def write(file: Path, fingerprint: str, tensors: dict[str, Tensor], details: dict[str, Any]) -> None:
    """Store tensors and JSON details, whole or not at all; where that is impossible, warn and go on."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"fingerprint": fingerprint, "checksum": _checksum(tensors), "facts": json.dumps(details)}
    try:
        write_atomically(file, lambda temporary: save_file(tensors, temporary, metadata))
    except (InputError, SafetensorError) as error:
        logging.getLogger(__name__).warning("what was made cannot be kept for the next start: %s", error)


def write_in_pieces(
    file: Path,
    fingerprint: str,
    parts: Mapping[str, Iterable[np.ndarray]],
    details: Callable[[Mapping[str, Tensor]], dict[str, Any]],
    size: int,
) -> Stored:
    """Store what `write` would, without ever holding it in memory, and map it as `read` does.

    parts: for each tensor its uint8 rows `[B, ...]`, piece by piece; a part of no piece is left out. The names must be
    in sorted order, which is that of the checksum. details: called with all tensors, after the last piece. size: bytes
    expected.
    Raises `InputError` where the file cannot be written.
    """
    assert list(parts) == sorted(parts)
    stored: list[Stored] = []

    def write_pieces(temporary: Path) -> None:
        _remove_abandoned(file)
        if shutil.disk_usage(temporary.parent).free < size:  # at once, not after an hour of decoding
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {size / 1e9:.1f} GB are needed")
        header: dict[str, Any] = {}
        checksum = begin = end = 0
        # Not through a mapping: on a full disk that would end the process by a signal.
        with temporary.open("wb") as stream:
            stream.write(b" " * _HEADER)
            for name, pieces in parts.items():
                rows, shape = 0, list[int]()
                for piece in pieces:
                    content = np.ascontiguousarray(piece).data
                    stream.write(content)
                    checksum = zlib.crc32(content, checksum)
                    rows, shape, end = rows + len(piece), list(piece.shape[1:]), end + piece.nbytes
                if rows:
                    header[name] = {"dtype": "U8", "shape": [rows, *shape], "data_offsets": [begin, end]}
                begin = end
            stream.flush()
            kept = json.dumps(details(_tensors(_mapped(temporary), header, _HEADER)))
            header["__metadata__"] = {"fingerprint": fingerprint, "checksum": str(checksum), "facts": kept}
            stream.seek(0)
            stream.write((_HEADER - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER - 8))
            if stream.tell() != _HEADER:
                raise ValueError(f"a header of {stream.tell()} bytes is too long")
        tensors, metadata = _map(temporary)  # before it has its name, under which another process may replace it
        stored.append((tensors, json.loads(metadata["facts"])))

    write_atomically(file, write_pieces)
    return stored[0]


def _map(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The uint8 tensors of a file, read-only and read as they are used, and its metadata. Raises `ValueError`, ..."""
    # Not by safetensors, whose tensors are private and writable mappings: Linux refuses one that exceeds its memory.
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError("it has no header")
        header = json.loads(stream.read(length))
    content = _mapped(file)
    metadata = header.pop("__metadata__")
    start = 8 + length
    if len(content) != start + max(entry["data_offsets"][1] for entry in header.values()):
        raise ValueError(f"it has {len(content)} bytes, which is not what its header says")
    return _tensors(content, header, start), metadata


def _mapped(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _tensors(content: mmap.mmap, header: dict[str, Any], start: int) -> dict[str, Tensor]:
    """The tensors of a header (name, dtype, shape, offsets), read-only. Raises `ValueError` for others than uint8."""
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "U8":
            raise ValueError(f"{name} is {entry['dtype']}")
        array = np.frombuffer(content, np.uint8, end - begin, start + begin).reshape(entry["shape"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it must not be written to; nothing writes to images
            tensors[name] = torch.from_numpy(array)
    return tensors


def _remove_abandoned(file: Path) -> None:
    """Remove what killed processes have left of `file`, as large as it would have been."""
    for leftover in file.parent.glob(f".{file.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED:
                leftover.unlink()


def _checksum(tensors: dict[str, Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().numpy().data, checksum)
    return str(checksum)
