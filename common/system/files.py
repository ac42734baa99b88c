"""Files that a reader never sees half written."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, Any

import torch

from common.system.errors import InputError

# What zipfile and torch.load raise for files that are not whole, or that hold more than tensors and plain values.
UNREADABLE = (
    OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, TypeError,
    AttributeError, pickle.UnpicklingError,
)  # fmt: skip


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)`, flush to disk, rename to `path`: afterwards `path` is the old file or the whole new one.

    Raises InputError where the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or free space"
        ) from error
    finally:
        with suppress(OSError):  # nothing was left behind, or the folder itself is unusable: the error above says so
            temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; a NaN or infinity raises ValueError, since JSON has none."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows that share their keys as CSV with a header, atomically."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def take_lock(file: IO[str]) -> bool:
    """Lock an open file for this process, until it is closed; False, at once, where another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def torch_bytes(content: Any) -> memoryview:
    """What `torch.save` writes, in memory: a full disk then fails as for any other file, with an OSError."""
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _fsync_folder(folder: Path) -> None:
    # The rename itself is only durable once the folder's entry is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
