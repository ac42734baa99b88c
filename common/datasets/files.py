"""Files that hold datasets: missing, damaged or downloaded ones, and those of MATLAB."""

from __future__ import annotations

import http.client
import socket
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from common.system.errors import InputError

NETWORK_TIMEOUT = 30.0  # seconds without a byte, after which a download fails; torchvision sets no limit
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


def missing(name: str, files: Sequence[Path], archives: Iterable[Path]) -> InputError:
    """The error for a dataset whose `files` are missing and may not be downloaded; the user can supply `archives`."""
    folder = next(iter(archives)).parent
    return InputError(
        f"{name} is not in {files[0].parent} ({_names(files)} not found): run once without --no_download, "
        f"put {_names(archives)} into {folder}, or give another --data_path"
    )


def damaged(files: Sequence[Path]) -> InputError:
    """The error for files that exist but are truncated or damaged."""
    them = "it" if len(files) == 1 else "them"
    return InputError(
        f"{' and '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} truncated or damaged: "
        f"delete {them} and run again without --no_download to fetch {them} again"
    )


def not_published(files: Sequence[Path]) -> InputError:
    """The error for archives that exist, and hold neither what is published nor as much in its form."""
    them, are, one = ("it", "is", "a file") if len(files) == 1 else ("them", "are", "files")
    return InputError(
        f"{' and '.join(map(str, files))} {are} there, but neither as published nor {one} of that form and size: "
        f"delete {them} and run again without --no_download, or put there what is published"
    )


def _names(files: Iterable[Path]) -> str:
    return ", ".join(file.name for file in files)


@contextmanager
def downloading(
    name: str, addresses: Sequence[str], archives: Sequence[Path], damaged: Sequence[Path] = ()
) -> Iterator[None]:
    """Context around a download: if it fails or the network stays silent, raises InputError with what to do instead.

    addresses: where the download comes from. archives: the files to be downloaded.
    damaged: damaged files that the download was to replace.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    # URLError is an OSError; torchvision raises RuntimeError for a wrong checksum and when all mirrors have failed.
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # The error may have one line for each address that was tried. The last line has the network's own message.
        reason = [type(error).__name__, *str(error).splitlines()][-1]
        because = f" ({_names(damaged)} in {damaged[0].parent} is damaged)" if damaged else ""
        folder = archives[0].parent
        raise InputError(
            f"{name} could not be downloaded{because} from {', '.join(addresses)}: {reason}; "
            f"fetch {_names(archives)} by other means and put {'it' if len(archives) == 1 else 'them'} into {folder}, "
            "or give another --data_path"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
