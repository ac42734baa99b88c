"""Files that keep what takes long to make from a dataset, so that only the first start has to make it.

Decoded images of a folder are one such thing, fitted whitenings another. A file is whole or not there, and what it
holds is checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import InputError
from common.files import write_atomically


def cache_file(folder: Path, image_size: int | None) -> Path:
    """Where the decoded images of `folder` belong."""
    # What the folder holds is not in the name: after a change the old file is replaced, not left behind.
    return named_file("folder", [str(folder), image_size])


def named_file(kind: str, names: Sequence[str | float | None]) -> Path:
    """Where a `kind` of thing told apart by `names` belongs: in $FRED_CACHE, $XDG_CACHE_HOME/fred or ~/.cache/fred."""
    if chosen := os.environ.get("FRED_CACHE"):
        root = Path(chosen).expanduser()
    elif base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base) / "fred"
    else:
        root = Path.home() / ".cache" / "fred"
    key = hashlib.blake2b(json.dumps(list(names)).encode(), digest_size=10).hexdigest()
    return root / f"{kind}-{key}.safetensors"


def read(file: Path, fingerprint: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the facts that `write` stored, or None if there are none for `fingerprint`, or damaged ones."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(str(file), framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        if metadata["checksum"] == _checksum(tensors):
            return tensors, json.loads(metadata["facts"])
        reason = "wrong checksum"
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = str(error)
    logging.getLogger(__name__).warning("%s is damaged (%s): making it anew", file, reason)
    return None


def write(file: Path, fingerprint: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Store tensors and JSON facts, whole or not at all; where that is impossible, warn and go on."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"fingerprint": fingerprint, "checksum": _checksum(tensors), "facts": json.dumps(facts)}
    try:
        write_atomically(file, lambda temporary: save_file(tensors, temporary, metadata))
    except (InputError, SafetensorError) as error:
        logging.getLogger(__name__).warning("what was made cannot be kept for the next start: %s", error)


def _checksum(tensors: dict[str, Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].contiguous().numpy().data, checksum)
    return str(checksum)
