"""`imagenet-KEY`: ten-class subsets of ImageNet (ILSVRC 2012), read from wherever its class folders lie.

The folder holds train/WNID/*.JPEG, and val/WNID/*.JPEG or val/ILSVRC2012_val_00000001.JPEG and so on with the devkit
or Kaggle's table; whether of all thousand classes or of the subset's alone makes no difference.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.datasets.imagenet_classes import PREFIX, SUBSETS
from common.datasets.imagenet_devkit import (
    DEVKIT,
    SOLUTION,
    VALIDATION_NAME,
    Unusable,
    kaggle_root,
    validation_wnids,
)
from common.disk.listing import names
from common.disk.paths import is_file, is_folder, resolved
from common.images.image_data import ImageData, Loader, Request, Statistics
from common.images.image_tree import ImageFile, LeftOut, Tree, image_file, image_files, load_tree
from common.images.pixels import Resize
from common.system.errors import InputError

STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE = 128  # pixels, unless asked for otherwise
VARIABLE = "IMAGENET"  # of the environment: the folder, where no --data_path is given
ADDRESS = "https://image-net.org"

_VALIDATION_FILE = re.compile(rf"{VALIDATION_NAME.pattern}\.JPEG")
_TRAINING_FILE = re.compile(r"n\d{8}_\d+\.JPEG", re.IGNORECASE)


def load(key: str, request: Request) -> tuple[ImageData, ImageData]:
    """The training and the validation images of a subset, uint8 `[N, 3, side, side]`, labelled in the published order.

    Decoded once, then kept in the user's cache folder; the folders of other classes are not looked into. Raises
    `InputError` that says what is missing and where, or which image is damaged.
    """
    folder = kaggle_root(resolved(request.data_path))
    name = f"{PREFIX}{key}"
    try:
        tree = read_tree(folder, SUBSETS[key])
    except Unusable as problem:
        raise InputError(
            f"{name} is not whole in {folder}: {problem}; ImageNet is given out after registration at {ADDRESS}, never "
            f"downloaded here: --data_path or the variable {VARIABLE} names the folder that holds train/WNID/*.JPEG, "
            f"and val/WNID/*.JPEG or val/ILSVRC2012_val_*.JPEG beside {DEVKIT}, {DEVKIT}.tar.gz or Kaggle's {SOLUTION}"
        ) from None
    _tell_of_another_split(name, tree)
    request = request if request.resize else replace(request, resize=Resize(SIDE))
    return load_tree(tree, folder, request, name, STATISTICS, part=name, colour=True, usual="stored")


def _tell_of_another_split(name: str, tree: Tree) -> None:
    """Log one line where validation images have names of ILSVRC's training images, as in fast.ai's Imagenette."""
    tested = [os.path.basename(file.path) for file in tree.test]  # noqa: PTH119 (Path takes ten times as long)
    if foreign := sorted(filter(_TRAINING_FILE.fullmatch, tested)):
        logging.getLogger(__name__).warning(
            "%s of the %s test images of %s, such as %s, are training images of ILSVRC: this val/ is a split of its "
            "own, as that of Imagenette or Imagewoof by fast.ai, while published figures are of ILSVRC's 50 validation "
            "images per class", f"{len(foreign):,}", f"{len(tested):,}", name, foreign[0],
        )  # fmt: skip


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
    there = {int(match[1]): name for name in names(val) if (match := _VALIDATION_FILE.fullmatch(name))}
    if not there:
        raise Unusable("val/ has neither the class folders nor ILSVRC2012_val_00000001.JPEG and so on")
    wnids = validation_wnids(folder)
    if max(there) > max(wnids):
        raise Unusable(f"val/ has {there[max(there)]}, but the list of its classes knows only {len(wnids)} images")
    files = []
    for label, (wnid, name) in enumerate(classes.items()):
        numbers = sorted(number for number, each in wnids.items() if each == wnid)
        if not numbers:
            raise Unusable(f"the list of classes names no validation image of {wnid} ({name})")
        lacking = [number for number in numbers if number not in there]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise Unusable(f"val/ lacks ILSVRC2012_val_{lacking[0]:08d}.JPEG{more}, of {wnid} ({name})")
        files += [image_file(str(val / there[number]), label) for number in numbers]
    return files
