"""Synthetic sets on the Hugging Face Hub: hf://owner/name[/file] names a dataset repository with .safetensors files."""

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
FIRST = "synset.safetensors"  # chosen if a repository has several files: the last set of a run
INSTALL = "pip install 'huggingface_hub>=0.34' (part of the extra hub)"
KIND = "dataset"  # type of the repositories; a synthetic set is data, not a model


class Address(NamedTuple):
    """The repository owner/name of a shared set, and the file in it; None if the address names no file."""

    repository: str
    file: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}" + (f"/{self.file}" if self.file else "")

    @property
    def url(self) -> str:
        """The URL of the repository's page."""
        return f"https://huggingface.co/datasets/{self.repository}"


def parse_address(text: str) -> Address:
    """Parse hf://owner/name[/file] or the Hub's own hf://datasets/owner/name[/file]; InputError for anything else."""
    parts = text.removeprefix(PREFIX).removeprefix("datasets/").split("/")
    whole = text.startswith(PREFIX) and len(parts) >= 2 and all(part not in ("", ".", "..") for part in parts)
    if not whole or (len(parts) > 2 and not parts[-1].endswith(SUFFIX)):
        raise InputError(f"'{text}' is no place on the Hugging Face hub: give {PREFIX}owner/name or with /FILE{SUFFIX}")
    return Address("/".join(parts[:2]), "/".join(parts[2:]) or None)


def fetch(address: str) -> Path:
    """Download a set, unless the Hub's local cache has it, and return the path of the file in that cache.

    If the address names no file, the repository's only .safetensors file or its synset.safetensors is taken.
    Raises InputError if neither exists, or if the file cannot be downloaded.
    """
    hub, place = import_library(), parse_address(address)
    file = place.file
    with hub_errors(f"{place} cannot be fetched"):
        if file is None:
            found = hub.HfApi().list_repo_files(place.repository, repo_type=KIND)
            file = _choose(place, sorted(name for name in found if name.endswith(SUFFIX)))
        return Path(hub.hf_hub_download(place.repository, file, repo_type=KIND))


def pull(address: str, output: Path | None = None) -> Path:
    """Fetch a set, check that it can be loaded, and copy it to `output` (default: its own name, in this folder).

    Raises InputError if `output` is not given and a file with other content has the name of the set.
    """
    fetched = fetch(address)
    load_synset(fetched)
    if output is None:
        output = Path(fetched.name)  # the name of most sets is synset.safetensors
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
    """Turn every exception raised inside into an InputError that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    # The library's exceptions and those of its HTTP client, which it has replaced, have no common base class.
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(
            f"{what} ({reason}): check the name and the network; private repositories and uploads need `hf auth login`"
        ) from error
