"""Synthetic sets on the Hugging Face hub: hf://owner/name[/file], a dataset repository with .safetensors files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.runs.folder import dataset_folder
from common.synset.file import load_synset
from common.system.errors import InputError
from common.system.files import write_atomically
from common.training.evaluate import in_percent

PREFIX = "hf://"
SUFFIX = ".safetensors"
FIRST = "synset.safetensors"  # what is taken of several files: a run's last set
INSTALL = "pip install 'huggingface_hub>=0.34'"
_KIND = "dataset"  # of the repositories; a synthetic set is data, not a model


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
    hub, place = _import_library(), parse_address(address)
    file = place.file
    with _hub_errors(f"{place} cannot be fetched"):
        if file is None:
            found = hub.HfApi().list_repo_files(place.repository, repo_type=_KIND)
            file = _choose(place, sorted(name for name in found if name.endswith(SUFFIX)))
        return Path(hub.hf_hub_download(place.repository, file, repo_type=_KIND))


def pull(address: str, output: Path | None = None) -> Path:
    """Fetch a set and copy it to `output` (default: its own name, here), once it has been found whole."""
    fetched = fetch(address)
    load_synset(fetched)
    output = output or Path(fetched.name)
    write_atomically(output, lambda temporary: shutil.copyfile(fetched, temporary))
    return output


def push(path: Path, address: str, private: bool = False) -> tuple[Address, bool]:
    """Upload a set, with a README.md written from its metadata unless the repository has one already.

    Returns where it is, and whether the README.md was written. Nothing but our own file format is uploaded.
    Raises InputError for another file, and where the hub cannot be reached or refuses.
    """
    place = parse_address(address)
    if path.suffix != SUFFIX:
        raise InputError(
            f"only {SUFFIX} files are shared, which cannot hold code: convert {path} first, "
            "python -m common.pretrained convert"
        )
    _, metadata = load_synset(path)
    place = Address(place.repository, place.file or path.name)
    hub = _import_library()
    api = hub.HfApi()
    with _hub_errors(f"{path} cannot be uploaded to {place}"):
        api.create_repo(place.repository, repo_type=_KIND, private=private, exist_ok=True)
        described = "README.md" not in api.list_repo_files(place.repository, repo_type=_KIND)
        content: dict[str | None, str | bytes] = {
            place.file: str(path),
            **({"README.md": card(place, metadata).encode()} if described else {}),
        }
        api.create_commit(
            place.repository,
            [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=each) for name, each in content.items()],
            commit_message=f"Add {place.file}",
            repo_type=_KIND,
        )
    return place, described


def card(place: Address, metadata: dict[str, Any]) -> str:
    """README.md of a repository: what the set is, as far as its file says, and the command that evaluates it."""
    sides = " x ".join(map(str, metadata["im_size"]))
    ipc, channels = metadata["ipc"], metadata["channel"]
    stated = {
        "dataset": metadata.get("dataset") and dataset_folder(metadata["dataset"]),
        "budget": f"{ipc} image{'s' * (ipc > 1)} per class (ipc), {metadata['num_classes']} classes",
        "images": f"{sides} pixels, {channels} channel{'s' * (channels > 1)}",
        "coefficients": f"{metadata['msz_per_channel']} per channel ({metadata['transform']})",
        "objective": metadata.get("objective"),
        "network": metadata.get("network"),
        "accuracy": _accuracy(metadata),
        "code": metadata.get("version"),
    }
    rows = "\n".join(f"| {name} | {value or 'unknown'} |" for name, value in stated.items())
    folder = (metadata.get("objective") or "DM").partition("/")[0]
    return (
        "---\ntags:\n- dataset-distillation\n---\n\n"
        f"# {place.repository.partition('/')[2]}\n\n"
        "A synthetic training set of FreD, frequency domain-based dataset distillation "
        "([paper](https://arxiv.org/abs/2311.08819)).\n\n"
        f"| | |\n| --- | --- |\n{rows}\n\n"
        f"```sh\npython {folder}/evaluate.py --synset {place}\n```\n"
    )


def _accuracy(metadata: dict[str, Any]) -> str | None:
    figures = metadata.get("accuracy")
    if not figures:
        return None
    return f"{in_percent(figures)} ({figures['n']} networks), measured on the test images"


def _choose(place: Address, names: list[str]) -> str:
    if len(names) == 1 or FIRST in names:
        return FIRST if FIRST in names else names[0]
    told = f"several: give {place}/FILE with one of {', '.join(names)}" if names else f"no {SUFFIX} file"
    raise InputError(f"{place} has {told}")


def _import_library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"{PREFIX} needs the package huggingface_hub: {INSTALL}") from error
    return huggingface_hub


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
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
