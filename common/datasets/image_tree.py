"""Folders of image files: what is in them, what tells that they have changed, and the way to `ImageData`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from common.datasets import disk_cache
from common.datasets.decoded import check_request, decode_once
from common.datasets.image_data import ImageData, Request, Statistics

FORMAT = 1  # of the decoded images: raise it when the same files give other pixels


class ImageFile(NamedTuple):
    """One file of the tree, and what tells that it has changed."""

    path: str  # not Path, which would take most of the second that a start from the cache takes
    label: int
    size: int  # bytes
    mtime_ns: int


class Tree(NamedTuple):
    """The files of both splits, in the order of the images, and the names of the C classes in that of the labels."""

    class_names: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]


def class_folders(split: Path) -> list[str]:
    """The names of the folders in `split`, sorted as torchvision's ImageFolder numbers classes, without hidden ones."""
    with os.scandir(split) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path, label: int) -> list[ImageFile]:
    """The image files in `folder` and below, sorted by path, each with this label."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    return sorted(_walk(str(folder), label, IMG_EXTENSIONS))


def _walk(folder: str, label: int, extensions: tuple[str, ...]) -> Iterator[ImageFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, label, extensions)
            elif entry.name.lower().endswith(extensions):
                status = entry.stat()
                yield ImageFile(entry.path, label, status.st_size, status.st_mtime_ns)


def load_tree(
    tree: Tree, folder: Path, request: Request, name: str, statistics: Statistics | None = None
) -> tuple[ImageData, ImageData]:
    """The images of the tree in `folder`, uint8 `[N, ch, H, W]`, decoded once and then kept in the user's cache folder.

    ch is 1 if every file is grayscale, else 3. `statistics` are those of the training images unless given; `name` is
    what `load_dataset` was asked for. Raises `InputError` if a file is damaged or of another size than the rest.
    """
    check_request(request)
    files = [file.path for file in tree.train + tree.test]
    cache = disk_cache.cache_file(folder, request.image_size)
    key = fingerprint(folder, request.image_size, tree)
    train, test, measured = decode_once(files, len(tree.train), cache, key, request, folder.name)
    splits = []
    for images, part in ((train, tree.train), (test, tree.test)):
        labels = torch.tensor([file.label for file in part])
        splits.append(ImageData(images, labels, *(statistics or measured), tree.class_names, name))
    return splits[0], splits[1]


def fingerprint(folder: Path, image_size: int | None, tree: Tree) -> str:
    """A hash that changes with the folder, the image size, and any file's name, size or time of change."""
    digest = hashlib.blake2b(f"{FORMAT}\0{folder}\0{image_size}".encode(), digest_size=20)
    start = len(str(folder))
    for file in tree.train + tree.test:
        digest.update(f"\0{file.path[start:]}\0{file.size}\0{file.mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
