"""Cache files for slow computations on a dataset, so that only the first start has to compute them.

Examples are the decoded images of a folder and fitted whitenings. A cache file is either complete or absent, and its
content is checked when it is read. All cache files are safetensors. Content that is too large for memory is written
piece by piece, and is mapped into memory instead of being read.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.disk.listing import matching
from common.disk.paths import cache_root, is_file
from common.images.mapped import PartChecksums
from common.system.errors import InputError
from common.system.files import UNREADABLE, opened_tensors, write_atomically

Stored = tuple[dict[str, Tensor], dict[str, Any]]
"""The tensors of a cache file by name, and its details as JSON values."""

VERIFY = "verify_"
"""The start of the names of tensors that hold the checksums of another one's parts."""
_HEADER = 4096  # bytes before the data of a file that is written piece by piece: one page, so that rows are aligned
_LONGEST_HEADER = 1 << 20  # bytes; a file that claims a longer header is not a cache file
_ABANDONED = 3600.0  # seconds without a change after which an unfinished file is removed


def named_file(kind: str, names: Sequence[str | float | None]) -> Path:
    """The path of the cache file that `kind` and `names` identify, in the folder `paths.cache_root`."""
    key = hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=10).hexdigest()
    return cache_root() / f"{kind}-{key}.safetensors"


def read(file: Path, fingerprint: str, map_above: int | None = None) -> Stored | None:
    """Read a cache file; None if it is missing, damaged, or was written with another fingerprint.

    A file of more than `map_above` bytes is mapped: its tensors are read-only and take no memory of their own. To
    compare the checksum of a mapped file would read everything before the first image is used, minutes for tens of GB.
    So its tensors come with checksums of their parts, `verify_NAME`, to be compared when a part is first used (see
    `mapped.PartCheck`). A seal covers the rest of every file: fingerprint, details, names, types and shapes.
    """
    if not is_file(file):
        return None
    try:
        if map_above is not None and file.stat().st_size > map_above:
            tensors, metadata = _map(file)
            if metadata["fingerprint"] != fingerprint or "seal" not in metadata:  # a file of an older version has none
                return None
            if metadata["seal"] == _seal(metadata, tensors):
                return tensors, json.loads(metadata["facts"])
            raise ValueError("wrong seal")
        with opened_tensors(file) as stored:
            metadata = stored.metadata() or {}
            if metadata.get("fingerprint") != fingerprint or "seal" not in metadata:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        if metadata["checksum"] == _checksum(tensors) and metadata["seal"] == _seal(metadata, tensors):
            whole = {name: tensor for name, tensor in tensors.items() if not name.startswith(VERIFY)}
            return whole, json.loads(metadata["facts"])
        reason = "wrong checksum"
    except (*UNREADABLE, RecursionError) as error:
        reason = str(error)
    logging.getLogger(__name__).warning("%s is damaged (%s): making it again", file, reason)
    return None


def write(file: Path, fingerprint: str, tensors: dict[str, Tensor], details: dict[str, Any]) -> None:
    """Write a cache file atomically, from tensors and details as JSON values; if that fails, only warns."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"fingerprint": fingerprint, "checksum": _checksum(tensors), "facts": json.dumps(details)}
    metadata["seal"] = _seal(metadata, tensors)
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
    """Write a cache file piece by piece, without holding its content in memory, and return it mapped as in `read`.

    parts: for each tensor, by name, an iterable of pieces; a piece is some uint8 rows `[B, ...]`. A tensor without
    pieces is left out. The names must be in sorted order, because the checksum depends on the order.
    details: called with all tensors after the last piece, to get the details.
    size: the expected number of bytes; the disk must have that much free space.
    Raises `InputError` if the file cannot be written.
    """
    assert list(parts) == sorted(parts)
    stored: list[Stored] = []

    def write_pieces(temporary: Path) -> None:
        _remove_abandoned(file)
        if shutil.disk_usage(temporary.parent).free < size:  # fail immediately, not after an hour of decoding
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {size / 1e9:.1f} GB are needed")
        header: dict[str, Any] = {}
        checksum = begin = end = 0
        # Written to a stream, because writing through a mapping would kill the process by a signal if the disk is full.
        with temporary.open("wb") as stream:
            stream.write(b" " * _HEADER)
            checks = {name: PartChecksums() for name in parts}
            verifying = {f"{VERIFY}{name}": _rows_of(check) for name, check in checks.items()}
            for name, pieces in {**parts, **verifying}.items():
                rows, shape = 0, list[int]()
                for piece in map(np.ascontiguousarray, pieces):
                    stream.write(piece.data)
                    if name in checks:
                        checks[name].update(piece)
                    checksum = zlib.crc32(piece.data, checksum)
                    rows, shape, end = rows + len(piece), list(piece.shape[1:]), end + piece.nbytes
                if rows:
                    header[name] = {"dtype": "U8", "shape": [rows, *shape], "data_offsets": [begin, end]}
                begin = end
            stream.flush()
            written = _tensors(_mapped(temporary), header, _HEADER)
            metadata = {"fingerprint": fingerprint, "checksum": str(checksum), "facts": json.dumps(details(written))}
            header["__metadata__"] = {**metadata, "seal": _seal(metadata, written)}
            stream.seek(0)
            stream.write((_HEADER - 8).to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER - 8))
            if stream.tell() != _HEADER:
                raise ValueError(f"a header of {stream.tell()} bytes is too long")
        tensors, metadata = _map(temporary)  # mapped before the renaming: later, another process may replace the file
        stored.append((tensors, json.loads(metadata["facts"])))

    write_atomically(file, write_pieces)
    return stored[0]


def _map(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map a file: returns its uint8 tensors, which are read-only and loaded on use, and its metadata.

    Raises `ValueError` or another error if the file is not a complete cache file.
    """
    # safetensors itself makes private writable mappings, which Linux refuses if they exceed the machine's memory.
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
            warnings.simplefilter("ignore", UserWarning)  # a warning that the array is read-only; nothing writes to it
            tensors[name] = torch.from_numpy(array)
    return tensors


def _remove_abandoned(file: Path) -> None:
    """Remove the unfinished files that killed processes have left; each can be as large as `file` itself."""
    for leftover in matching(file.parent, f".{file.name}.*.tmp"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > _ABANDONED:
                leftover.unlink()


def _rows_of(checks: PartChecksums) -> Iterator[np.ndarray]:
    """The checksums of a tensor, once all of its pieces have been written; nothing for a tensor without pieces."""
    rows = checks.as_rows()
    if len(rows):
        yield rows


def _seal(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A hash of everything in a cache file but the values of its tensors."""
    shapes = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in sorted(tensors.items())}
    told = [metadata["fingerprint"], metadata["checksum"], metadata["facts"], shapes]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=10).hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().numpy().data, checksum)
    return str(checksum)
