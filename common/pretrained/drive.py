"""The authors' folder of synthetic sets on Google Drive: its expected files, its download, and what file names tell.

We have not seen a listing of the folder. The names below are those under which the authors' corruption script looks for
the sets. Any other file is identified by its name as far as possible.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import recipes
from common.datasets import DATASETS
from common.datasets.imagenet_classes import PREFIX, SYNONYMS, WHOLE, canonical
from common.disk.listing import files_below
from common.pretrained.convert import Provenance
from common.recipes import OBJECTIVES
from common.schemas import door
from common.synset.authors import is_authors
from common.synset.hub import SUFFIX
from common.system.errors import InputError
from common.system.files import write_json

FOLDER_ID = "1r1OMVv9llejGmpHfK5DpW4m57Dz_SZ2n"
URL = f"https://drive.google.com/drive/folders/{FOLDER_ID}"
RECORD = "sha256.json"
INSTALL = "pip install 'gdown>=6.0' (part of the extra authors)"

_IN_PAIR = re.compile(r"ipc(?P<ipc>\d+)\D*#(?:images|labels)_")
_RESULTS = re.compile(
    r"res_(?:(?P<method>DC|DSA|DM)_)?(?P<dataset>[^_]+(?:-[^_]+)?)_(?P<model>.+)_(?P<ipc>\d+)ipc\.pth?"
)


def published_cells() -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Yield (objective, dataset, ipc, {"accuracy", "std", "source"}) for every published accuracy in the recipes."""
    for objective in OBJECTIVES:
        for dataset, ipcs in recipes.available(objective).items():
            for ipc in ipcs:
                published = recipes.find(objective, dataset, ipc).published
                if published:
                    yield objective, dataset, ipc, published


def expected_files() -> list[str]:
    """The expected images files, relative to the folder. Each has its labels file beside it."""
    cells = [(dataset, ipc) for objective, dataset, ipc, _ in published_cells() if objective == "TM"]
    return [f"FreD/{_place(dataset)}/FreD_ipc{ipc}#images_best.pt" for dataset, ipc in cells]


def expected_tree() -> str:
    """The expected folder tree in words, for messages."""
    return (
        "FreD/DATASET/FreD_ipcN#images_best.pt and FreD/DATASET/FreD_ipcN#labels_best.pt, "
        f"FreD/{WHOLE}/SUBSET/FreD_ipcN#images_best.pt and so on, with DATASET one of MNIST, CIFAR10, ... and SUBSET "
        "one of imagenette, imagewoof, imagefruit, ..."
    )


def _place(dataset: str) -> str:
    """The folder of a dataset, named as in the authors' trajectory-matching code: CIFAR10, or ImageNet/imagefruit."""
    key = dataset.removeprefix(PREFIX)
    theirs = next((name for name, ours in SYNONYMS.items() if ours == key and name.startswith("image")), key)
    return dataset if key == dataset else f"{WHOLE}/{theirs}"


# -- downloaded files --------------------------------------------------------------------------------------------


def download(folder: Path) -> dict[str, str]:
    """Download the authors' folder into `folder`, resuming an earlier download. Returns the SHA-256 of each file.

    The checksums are saved in `RECORD` beside the files, even if the download fails halfway. A file that differs from
    its recorded checksum is reported on stderr. Raises InputError if not everything could be downloaded.
    """
    try:
        import gdown
    except ImportError as error:
        raise InputError(f"the folder on Google Drive is fetched by the package gdown: {INSTALL}") from error
    failure: Exception | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        gdown.download_folder(id=FOLDER_ID, output=str(folder), resume=True)
    # The exceptions of gdown, of requests and of the file system have no common base class.
    except Exception as error:
        failure = error
    recorded = record(folder) if folder.is_dir() else {}
    if failure is not None or not recorded:
        reason = "nothing came" if failure is None else (str(failure).splitlines() or [type(failure).__name__])[0]
        raise InputError(
            f"the authors' folder could not be fetched as a whole ({reason}; {len(recorded)} files are there): run the "
            f"command again to go on, or get it by hand from {URL} and put it into {folder} as {expected_tree()}"
        ) from failure
    return recorded


def record(folder: Path) -> dict[str, str]:
    """Write the SHA-256 of the authors' files below `folder` to `RECORD`, and report changed files on stderr.

    Returns the checksums by path relative to the folder. Files that no longer exist keep their entry in `RECORD`.
    """
    from common.schemas.results import Downloads

    file = folder / RECORD
    before: dict[str, str] = {}
    if file.is_file():
        before = door.read(file, Downloads, "remove it, and changes since then will not be seen")["sha256"]
    found = {path.relative_to(folder).as_posix(): _sha256(path) for path in find_files(folder, ours=False)}
    for name in sorted(before.keys() & found.keys()):
        if before[name] != found[name]:
            print(f"{name} differs from what arrived before: its SHA-256 was {before[name]}", file=sys.stderr)
    if found:
        write_json(file, {"source": URL, "sha256": dict(sorted((before | found).items()))})
    return found


def find_files(folder: Path, ours: bool = True) -> list[Path]:
    """The authors' files below a folder, sorted. ours: include files in our format. Partial downloads are left out."""
    found = (path for path in files_below(folder) if not path.name.startswith("."))
    return sorted(path for path in found if is_authors(path) or (ours and path.suffix == SUFFIX))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def provenance_of(path: Path) -> Provenance:
    """What the names of a file and of its folders tell: dataset, ipc and, for a res_*.pt, objective and network."""
    provenance = Provenance()
    match = _RESULTS.fullmatch(path.name)
    if match is not None:
        provenance.dataset, provenance.ipc = _dataset(match["dataset"]), int(match["ipc"])
        if match["method"]:
            provenance.objective, provenance.model = "DM" if match["method"] == "DM" else "DC", match["model"]
    elif match := _IN_PAIR.search(path.name):
        provenance.ipc = int(match["ipc"])
    names = path.resolve().parts[:-1]
    for above, name in reversed(list(zip(("", *names), names, strict=False))):
        if provenance.dataset is None:
            provenance.dataset = _dataset(f"{PREFIX}{name}" if above == WHOLE else name)
    return provenance


def _dataset(name: str) -> str | None:
    name = canonical(name)
    return name if name in DATASETS else None
