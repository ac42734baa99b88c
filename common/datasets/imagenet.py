"""`imagenet-KEY`: ten-class subsets of ImageNet (ILSVRC 2012), read from wherever its class folders lie.

The folder holds train/WNID/*.JPEG, and val/WNID/*.JPEG or val/ILSVRC2012_val_00000001.JPEG and so on with the devkit;
whether of all thousand classes or of the subset's alone makes no difference.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.datasets.imagenet_classes import PREFIX, SUBSETS
from common.datasets.imagenet_devkit import DEVKIT, Unusable, validation_wnids
from common.disk.paths import is_file, is_folder
from common.images.image_data import ImageData, Loader, Request, Statistics
from common.images.image_tree import ImageFile, LeftOut, Tree, image_file, image_files, load_tree
from common.images.pixels import Resize
from common.system.errors import InputError

STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE = 128  # pixels, unless asked for otherwise
VARIABLE = "IMAGENET"  # of the environment: the folder, where no --data_path is given
ADDRESS = "https://image-net.org"

_VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def load(key: str, request: Request) -> tuple[ImageData, ImageData]:
    """The training and the validation images of a subset, uint8 `[N, 3, side, side]`, labelled in the published order.

    Decoded once, then kept in the user's cache folder; the folders of other classes are not looked into. Raises
    `InputError` that says what is missing and where, or which image is damaged.
    """
    folder = request.data_path.resolve()
    name = f"{PREFIX}{key}"
    try:
        tree = read_tree(folder, SUBSETS[key])
    except Unusable as problem:
        raise InputError(
            f"{name} is not whole in {folder}: {problem}; ImageNet is given out after registration at {ADDRESS}, never "
            f"downloaded here: --data_path or the variable {VARIABLE} names the folder that holds train/WNID/*.JPEG, "
            f"and val/WNID/*.JPEG or val/ILSVRC2012_val_*.JPEG beside {DEVKIT} or {DEVKIT}.tar.gz"
        ) from None
    request = request if request.resize else replace(request, resize=Resize(SIDE))
    return load_tree(tree, folder, request, name, STATISTICS, part=name, colour=True, usual="stored")


LOADERS: dict[str, Loader] = {f"{PREFIX}{key}": partial(load, key) for key in SUBSETS}


def read_tree(folder: Path, classes: dict[str, str]) -> Tree:
    """List the files of these classes (WordNet id -> name), labelled in their order; raises `Unusable`."""
    if not is_folder(folder):
        raise Unusable("there is no such folder")
    for split in ("train", "val"):
        if not is_folder(folder / split):
            raise Unusable(f"it has no folder {split}/")
    left_out = LeftOut()
    train = _class_folders(folder, "train", classes, left_out)
    val = folder / "val"
    flat = not any(is_folder(val / wnid) for wnid in classes)
    test = _flat_files(folder, classes) if flat else _class_folders(folder, "val", classes, left_out)
    return Tree(tuple(classes.values()), train, test, left_out)


def _class_folders(folder: Path, split: str, classes: dict[str, str], left_out: LeftOut) -> list[ImageFile]:
    files = []
    for label, (wnid, name) in enumerate(classes.items()):
        in_class = folder / split / wnid
        if not is_folder(in_class):
            packed = f"{wnid}.tar"  # ILSVRC's archive holds one archive per class
            remedy = f", but has {packed}: unpack it there" if is_file(in_class.with_name(packed)) else ""
            raise Unusable(f"{split}/ lacks the class folder {wnid} ({name}){remedy}")
        found = image_files(in_class, label, left_out)
        if not found:
            raise Unusable(f"{split}/{wnid} ({name}) has no images")
        files += found
    return files


def _flat_files(folder: Path, classes: dict[str, str]) -> list[ImageFile]:
    """The validation images of these classes, grouped by class, where all lie in one folder."""
    val = folder / "val"
    there = {int(match[1]): name for name in os.listdir(val) if (match := _VALIDATION_FILE.fullmatch(name))}  # noqa: PTH208
    if not there:
        raise Unusable("val/ has neither the class folders nor ILSVRC2012_val_00000001.JPEG and so on")
    wnids = validation_wnids(folder)
    if max(there) > len(wnids):
        raise Unusable(f"val/ has {there[max(there)]}, but the devkit knows only {len(wnids)} images")
    files = []
    for label, (wnid, name) in enumerate(classes.items()):
        numbers = [number for number, each in enumerate(wnids, 1) if each == wnid]
        if not numbers:
            raise Unusable(f"the devkit names no validation image of {wnid} ({name})")
        lacking = [number for number in numbers if number not in there]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise Unusable(f"val/ lacks ILSVRC2012_val_{lacking[0]:08d}.JPEG{more}, of {wnid} ({name})")
        files += [image_file(str(val / there[number]), label) for number in numbers]
    return files
