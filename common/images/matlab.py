"""MATLAB's files, read by scipy."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO, Any

# What scipy raises for a file that is not of MATLAB's format, or broken; it has another exception, imported below.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, NotImplementedError, MemoryError, zlib.error)


def read_variables(file: Path | IO[bytes], *names: str) -> dict[str, Any] | None:
    """The arrays of these names, or None if one is not there, or the file is damaged; reading it runs no code."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(file, variable_names=list(names))
        return {name: content[name] for name in names}
    except (*_UNREADABLE, MatReadError):
        return None
