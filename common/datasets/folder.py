"""`folder:PATH`: a tree of image files as torchvision's ImageFolder reads it, PATH/{train,test or val}/CLASS/FILE.

PATH/CLASS/FILE will do: a share of each class is then held out for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from common.disk.listing import entries, entry_kind
from common.disk.paths import expanded, is_folder, resolved
from common.images.encoded import size_shown
from common.images.image_data import ImageData, Request
from common.images.image_tree import (
    EXTENSIONS,
    ImageFile,
    LeftOut,
    Tree,
    class_folders,
    count_beside,
    image_files,
    is_hidden,
    is_image,
    load_tree,
)
from common.images.pixels import Decoding
from common.system.errors import InputError
from common.system.seeds import generator
from common.system.text import shortened, told_apart

PREFIX = "folder:"
TEST_FOLDERS = ("test", "val")  # the first that exists
SIDES = (32, 64, 128)
"""Pixels: the sides that images of several sizes get, if none is given. The last is the bound."""
_LOOKED_AT = 1000  # images: their headers are read in a tenth of a second
HELD_OUT = 0.2
"""The share of each class that is the test split where a folder has none."""


def load(path: str, request: Request) -> tuple[ImageData, ImageData]:
    """The images of `path`/train and `path`/test (or val), decoded once and then kept in the user's cache folder.

    uint8 `[N, ch, H, W]`: ch is 1 if every file is grayscale, else 3. Mean and std are those of the training images.
    Raises `InputError` if the tree is not complete, or a file is damaged or of another size than the rest.
    """
    folder = resolved(path)
    tree = read_tree(folder)
    if tree.is_held_out and request.progress:
        total = len(tree.train) + len(tree.test)
        tqdm.write(
            f"{folder} has no train/ and test/: {len(tree.test):,} of its {total:,} images, {100 * HELD_OUT:.0f} % of "
            f"each class, are held out for tests ({len(tree.class_names)} classes: {shortened(tree.class_names)})"
        )
    return load_tree(tree, folder, request, f"{PREFIX}{folder}")


def check_folder(path: str | Path) -> None:
    """Raise `InputError` if what follows `folder:` is not a folder. Nothing in it is looked at."""
    if not is_folder(expanded(path)):
        raise InputError(f"{path} is not a folder: give folder:PATH the folder that holds train/ and test/ (or val/)")


def class_names(dataset: str) -> list[str] | None:
    """The classes of `folder:PATH` by the names of its folders, no image listed; None for others, and for no folder."""
    split = _training_split(dataset)
    return None if split is None else class_folders(split, LeftOut())


def _training_split(dataset: str) -> Path | None:
    """The folder with the class folders of `folder:PATH`; None for others, and for no folder."""
    if not dataset.startswith(PREFIX):
        return None
    folder = resolved(dataset.removeprefix(PREFIX))
    return next((each for each in (folder / "train", folder) if is_folder(each)), None)


def side_for_all(dataset: str, decoding: Decoding | None) -> int | None:
    """The side in pixels to which images of `folder:PATH` are made squares; None if they are of one size already.

    The largest of `SIDES` that the median shorter side reaches, or else that median. It goes by the headers of at most
    `_LOOKED_AT` training images, spread evenly over the classes and their names, so that it is the same at every start.
    None also for other datasets, and for folders that `load` refuses.
    """
    split = _training_split(dataset)
    if split is None:
        return None
    names, sizes = class_folders(split, LeftOut()), []
    for name in names:
        files = sorted(
            entry.path
            for entry in entries(split / name)
            if not is_hidden(entry.name) and is_image(entry.name) and entry_kind(entry) == "file"
        )
        step = max(1, -(-len(files) * len(names) // _LOOKED_AT))
        sizes += [size for path in files[::step] if (size := size_shown(path, decoding or "shown"))]
    if len(set(sizes)) < 2:
        return None
    median = sorted(map(min, sizes))[len(sizes) // 2]
    return max((side for side in SIDES if side <= median), default=median)


@contextmanager
def said_first(dataset: str | None) -> Iterator[None]:
    """Where the block refuses a setting, a fault of the folder or of its layout is raised in its place.

    A person mends the folder first. dataset: any name; those that are not `folder:PATH` change nothing.
    """
    try:
        yield
    except InputError:
        if dataset is not None and dataset.startswith(PREFIX):
            read_tree(resolved(dataset.removeprefix(PREFIX)))
        raise


def read_tree(folder: Path) -> Tree:
    """List the files of a tree; raises `InputError` that says what it lacks."""
    check_folder(folder)
    train = folder / "train"
    if not any((folder / name).exists() for name in ("train", *TEST_FOLDERS)) and (whole := _unsplit(folder)):
        return whole
    if not is_folder(train):
        raise InputError(
            f"{folder} has no folder train/: put the training images into train/CLASS/, or all images into CLASS/"
        )
    test = next((folder / name for name in TEST_FOLDERS if is_folder(folder / name)), None)
    if test is None:
        raise InputError(f"{folder} has neither test/ nor val/: put the test images into test/CLASS/")
    left_out = LeftOut()
    names = class_folders(train, left_out)
    if len(names) < 2:
        others = f" (it also has {left_out})" if left_out.counts else ""
        raise InputError(
            f"{train} has {len(names)} class folder(s), at least 2 are needed: one folder for each class{others}"
        )
    test_names = class_folders(test, left_out)
    read = [train.name, test.name]
    if test.name == TEST_FOLDERS[0] and is_folder(folder / TEST_FOLDERS[1]):
        left_out.add("second test split", f"{TEST_FOLDERS[1]}/")
        read.append(TEST_FOLDERS[1])
    count_beside(folder, read, left_out)
    if names != test_names:
        only = [
            f"{', '.join(told_apart(sorted(set(a) - set(b)), set(b) - set(a)))} only in {where}"
            for a, b, where in ((names, test_names, train), (test_names, names, test))
            if set(a) - set(b)
        ]
        raise InputError(f"the class folders differ, {' and '.join(only)}: both must have the same")
    return Tree(tuple(names), _files(train, names, left_out), _files(test, names, left_out), left_out)


def _unsplit(folder: Path) -> Tree | None:
    """The tree of a folder that holds the folders of its classes, the same at every start; None if it holds none.

    The share `HELD_OUT` of each class, rounded, is the test split. Raises InputError for a class of one image.
    """
    left_out = LeftOut()
    names = class_folders(folder, left_out)
    if len(names) < 2:
        return None
    train, test = list[ImageFile](), list[ImageFile]()
    for label, files in enumerate(_by_class(folder, names, left_out)):
        if not any(Path(file.path).parent == folder / names[label] for file in files):
            return None  # folders of folders: splits of another name, perhaps
        count = max(1, round(HELD_OUT * len(files)))
        if count == len(files):
            raise InputError(f"{folder / names[label]} has one image: add another, for one is held out for tests")
        held = set(torch.randperm(len(files), generator=generator(0, "held out", label))[:count].tolist())
        train += [file for i, file in enumerate(files) if i not in held]
        test += [file for i, file in enumerate(files) if i in held]
    return Tree(tuple(names), train, test, left_out, is_held_out=True)


def _files(split: Path, names: list[str], left_out: LeftOut) -> list[ImageFile]:
    return [file for files in _by_class(split, names, left_out) for file in files]


def _by_class(split: Path, names: list[str], left_out: LeftOut) -> Iterator[list[ImageFile]]:
    """The files of each class. Raises InputError for a class without any."""
    for label, name in enumerate(names):
        found = image_files(split / name, label, left_out)
        if not found:
            other = LeftOut()
            image_files(split / name, label, other)
            has = f" but {other}" if other.counts else ""
            raise InputError(
                f"{split / name} has no images ({' '.join(EXTENSIONS)}){has}: add some, or remove the class everywhere"
            )
        yield found
