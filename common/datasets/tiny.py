"""Tiny ImageNet: 200 classes of 64x64 images, read from the folder that its archive unpacks to."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from common.datasets.files import damaged, downloading, missing
from common.disk.paths import is_file, is_folder, resolved
from common.images.image_data import ImageData, Request, Statistics
from common.images.image_tree import ImageFile, LeftOut, Tree, class_folders, image_files, load_tree
from common.images.pixels import Resize
from common.system.errors import InputError

STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # ImageNet's, as the published recipes use them
SIDE = 64  # pixels
FOLDER = "tiny-imagenet-200"
ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def load(request: Request) -> tuple[ImageData, ImageData]:
    """100000 training and 10000 test images (the labelled validation split), uint8 `[N, 3, 64, 64]`.

    Classes are numbered as their WordNet ids sort. Read as unpacked, or with val/ sorted into class folders. Raises
    `InputError` for what is missing and cannot be downloaded, and names what is damaged.
    """
    folder = resolved(request.data_path) / FOLDER
    if not is_folder(folder):
        _unpack(folder, request.download)
    tree = read_tree(folder)
    # To its own size: nothing changes, but an image of another size among them fits too.
    train, test = load_tree(tree, folder, replace(request, resize=Resize(SIDE)), "Tiny", STATISTICS, usual="stored")
    return train, test


def _unpack(folder: Path, download: bool) -> None:
    """Make `folder` out of the archive beside it, which is downloaded first unless it is there."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    archive = folder.parent / f"{FOLDER}.zip"
    if not download and not check_integrity(archive, MD5):
        raise damaged([archive]) if is_file(archive) else missing("Tiny", [folder], [archive])
    with downloading("Tiny", [ADDRESS], [archive]):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Elsewhere first, so that an interruption never leaves a folder that looks complete.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{FOLDER}-") as temporary:
            download_and_extract_archive(ADDRESS, str(folder.parent), temporary, archive.name, MD5)
            (Path(temporary) / FOLDER).rename(folder)


def read_tree(folder: Path) -> Tree:
    """List the files of train/ and val/; raises `InputError` that says what is wrong with them."""
    for split in ("train", "val"):
        if not is_folder(folder / split):
            raise _faulty(folder, f"it has no folder {split}/")
    left_out = LeftOut()
    wnids = class_folders(folder / "train", left_out)
    listed = folder / "wnids.txt"
    if is_file(listed):
        expected = sorted(_lines(listed))
        if wrong := sorted(set(expected) ^ set(wnids)):
            lacks = "lacks" if wrong[0] in expected else "has, unlike wnids.txt,"
            raise _faulty(folder, f"train/ {lacks} the class folder {wrong[0]}")
    if len(wnids) < 2:
        raise _faulty(folder, f"train/ has {len(wnids)} class folder(s)")
    train = _files_of_classes(folder, "train", wnids, left_out)
    # Many a script moves the images out of val/images into class folders, and leaves the rest as it was.
    images = folder / "val" / "images"
    unsorted = image_files(images, -1, left_out) if is_folder(images) else []
    test = _annotated_files(folder, unsorted, wnids) if unsorted else _files_of_classes(folder, "val", wnids, left_out)
    return Tree(_class_names(folder / "words.txt", wnids), train, test, left_out)


def _files_of_classes(folder: Path, split: str, wnids: list[str], left_out: LeftOut) -> list[ImageFile]:
    files = []
    for label, wnid in enumerate(wnids):
        in_class = folder / split / wnid
        found = image_files(in_class, label, left_out, expected=("_boxes.txt",)) if is_folder(in_class) else []
        if not found:
            raise _faulty(folder, f"{split}/{wnid} has no images")
        files += found
    return files


def _annotated_files(folder: Path, files: list[ImageFile], wnids: list[str]) -> list[ImageFile]:
    """The files of val/images with the labels that val/val_annotations.txt gives them: FILE, tab, WordNet id, ..."""
    annotations = folder / "val" / "val_annotations.txt"
    if not is_file(annotations):
        raise _faulty(folder, "val/val_annotations.txt, which names the classes of val/images, is not there")
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    label_of = {}
    for number, line in enumerate(_lines(annotations), 1):
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in labels:
            raise _faulty(folder, f"line {number} of val/val_annotations.txt has {wnid!r} where a class should be")
        label_of[file] = labels[wnid]
    names = [os.path.basename(file.path) for file in files]  # noqa: PTH119 (Path takes ten times as long)
    if unlabelled := sorted(set(names) - set(label_of)):
        raise _faulty(folder, f"val/val_annotations.txt has no line for {_some(unlabelled)}")
    if gone := sorted(set(label_of) - set(names)):
        raise _faulty(folder, f"val/images lacks {_some(gone)}")
    return [file._replace(label=label_of[name]) for file, name in zip(files, names, strict=True)]


def _class_names(words: Path, wnids: list[str]) -> tuple[str, ...]:
    """The first synonym of each WordNet id, or the id; with the id in brackets where two classes share a name."""
    synonyms = dict(line.split("\t", 1) for line in _lines(words) if "\t" in line) if is_file(words) else {}
    names = [synonyms.get(wnid, "").split(",")[0].strip() or wnid for wnid in wnids]
    times = Counter(names)
    return tuple(name if times[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True))


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _faulty(folder: Path, what: str) -> InputError:
    return InputError(
        f"{folder} is not Tiny ImageNet as its archive unpacks it: {what}; delete the folder and run again to unpack "
        f"it anew (without --no_download unless {FOLDER}.zip lies beside it)"
    )
