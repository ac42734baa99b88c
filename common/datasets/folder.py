"""`folder:PATH`: a tree of image files as torchvision's ImageFolder reads it, PATH/{train,test or val}/CLASS/FILE."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from common.datasets import folder_cache
from common.datasets.decode import decode
from common.datasets.image_data import ImageData, Request, Statistics
from common.errors import InputError

PREFIX = "folder:"
TEST_FOLDERS = ("test", "val")  # the first that exists
FORMAT = 1  # of the decoded images: raise it when the same files give other pixels


class ImageFile(NamedTuple):
    """One file of the tree, and what tells that it has changed."""

    path: str  # not Path, which would take most of the second that a start from the cache takes
    label: int
    size: int  # bytes
    mtime_ns: int


class Tree(NamedTuple):
    """The files of a folder, sorted within each class; classes are sorted by name, as torchvision numbers them."""

    class_names: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]


def load(path: str, request: Request) -> tuple[ImageData, ImageData]:
    """The images of `path`/train and `path`/test (or val), decoded once and then kept in the user's cache folder.

    uint8 `[N, ch, H, W]`: ch is 1 if every file is grayscale, else 3. Mean and std are those of the training images.
    Raises `InputError` if the tree is not complete, or a file is damaged or of another size than the rest.
    """
    if request.image_size is not None and request.image_size < 1:
        raise InputError(f"--image_size must be at least 1, not {request.image_size}")
    if request.workers is not None and request.workers < 1:
        raise InputError(f"workers, the number of threads that read images, must be at least 1, not {request.workers}")
    folder = Path(path).expanduser().resolve()
    tree = read_tree(folder)
    cache = folder_cache.cache_file(folder, request.image_size)
    key = fingerprint(folder, request.image_size, tree)
    stored = folder_cache.read(cache, key)
    if stored is None:
        files = [file.path for file in tree.train + tree.test]
        images = decode(files, request.image_size, request.workers, request.progress, folder.name)
        train, test = images.split([len(tree.train), len(tree.test)])
        stored = {"train": train, "test": test}, {"statistics": measure(train)}
        folder_cache.write(cache, key, *stored)
    images_of, facts = stored
    mean, std = map(tuple, facts["statistics"])
    splits = []
    for split, part in (("train", tree.train), ("test", tree.test)):
        labels = torch.tensor([file.label for file in part])
        splits.append(ImageData(images_of[split], labels, mean, std, tree.class_names, f"{PREFIX}{folder}"))
    return splits[0], splits[1]


def read_tree(folder: Path) -> Tree:
    """List the files of a tree; raises `InputError` that says what it lacks."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give folder:PATH the folder that holds train/ and test/ (or val/)")
    train = folder / "train"
    if not train.is_dir():
        raise InputError(f"{folder} has no folder train/: put the training images into train/CLASS/")
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test is None:
        raise InputError(f"{folder} has neither test/ nor val/: put the test images into test/CLASS/")
    names, test_names = _class_names(train), _class_names(test)
    if len(names) < 2:
        raise InputError(f"{train} has {len(names)} class folder(s), at least 2 are needed: one folder for each class")
    if names != test_names:
        only = [
            f"{', '.join(sorted(set(a) - set(b)))} only in {where}"
            for a, b, where in ((names, test_names, train), (test_names, names, test))
            if set(a) - set(b)
        ]
        raise InputError(f"the class folders differ, {' and '.join(only)}: both must have the same")
    return Tree(tuple(names), list(_image_files(train, names)), list(_image_files(test, names)))


def _class_names(split: Path) -> list[str]:
    with os.scandir(split) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _image_files(split: Path, names: list[str]) -> Iterator[ImageFile]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for label, name in enumerate(names):
        found = sorted(_walk(str(split / name), label, IMG_EXTENSIONS))
        if not found:
            raise InputError(
                f"{split / name} has no images ({' '.join(IMG_EXTENSIONS)}): add some, or remove the class everywhere"
            )
        yield from found


def _walk(folder: str, label: int, extensions: tuple[str, ...]) -> Iterator[ImageFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, label, extensions)
            elif entry.name.lower().endswith(extensions):
                status = entry.stat()
                yield ImageFile(entry.path, label, status.st_size, status.st_mtime_ns)


def fingerprint(folder: Path, image_size: int | None, tree: Tree) -> str:
    """A hash that changes with the folder, the image size, and any file's name, size or time of change."""
    digest = hashlib.blake2b(f"{FORMAT}\0{folder}\0{image_size}".encode(), digest_size=20)
    start = len(str(folder))
    for file in tree.train + tree.test:
        digest.update(f"\0{file.path[start:]}\0{file.size}\0{file.mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def measure(images: Tensor) -> Statistics:
    """Mean and std of each channel of uint8 images `[N, ch, H, W]`, in units of 0..1; a constant channel gets std 1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        # From the counts of the 256 values: exact, and no image is copied to floating point.
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        mean = (share.double() * values).sum()
        std = (share.double() * (values - mean) ** 2).sum().sqrt()
        means.append(mean.item())
        stds.append(std.item() or 1.0)
    return tuple(means), tuple(stds)
