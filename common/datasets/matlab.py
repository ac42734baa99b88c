"""Reads MATLAB files with scipy."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO, Any

# What scipy raises for a file that is damaged or not a MATLAB file. MatReadError, which is imported below, is another.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, NotImplementedError, MemoryError, zlib.error)


def read_variables(file: Path | IO[bytes], *names: str) -> dict[str, Any] | None:
    """The arrays of these names, or None if one is missing or the file is damaged. Reading runs no code of the file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(file, variable_names=list(names))
        return {name: content[name] for name in names}
    except (*_UNREADABLE, MatReadError):
        return None
