"""What a file is by its first bytes, for a message about a file of the wrong kind."""

from __future__ import annotations

from pathlib import Path

from common.system.files import check_regular

_BEGINNINGS = {
    b"\x93NUMPY": "an array of NumPy (.npy)",
    b"PK\x03\x04": "a zip file, as are .npz and .pt",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
    b"version https://git-lfs": "a pointer of Git LFS, without the file that it stands for (git lfs pull fetches it)",
}


def foreign_kind(file: Path) -> str | None:
    """What a file is, with its article, if its first bytes say so; None otherwise, and if it cannot be read."""
    try:
        check_regular(file)
        with file.open("rb") as stream:
            start = stream.read(32)
    except OSError:
        return None
    return next((kind for beginning, kind in _BEGINNINGS.items() if start.startswith(beginning)), None)
