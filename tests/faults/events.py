"""The moments at which a command is disturbed: before each change of a file, after each update and network."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import common.training.pool
from common.runs.loop import Distillation

_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """Counts the events of this process. Python cannot take its hook away again, so only forks begin to watch."""

    def __init__(self, number: int | None, action: Callable[[], object]) -> None:
        self.count, self._number, self._action = 0, number, action
        self._here = os.getcwd() + os.sep  # noqa: PTH109 (compared with text)
        self._within = False
        self._wrap(os, "fsync")
        self._wrap(Distillation, "update")
        self._wrap(common.training.pool, "train")
        sys.addaudithook(self._audit)

    def event(self) -> None:
        self.count += 1
        if self.count == self._number:
            self._action()

    def _wrap(self, place: Any, name: str) -> None:
        original = getattr(place, name)

        def wrapped(*positional: Any, **named: Any) -> Any:
            result = original(*positional, **named)
            self.event()
            return result

        setattr(place, name, wrapped)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        else:
            changes = event in _CHANGES
        if changes and not self._within and self._is_here(arguments[0]):
            self._within = True  # the action may change files itself
            self.event()
            self._within = False

    def _is_here(self, path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        text = os.fsdecode(path)
        return not os.path.isabs(text) or text.startswith(self._here)  # noqa: PTH117


def counted(action: Callable[[], Any]) -> int:
    """How many events an action has. For a fork of its own."""
    watch = _Watch(None, lambda: None)
    action()
    return watch.count


def disturbed(action: Callable[[], Any], number: int, disturb: Callable[[], object]) -> Any:
    """What an action returns that is disturbed at its event of this number. For a fork of its own."""
    _Watch(number, disturb)
    return action()
