"""What a folder holds, or one sentence on why it cannot be told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from common.disk.paths import Kind, is_loop, unreadable

EntryKind = Kind | Literal["dangling"]
"""dangling: a link that leads to nothing, to itself, or where this process may not look."""


def entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, in the order of the disk. Raises InputError where it cannot be listed."""
    try:
        with os.scandir(folder) as found:
            yield from found
    except OSError as error:
        raise unreadable(folder, error) from error


def entry_kind(entry: os.DirEntry[str]) -> EntryKind:
    """What an entry is, links followed. Raises InputError where the system does not tell."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "special" if not entry.is_symlink() or os.path.exists(entry.path) else "dangling"  # noqa: PTH110
    except OSError as error:
        if entry.is_symlink() and (is_loop(error) or isinstance(error, PermissionError)):
            return "dangling"
        raise unreadable(entry.path, error) from error


def names(folder: str | Path) -> list[str]:
    """The names of the entries of a folder, sorted. Raises InputError where it cannot be listed."""
    return sorted(entry.name for entry in entries(folder))


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder whose names match a pattern such as "*.png", sorted; of names with a dot before them, too.

    Raises InputError where the folder cannot be listed.
    """
    return [folder / name for name in names(folder) if fnmatchcase(name, pattern)]


def files_below(folder: Path) -> Iterator[Path]:
    """The regular files in a folder and its subfolders, sorted; links to folders are not followed.

    Raises InputError for a folder that cannot be listed.
    """
    for entry in sorted(entries(folder), key=lambda each: each.name):
        kind = entry_kind(entry)
        if kind == "file":
            yield Path(entry.path)
        elif kind == "folder" and not entry.is_symlink():
            yield from files_below(Path(entry.path))
