"""Folders of image files: what is in them, what tells that they have changed, and the way to `ImageData`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from common.images.decoded import check_request, decode_once
from common.images.disk_cache import named_file
from common.images.image_data import ImageData, Request, Statistics
from common.images.pixels import Resize, resize_key

FORMAT = 1  # of the decoded images: raise it when the same files give other pixels
# torchvision's IMG_EXTENSIONS; to import it for them would take most of a start from the cache.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


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
    return sorted(_walk(str(folder), label))


def image_file(path: str, label: int) -> ImageFile:
    """One image file by its path."""
    status = os.stat(path)  # noqa: PTH116 (Path takes ten times as long)
    return ImageFile(path, label, status.st_size, status.st_mtime_ns)


def _walk(folder: str, label: int) -> Iterator[ImageFile]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, label)
            elif entry.name.lower().endswith(EXTENSIONS):
                status = entry.stat()
                yield ImageFile(entry.path, label, status.st_size, status.st_mtime_ns)


def load_tree(
    tree: Tree,
    folder: Path,
    request: Request,
    name: str,
    statistics: Statistics | None = None,
    part: str | None = None,
    colour: bool = False,
) -> tuple[ImageData, ImageData]:
    """The images of the tree in `folder`, uint8 `[N, ch, H, W]`, decoded once and then kept in the user's cache folder.

    ch is 1 if every file is grayscale, else, or for `colour`, 3. `statistics` are those of the training images unless
    given; `name` is what `load_dataset` was asked for; a tree that is only a part of the folder says which, to have a
    cache of its own. Raises `InputError` if a file is damaged or of another size than the rest.
    """
    check_request(request)
    files = [file.path for file in tree.train + tree.test]
    labels = tuple(torch.tensor([file.label for file in files_of]) for files_of in (tree.train, tree.test))
    cache = cache_file(folder, request.resize, *([part] if part else []))
    key = tree_fingerprint(folder, request.resize, tree)
    said = part or folder.name
    decoded = decode_once(files, (labels[0], labels[1]), tree.class_names, cache, key, request, said, colour)
    train, test = (
        ImageData(images, left, *(statistics or decoded.statistics), tree.class_names, name, raw_fingerprint=known)
        for (images, left), known in zip((decoded.train, decoded.test), decoded.fingerprints, strict=True)
    )
    return train, test


def tree_fingerprint(folder: Path, resize: Resize | None, tree: Tree) -> str:
    """A hash that changes with the folder, the resizing, and any file's name, size or time of change."""
    how = "\0".join(map(str, resize_key(resize)))
    digest = hashlib.blake2b(f"{FORMAT}\0{folder}\0{how}".encode(), digest_size=20)
    start = len(str(folder))
    for file in tree.train + tree.test:
        digest.update(f"\0{file.path[start:]}\0{file.size}\0{file.mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def cache_file(folder: Path, resize: Resize | None, *part: str) -> Path:
    """Where the decoded images of `folder`, or of a part of it, belong."""
    # What the folder holds is not in the name: after a change the old file is replaced, not left behind.
    return named_file("folder", [str(folder), *resize_key(resize), *part])
