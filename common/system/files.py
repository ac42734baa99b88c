"""Files that a reader never sees half written."""

from __future__ import annotations

import csv
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout

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


def table_beside(path: Path) -> Path:
    """The CSV file that belongs to a JSON file: x.json gives x.csv, and any other name has .csv appended.

    What follows another dot is a part of the name: the tables of b.seed0 and b.seed1 are two files.
    """
    return path.with_suffix(".csv") if path.suffix.lower() == ".json" else path.with_name(f"{path.name}.csv")


def check_not_read(flag: str, written: Sequence[Path], read: Sequence[Path | str | None]) -> None:
    """Raises InputError where a file that `flag` would write is one that the same command reads."""
    for path in written:
        for source in read:
            if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
                raise InputError(f"{flag} would write {path} over {source}, which is read: give another")


def take_lock(path: Path, called: str, flag: str) -> BaseFileLock | None:
    """Lock the file `path`, making it and its folder; None, at once, where another process holds the lock.

    The lock holds until its `release()`, or until the process ends, however it ends. Do not enter it with `with`, which
    would take it a second time. Raises InputError where the file cannot be written: `called` is what its folder is
    called ("the run folder"), `flag` the one that names another ("--save_path").
    """
    lock = FileLock(path, thread_local=False)  # whichever thread releases it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:  # an OSError, too
        return None
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"cannot write to {called} {path.parent}: {reason}; choose another {flag}") from error
    return lock


def torch_bytes(content: Any) -> memoryview:
    """What `torch.save` writes, in memory: a full disk then fails as for any other file, with an OSError."""
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _fsync_folder(folder: Path) -> None:
    # The rename itself is only durable once the folder's entry is.
    if sys.platform == "win32":
        return  # where a folder cannot be opened, and NTFS keeps a journal of its entries
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
