"""Upload a synthetic set to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.report.description import describe_set
from common.synset.file import load_synset
from common.synset.hub import KIND, SUFFIX, Address, hub_errors, import_library, parse_address
from common.system.errors import InputError
from common.system.scripts import evaluate_script


def push(path: Path, address: str, private: bool = False) -> tuple[Address, bool]:
    """Upload a synthetic set, and a README.md made from its metadata unless the repository already has one.

    Returns the address of the set, and whether the README.md was written. Only files in our own format are uploaded.
    Raises InputError for any other file, and if the hub cannot be reached or refuses the upload.
    """
    place = parse_address(address)
    if path.suffix != SUFFIX:
        raise InputError(
            f"only {SUFFIX} files are shared, which cannot hold code: convert {path} first, "
            "python -m common.pretrained convert"
        )
    _, metadata = load_synset(path)
    place = Address(place.repository, place.file or path.name)
    hub = import_library()
    api = hub.HfApi()
    with hub_errors(f"{path} cannot be uploaded to {place}"):
        api.create_repo(place.repository, repo_type=KIND, private=private, exist_ok=True)
        described = "README.md" not in api.list_repo_files(place.repository, repo_type=KIND)
        content: dict[str | None, str | bytes] = {
            place.file: str(path),
            **({"README.md": card(place, metadata).encode()} if described else {}),
        }
        api.create_commit(
            place.repository,
            [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=each) for name, each in content.items()],
            commit_message=f"Add {place.file}",
            repo_type=KIND,
        )
    return place, described


def card(place: Address, metadata: dict[str, Any]) -> str:
    """The README.md of a repository: what the set's metadata say about it, and the command that evaluates the set."""
    rows = "\n".join(f"| {label} | {text} |" for label, text in describe_set(metadata).items())
    script = evaluate_script(metadata.get("objective") or "DM")
    return (
        "---\ntags:\n- dataset-distillation\n---\n\n"
        f"# {place.repository.partition('/')[2]}\n\n"
        "A synthetic training set of FreD, frequency domain-based dataset distillation "
        "([paper](https://arxiv.org/abs/2311.08819)).\n\n"
        f"| | |\n| --- | --- |\n{rows}\n\n"
        f"```sh\npython {script} --synset {place}\n```\n"
    )
