"""Writes files atomically, so that a reader never sees a half-written file, and reads them."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import pickle
import stat
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO, StringIO
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from common.system.errors import InputError

# What zipfile and torch.load raise for files that are incomplete, or that hold more than tensors and plain values.
UNREADABLE = (
    OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, TypeError,
    AttributeError, pickle.UnpicklingError,
)  # fmt: skip
"""The errors of `load_torch` for a file that cannot be read. `reason_of` says why in a few words."""
_ZIP = b"PK\x03\x04"  # the first bytes of a zip file, by which torch.load recognises one
_ZIP_FOLDER = 0x10  # attribute of a folder; torch.load would silently leave the entry's memory uninitialised
_ZIP_END = 22  # bytes of the end of a zip file, without a comment
_ZIP_MANY = 0xFFFF  # entries; stands for as many or more
_MOST_REPEATED = 1 << 28  # bytes that tensors of a file may have beyond those that it stores
_MOST_PACKED = 100  # bytes that arrays of a file may have for each of its own; photographs hardly reach 2
_BLOCK = 1 << 20  # bytes that are read at a time


def reason_of(error: Exception) -> str:
    """The first sentence of an error of UNREADABLE: torch goes on about how the file could be trusted."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]


def check_regular(path: Path, device: bool = False) -> None:
    """Raise OSError for a pipe, a socket or a device: to open or to read one may take for ever.

    device: whether a device may be, as for what is written. What is not there passes.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # to open it says what is wrong
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (device and stat.S_ISCHR(mode))):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file", str(path))


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that, at every moment, `path` is either the old file or the whole new file.

    Calls `write(temporary)` with a temporary path in the same folder, flushes that file to the disk and renames it to
    `path`. Raises InputError if the folder cannot be written, the disk is full, or `path` is a directory.
    """
    refuse_directory(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # either the file is gone, or the folder is unusable, which the error above reports
            temporary.unlink()


def check_writable(*paths: Path) -> None:
    """Raise InputError now if `write_atomically` could not write these files after a long computation.

    Leaves nothing behind, neither files nor folders.
    """
    for path in paths:
        refuse_directory(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        lacking: list[Path] = []
        try:
            lacking = [each for each in path.parents if not each.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            for remove in (temporary.unlink, *(each.rmdir for each in lacking)):
                with suppress(OSError):  # it was not made, or another process has put something there
                    remove()


def unwritable(path: Path, error: OSError) -> InputError:
    """The error to raise after a file could not be written: what is wrong, and the way out."""
    reason = "a file is in the place of its folder" if isinstance(error, FileExistsError) else error.strerror or error
    return InputError(f"cannot write {path}: {reason}; {_WAYS_OUT.get(error.errno or 0, 'choose another folder')}")


_WAYS_OUT = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free space or choose another folder",
    errno.EDQUOT: "free space or choose another folder",
}


def checksum(path: Path) -> str:
    """BLAKE2b of a file's bytes, as 40 hexadecimal digits. Raises OSError where the file cannot be read."""
    digest = hashlib.blake2b(digest_size=20)
    check_regular(path)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def json_checksum(content: Any) -> str:
    """BLAKE2b of JSON values, as 40 hexadecimal digits; the order of keys has no part in it."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=20).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. Raises ValueError for NaN and infinity, which JSON lacks."""
    text = json_text(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_text(content: Any, **how: Any) -> str:
    """JSON that UTF-8 can encode, with letters of every language as they are. how: arguments of json.dumps.

    The bytes of a file's name that are no UTF-8 are surrogates in Python, and become escapes here, from which a reader
    makes the same surrogates again.
    """
    return json.dumps(content, ensure_ascii=False, **how).encode("utf-8", "backslashreplace").decode("utf-8")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically. All rows must have the same keys, which become the header."""
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), "utf-8", "backslashreplace"))


def table_beside(path: Path) -> Path:
    """Return the path of the CSV file that belongs to a JSON file: x.csv for x.json, else the name with .csv appended.

    Other suffixes are part of the name, so b.seed0 and b.seed1 have two tables.
    """
    return path.with_suffix(".csv") if path.suffix.lower() == ".json" else path.with_name(f"{path.name}.csv")


def check_not_read(flag: str, written: Sequence[Path], read: Sequence[Path | str | None]) -> None:
    """Raise InputError if a file that the command writes because of `flag` is also a file that it reads."""
    for path in written:
        for source in read:
            if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
                raise InputError(f"{flag} would write {path} over {source}, which is read: give another")


@contextmanager
def opened_tensors(path: Path, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file, whose tensors are read one by one. framework: "pt" for tensors, "np" for arrays.

    Raises ValueError if the file is damaged, when it is opened or while it is read, and OSError if it cannot be opened.
    """
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with _name_in_utf_8(path) as name, safe_open(name, framework=framework) as stored:
            yield stored
    except SafetensorError as error:
        raise ValueError(str(error)) from error


@contextmanager
def _name_in_utf_8(path: Path) -> Iterator[str]:
    """A name of the file for libraries that take only UTF-8, which names on Linux need not be."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield f"/dev/fd/{file.fileno()}"
        return
    yield str(path)


def torch_bytes(content: Any) -> memoryview:
    """What `torch.save` would write, as bytes in memory.

    Writing these bytes to a full disk then raises an OSError, as for any other file.
    """
    buffer = BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def refuse_directory(path: Path) -> None:
    """Raise InputError if a file cannot be written because a directory has its name."""
    # A link to a directory is replaced like a file, and what it leads to stays.
    try:
        is_directory = path.is_dir() and not path.is_symlink()
    except OSError:  # a name too long, or a folder that may not be looked into: to write the file says so
        return
    if is_directory:
        raise InputError(f"cannot write {path}, which is a directory: remove that directory")


def load_torch(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """The content of a file of torch.save, on the CPU: tensors, numbers, text, and lists and dicts of them.

    allowed: other types and functions that the file may name, as `torch.serialization.safe_globals` takes them.
    Raises an error of UNREADABLE for a damaged file, for one that names anything else, which is never called, and for
    tensors that `check_tensors` refuses.
    """
    with torch.serialization.safe_globals(list(allowed)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of pickles that torch.save did not write; they are refused
        check_torch_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    check_tensors(content)
    return content


def check_tensors(content: Any) -> None:
    """Raise ValueError for tensors, anywhere in what torch.load returned, that are not plain numbers in the file.

    These are tensors without numbers (meta), sparse, quantised and nested ones, and those of which one stored number
    stands for so many that to copy them would take far more memory than the file has bytes.
    """
    claimed, waiting, seen = 0, [content], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list, tuple)):
            if id(value) not in seen:  # what a file refers to twice is looked at once
                seen.add(id(value))
                waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor):
            if value.is_nested or value.is_quantized or value.layout != torch.strided or value.device.type != "cpu":
                kind = "nested" if value.is_nested else "quantised" if value.is_quantized else None
                kind = kind or (value.device.type if value.layout == torch.strided else "sparse")
                raise ValueError(f"it holds a {kind} tensor, and a plain one of numbers is expected")
            claimed += max(0, value.numel() * value.element_size() - value.untyped_storage().nbytes())
            if claimed > _MOST_REPEATED:
                shape = list(value.shape)
                raise ValueError(f"it holds a tensor {shape} that repeats a few stored numbers, which fills the memory")


def check_torch_file(path: Path, storages: bool = True) -> set[tuple[int, int]]:
    """Compare the CRC-32 of each entry of a file of torch.save, which torch.load does not do.

    storages: False does not read the numbers of the tensors, for a file that is mapped into memory. Everything else is
    read, and whoever uses a storage compares it with the result: (bytes, CRC-32) of every storage.
    Raises an error of UNREADABLE for a damaged file. Torch before 1.6 wrote no zip files, and so no checksums: its
    files are believed, and the result is empty.
    """
    check_regular(path)
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return set()
    known = set()
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in _entries(archive, path):
            if info.file_size > size:  # a few bytes may be unpacked to any number of zeros
                raise ValueError(f"{info.filename} is packed, which torch.save does not do")
            if info.external_attr & _ZIP_FOLDER:
                raise ValueError(f"{info.filename} is marked as a folder")
            is_storage = PurePosixPath(info.filename).parent.name == "data"
            if is_storage:
                known.add((info.file_size, info.CRC))
            _check_entry(archive, info, content=storages or not is_storage)
    return known


def check_zip(path: Path) -> None:
    """Raise an error of UNREADABLE for a zip file, such as an .npz, that is damaged in any entry, or is none.

    So is one that unpacks to far more bytes than it has. Whoever asks for some entries by their names would not notice
    that a name is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = _entries(archive, path)
        claimed = sum(info.file_size for info in entries)
        if claimed > _MOST_PACKED * path.stat().st_size + _MOST_REPEATED:
            raise ValueError(f"it unpacks to {claimed:,} bytes, which fills the memory")
        for info in entries:
            _check_entry(archive, info)


def _entries(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file. Raises ValueError unless they are as many as its end says.

    A length in the directory that is damaged may lead over the entries that follow.
    """
    entries = archive.infolist()
    with path.open("rb") as file:
        file.seek(-_ZIP_END - len(archive.comment), os.SEEK_END)
        told = int.from_bytes(file.read(_ZIP_END)[10:12], "little")
    if told not in (len(entries), _ZIP_MANY):
        raise ValueError(f"its directory has {len(entries)} entries of {told}")
    return entries


def _check_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, content: bool = True) -> None:
    """Raise an error of UNREADABLE for a damaged entry; content: for damaged content, too.

    To open an entry compares its name in the directory with the one before its content, so that it is not taken for
    another one; to read it to its end compares the CRC-32.
    """
    with archive.open(info) as entry:
        while content and entry.read(_BLOCK):
            pass


def _fsync_folder(folder: Path) -> None:
    # A rename survives a power failure only once the folder itself has been flushed.
    if sys.platform == "win32":
        return  # Windows cannot open a folder, and NTFS keeps a journal of the folder's entries
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
