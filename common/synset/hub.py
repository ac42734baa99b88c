"""Synthetic sets on the Hugging Face hub: hf://owner/name[/file], a dataset repository with .safetensors files."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.synset.file import load_synset
from common.system.errors import InputError
from common.system.files import write_atomically

PREFIX = "hf://"
SUFFIX = ".safetensors"
FIRST = "synset.safetensors"  # what is taken of several files: a run's last set
INSTALL = "pip install 'huggingface_hub>=0.34' (part of the extra hub)"
KIND = "dataset"  # of the repositories; a synthetic set is data, not a model


class Address(NamedTuple):
    """Where a set is shared; file None: not said."""

    repository: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"/{self.file}" if self.file else "")

    @property
    def url(self) -> str:
        """Of the repository's page."""
        return f"https://huggingface.co/datasets/{self.repository}"


def parse_address(text: str) -> Address:
    """Read hf://owner/name[/file] or the hub's own hf://datasets/owner/name[/file]; InputError for anything else."""
    parts = text.removeprefix(PREFIX).removeprefix("datasets/").split("/")
    whole = text.startswith(PREFIX) and len(parts) >= 2 and all(part not in ("", ".", "..") for part in parts)
    if not whole or (len(parts) > 2 and not parts[-1].endswith(SUFFIX)):
        raise InputError(f"'{text}' is no place on the Hugging Face hub: give {PREFIX}owner/name or with /FILE{SUFFIX}")
    return Address("/".join(parts[:2]), "/".join(parts[2:]) or None)


def fetch(address: str) -> Path:
    """Download a set, or find it in the hub's cache; the file's path there.

    Without a file in the address it is the repository's only .safetensors, or its synset.safetensors.
    Raises InputError where that cannot be told, or nothing can be fetched.
    """
    hub, place = import_library(), parse_address(address)
    file = place.file
    with hub_errors(f"{place} cannot be fetched"):
        if file is None:
            found = hub.HfApi().list_repo_files(place.repository, repo_type=KIND)
            file = _choose(place, sorted(name for name in found if name.endswith(SUFFIX)))
        return Path(hub.hf_hub_download(place.repository, file, repo_type=KIND))


def pull(address: str, output: Path | None = None) -> Path:
    """Fetch a set and copy it to `output` (default: its own name, here), once it has been found whole.

    Raises InputError where that name, if it was not given, is that of another file here.
    """
    fetched = fetch(address)
    load_synset(fetched)
    if output is None:
        output = Path(fetched.name)  # as a rule synset.safetensors, whichever the set
        if output.exists() and not filecmp.cmp(output, fetched, shallow=False):
            raise InputError(f"there is another {output} here: give --output FILE{SUFFIX}")
    write_atomically(output, lambda temporary: shutil.copyfile(fetched, temporary))
    return output


def _choose(place: Address, names: list[str]) -> str:
    if len(names) == 1 or FIRST in names:
        return FIRST if FIRST in names else names[0]
    told = f"several: give {place}/FILE with one of {', '.join(names)}" if names else f"no {SUFFIX} file"
    raise InputError(f"{place} has {told}")


def import_library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"{PREFIX} needs the package huggingface_hub: {INSTALL}") from error
    return huggingface_hub


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """InputError where the hub does not do what it is asked."""
    try:
        yield
    except InputError:
        raise
    # The library's own exceptions and those of the network underneath, of which it has changed, have no base in common.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(
            f"{what} ({reason}): check the name and the network; private repositories and uploads need `hf auth login`"
        ) from error
