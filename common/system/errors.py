"""The exceptions that end a command. The message of each is the sentence that the user reads."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterable
from difflib import get_close_matches


def printable(text: str, keep: str = "") -> str:
    r"""The text with characters that are not shown, such as those that steer a terminal, as escapes: "\x1b".

    keep: characters to leave as they are. Texts come from files, too: names of classes and files, and metadata.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else ascii(each)[1:-1] for each in text)


class InputError(ValueError):
    """Something that the user gave is wrong. The message is one sentence: what is wrong, and what to do about it."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), keep="\n"))


# Errors of a file system that need not name a file: of a stream that is written to, or of a folder that is gone.
_OF_THE_DISK = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE,
})  # fmt: skip


_NO_MEMORY = "can't allocate memory"  # torch, of a CPU


def disk_refusal(error: OSError) -> str | None:
    """One sentence on an error of the file system, which may fail at any call; None for another kind of OSError."""
    name = error.filename if error.filename2 is None else error.filename2
    if not isinstance(name, (str, bytes)) and error.errno not in _OF_THE_DISK:
        return None
    where = f" for {name!r}" if isinstance(name, (str, bytes)) else ""
    reason = error.strerror or type(error).__name__
    return f"the file system refuses: {reason}{where}; put that right, and run the same command again"


def memory_refusal(error: MemoryError | RuntimeError) -> str | None:
    """One sentence on memory that does not suffice, of a CPU or an accelerator; None for another RuntimeError."""
    told = (str(error).splitlines() or [""])[0]
    if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError" and _NO_MEMORY not in told:
        return None
    reason = f" ({told.rpartition('DefaultCPUAllocator: ')[2]})" if told else ""
    return f"the memory does not suffice{reason}: --dry_run tells what a run takes, and which flags lower it"


def close_names(name: str, known: Iterable[str]) -> str:
    """The known names that a misspelt name may mean, as "A, B or C"; "" if none is close. Case is ignored."""
    return _nearest(name, known, 0.6)


def nearest_names(name: str, known: Iterable[str]) -> str:
    """The known names that a misspelt name may mean, as `close_names`; if none is close, the three nearest."""
    known = list(known)
    return close_names(name, known) or _nearest(name, known, 0)


def _nearest(name: str, known: Iterable[str], cutoff: float) -> str:
    by_lower_case = {each.lower(): each for each in known}
    names = [by_lower_case[match] for match in get_close_matches(name.lower(), by_lower_case, cutoff=cutoff)]
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


class Stopped(Exception):
    """SIGINT or SIGTERM arrived, and the work has ended at a point where nothing is lost.

    kept: the part of the message that says what has been saved, and how to continue.
    """

    def __init__(self, number: int, kept: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {kept}")
        self.exit_code = 128 + number


class ProcessLost(Exception):
    """Another process of the job has ended, so this process cannot continue.

    kept: the part of the message that says what has been saved, and how to continue.
    """

    def __init__(self, reason: str, kept: str = "see above, and run the same command again") -> None:
        super().__init__(f"another process of this job has ended: {kept} ({reason})")
        self.reason = reason
