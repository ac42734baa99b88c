"""What every loader that downloads says when its files are missing or damaged, or do not arrive."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.system.errors import InputError

NETWORK_TIMEOUT = 30.0  # seconds without a byte; torchvision itself would wait for ever


def missing(name: str, files: Sequence[Path], archives: Iterable[Path]) -> InputError:
    """The error for a dataset whose `files` are not there and may not be downloaded; `archives` would bring them."""
    folder = next(iter(archives)).parent
    return InputError(
        f"{name} is not in {files[0].parent} ({_names(files)} not found): run once without --no_download, "
        f"put {_names(archives)} into {folder}, or give another --data_path"
    )


def damaged(files: Sequence[Path]) -> InputError:
    """The error for files that are there, but not what they should be."""
    them = "it" if len(files) == 1 else "them"
    return InputError(
        f"{' and '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} truncated or damaged: "
        f"delete {them} and run again without --no_download to fetch {them} anew"
    )


def _names(files: Iterable[Path]) -> str:
    return ", ".join(file.name for file in files)


@contextmanager
def downloading(
    name: str, addresses: Sequence[str], archives: Sequence[Path], damaged: Sequence[Path] = ()
) -> Iterator[None]:
    """Around a download: gives up on a silent network, and says in one sentence what failed and what to do instead.

    `archives` are the files to be fetched from `addresses`, `damaged` those that they were to replace.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    # URLError is an OSError; torchvision raises RuntimeError for a wrong checksum and when all mirrors have failed.
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # Of several lines, one for each address tried, the last says what the network said.
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
