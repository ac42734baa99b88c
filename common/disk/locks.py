"""Locks on files: one process at a time, where the file system can tell."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from common.system.errors import InputError
from common.system.files import refuse_directory

# Of file systems that have no locks: NFS without its lock service, Lustre mounted without flock.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP})
_SILENT = 3.0  # seconds after which it is said that another process is waited for
_told: set[Path] = set()  # folders that have been said to have no locks


class Lock(Protocol):
    """A lock that `take_lock` has taken."""

    def release(self) -> object:
        """Let other processes take it."""


class _Unlocked:
    """Stands for a lock on a file system that has none."""

    def release(self) -> None:
        pass


def take_lock(path: Path, called: str, flag: str) -> Lock | None:
    """Lock the file `path`; returns the lock, or None immediately if another process holds it.

    Creates the file and its folder. The lock lasts until `release()` or until the process ends in any way. Do not use
    the returned lock in a `with` statement, which would acquire it a second time. On a file system without locks, one
    line on stderr says so, and the lock that is returned keeps no other process out. Raises InputError if the file
    cannot be written or is a directory. That message uses `called`, a phrase for the folder ("the run folder"), and
    `flag`, the option that chooses another folder ("--save_path").
    """
    from filelock import FileLock, Timeout

    refuse_directory(path)
    lock = FileLock(path, thread_local=False)  # so that any thread can release it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:  # before OSError, of which it is a subclass
        return None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            _tell(path.parent, called)
            return _Unlocked()
        reason = error.strerror or error
        raise InputError(f"cannot write to {called} {path.parent}: {reason}; choose another {flag}") from error
    return lock


def wait_for_lock(path: Path, called: str, flag: str, needed: Callable[[], bool] = lambda: True) -> Lock | None:
    """`take_lock`, but waits while another process holds the lock; a line on stderr says so where that takes long.

    needed: asked before each attempt; once it is False, the result is None.
    """
    begun, is_told = time.monotonic(), False
    while needed():
        lock = take_lock(path, called, flag)
        if lock is not None:
            return lock
        if not is_told and time.monotonic() - begun >= _SILENT:
            is_told = True
            tqdm.write(f"waiting for another process, which is at work in {called} {path.parent}", file=sys.stderr)
        time.sleep(1)
    return None


def _tell(folder: Path, called: str) -> None:
    if folder not in _told:
        _told.add(folder)
        tqdm.write(
            f"warning: the file system of {called} {folder} has no locks, so nothing keeps a second process out of it: "
            "start only one",
            file=sys.stderr,
        )
