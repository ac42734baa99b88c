"""`python -m common.report gallery FOLDER`: one page of all synthetic sets below a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from torch import Tensor

from common.disk.listing import files_below
from common.disk.paths import is_folder
from common.gallery.beside import RealImages
from common.images.pixels import StoredAs
from common.report.description import describe_set
from common.report.page import TEMPLATES, png_uri, write_page
from common.report.run_page import flat, side_on_page
from common.report.show import shown
from common.synset.base import LearnedSet
from common.synset.file import load_synset
from common.synset.hub import SUFFIX
from common.system.errors import InputError
from common.system.files import checksum
from common.system.progress import Progress
from common.system.text import counted
from common.training.stored_real import CODEC_NAMES

_CLASSES, _IMAGES = 10, 8  # of each set, at most
_SIDE = 48  # pixels: the larger side of a smaller image is scaled up to about this


@dataclass
class GalleryOptions:
    """Write gallery.html about all synthetic sets below a folder, beside real images in files of the same bytes."""

    folder: tyro.conf.Positional[str]
    """the folder, such as runs or runs/DM/CIFAR10; folders in it are looked through"""
    stored_as: StoredAs | Literal["none"] = "jpeg"
    """show beside each set random real images of its classes, in files of this kind that take the bytes that a decoder
    of the set needs (without headers where whole files do not fit). none: only the sets"""
    data_path: str | None = None
    """folder where the datasets are; none is downloaded (default: data; for imagenet-SUBSET, $IMAGENET if set)"""
    output: str | None = None
    """file to write (default: FOLDER/gallery.html)"""


def write_gallery(options: GalleryOptions) -> Path:
    """Write the page and return its path. Raises InputError for a folder without sets, and if it cannot be written."""
    folder = Path(options.folder)
    if not is_folder(folder):
        raise InputError(f"{folder} is not a folder: give one that holds synthetic sets, such as runs")
    real = None if options.stored_as == "none" else RealImages(options.stored_as, options.data_path)
    sets, left_out, known = [], [], set[tuple[Path, str]]()
    files = [file for file in files_below(folder) if file.name.endswith(SUFFIX)]
    for file in Progress(files, desc="gallery", unit="file"):
        name = file.relative_to(folder).as_posix()
        try:
            synset, metadata = load_synset(file)
        except InputError as error:
            left_out.append((name, str(error)))
            continue
        content = (file.parent, checksum(file))
        if content not in known:  # a run's best set is often its last one
            sets.append(_set(synset, metadata, name, real))
        known.add(content)
    if not sets:
        raise InputError(f"{folder} holds no synthetic set, of {counted(len(left_out), 'file')} *{SUFFIX}")
    path = Path(options.output) if options.output else folder / "gallery.html"
    title = f"{counted(len(sets), 'synthetic set')} in {folder.resolve().name}"
    kind = CODEC_NAMES.get(options.stored_as)
    write_page(path, TEMPLATES / "gallery.html", title=title, sets=sets, left_out=left_out, kind=kind)
    return path


def _set(synset: LearnedSet, metadata: dict[str, Any], name: str, real: RealImages | None) -> dict[str, Any]:
    """What the page shows of a set."""
    images, remark = shown(synset.get(need_copy=True)[0], metadata)
    by_class = images.unflatten(0, (synset.num_classes, -1))[:_CLASSES]
    beside = None if real is None else real.of(synset, metadata)
    theirs = [] if beside is None else beside.images
    names = metadata.get("class_names") or range(synset.num_classes)
    rows = [
        {
            "name": str(class_name),
            "ours": _uris(ours),
            "real": _uris(theirs[number]) if theirs else [],
        }
        for number, (class_name, ours) in enumerate(zip(names, by_class, strict=False))
    ]
    told = describe_set(metadata)
    return {
        "name": name,
        "what": f"{told['objective']} on {told['dataset']}",
        "accuracy": told["accuracy"],
        "facts": {key: told[key] for key in ("budget", "images", "coefficients", "network") if key in told},
        "rows": rows,
        "remark": f"{remark[:1].upper()}{remark[1:]}." if remark else "",
        "shown": _extent(synset.num_classes, synset.num_per_class),
        "beside": None if beside is None else f"{beside.told[:1].upper()}{beside.told[1:]}",
        **side_on_page(flat(by_class[0]), _SIDE),
    }


def _extent(classes: int, images: int) -> str:
    """Which part of a set is shown; "" if it is all of it."""
    parts = [f"{_CLASSES} of {classes} classes"] * (classes > _CLASSES)
    parts += [f"{_IMAGES} of {images} images per class"] * (images > _IMAGES)
    return f"The first {', '.join(parts)}." if parts else ""


def _uris(images: Tensor) -> list[str]:
    return [png_uri(image) for image in flat(images[:_IMAGES])]
