"""Paths that users give: where each leads, and what lies there. No other module expands a ~."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from pathlib import Path
from typing import Any, Literal

from common.system.errors import InputError

Kind = Literal["nothing", "file", "folder", "special"]
"""special: a pipe, a socket or a device, which is never opened: to read one may wait for ever, or never end."""

# Options that are names and no paths: a ~ in them is a letter.
_NAMES = frozenset({"name", "track_project", "track_group"})
_PREFIXES = ("folder:", "hf:")
_CUT = 60  # characters that a message shows of a name too long for the file system


def expanded(path: str | Path) -> Path:
    """The path, with ~ or ~USER at its start replaced by that home folder.

    Raises InputError where there is no such user, or no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        first = Path(path).parts[0]
        if first == "~":
            raise InputError(
                f"{path} is in the home folder, and this user has none: set the variable HOME, or give the whole path"
            ) from error
        raise InputError(
            f"{path} is in the home folder of {first[1:]!r}, and there is no such user: give the whole path, or "
            f"./{path} for a folder called {first}"
        ) from error


def resolved(path: str | Path) -> Path:
    """The whole path, with ~ expanded and links followed, those to themselves as far as they lead.

    Raises InputError as `expanded`.
    """
    return Path(os.path.realpath(expanded(path)))


def is_home(folder: str | Path) -> bool:
    """Whether a folder is the user's home folder; False for a user without one."""
    try:
        return resolved(folder) == resolved("~")
    except InputError:
        return False


def expand_options(options: Any) -> None:
    """Expand every path in a dataclass of options, in place. Raises InputError as `expanded`.

    Shells expand a ~ only at the start of a word, which that of --save_path=~/runs is not. The name of a dataset,
    folder:~/images, is part of a run's identity: it is checked here, and expanded when the dataset is opened.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, str):
                for prefix in _PREFIXES:
                    if each.startswith(f"{prefix}~"):
                        expanded(each.removeprefix(prefix).partition("?")[0])
        if field.name in _NAMES:
            continue
        if isinstance(value, str):
            setattr(options, field.name, _text(value))
        elif isinstance(value, (list, tuple)):
            setattr(options, field.name, type(value)(_text(each) for each in value))


def _text(value: Any) -> Any:
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~") else value


def cache_root() -> Path:
    """The folder of the caches: the first that is defined of $FRED_CACHE, $XDG_CACHE_HOME/fred and ~/.cache/fred.

    Raises InputError for a user without a home folder, unless one of the variables is set.
    """
    if chosen := os.environ.get("FRED_CACHE"):
        return expanded(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "fred"
    try:
        return expanded("~") / ".cache" / "fred"
    except InputError as error:
        raise InputError(
            "there is no home folder to keep decoded images in: set the variable FRED_CACHE to a folder for them"
        ) from error


def kind_of(path: str | Path) -> Kind:
    """What lies at a path, links followed; a link to nothing, and one to itself, is nothing.

    Raises InputError for a path that the system refuses to look at.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (Path would first have to be made of the text)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte
        return "nothing"
    except OSError as error:
        if is_loop(error):
            return "nothing"
        raise unreadable(path, error) from error
    if stat.S_ISREG(mode):
        return "file"
    return "folder" if stat.S_ISDIR(mode) else "special"


def is_file(path: str | Path) -> bool:
    """Whether a path leads to a regular file. Raises InputError as `kind_of`."""
    return kind_of(path) == "file"


def is_folder(path: str | Path) -> bool:
    """Whether a path leads to a folder. Raises InputError as `kind_of`."""
    return kind_of(path) == "folder"


def is_loop(error: OSError) -> bool:
    """Whether an error is of links that lead back to themselves."""
    return error.errno == errno.ELOOP


def unreadable(path: str | Path, error: OSError) -> InputError:
    """The error for a path that the file system does not let this process read."""
    return InputError(f"cannot read {shown(path)}: {error.strerror or error}; change its permissions or give another")


def shown(path: str | Path) -> str:
    """A path for a message; of one whose last part is too long for a file system, the start."""
    text = str(path)
    name = Path(text).name
    return text if len(name) <= 255 else f"{text[: len(text) - len(name) + _CUT]}… ({len(name)} characters)"
