"""Lists folders of image files, detects changes in them, and loads them as `ImageData`."""

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

FORMAT = 1  # the version of the decoded images: increase it when the same files decode to other pixels
# The same as torchvision's IMG_EXTENSIONS. Importing torchvision would take most of the time of a start from the cache.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ImageFile(NamedTuple):
    """One image file of a tree; its size and time of change show whether it has changed."""

    path: str  # not a Path: making them would take most of the second that a start from the cache takes
    label: int
    size: int  # bytes
    mtime_ns: int


class Tree(NamedTuple):
    """The class names, in the order of the labels, and the files of both splits, in the order of the images."""

    class_names: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]


def class_folders(split: Path) -> list[str]:
    """The names of the folders in `split` without the hidden ones, in the order of torchvision's ImageFolder."""
    with os.scandir(split) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path, label: int) -> list[ImageFile]:
    """The image files in `folder` and its subfolders, sorted by path, all with the same label."""
    return sorted(_walk(str(folder), label))


def image_file(path: str, label: int) -> ImageFile:
    """Look up the size and the time of change of one image file."""
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
    """Load the images of a tree as uint8 `[N, ch, H, W]`; they are decoded once, then kept in the user's cache folder.

    name: the dataset's name, with which `load_dataset` loads the images again.
    statistics: mean and std to normalise with; None computes them from the training images.
    part: if the tree is only a part of `folder`, the name of that part, which then has its own cache file.
    colour: whether ch is always 3. Otherwise, ch is 1 if all files are grayscale and 3 if any is not.
    Raises `InputError` if a file is damaged, or differs in size from the others.
    """
    check_request(request)
    files = [file.path for file in tree.train + tree.test]
    labels = tuple(torch.tensor([file.label for file in files_of]) for files_of in (tree.train, tree.test))
    cache = cache_file(folder, request.resize, *([part] if part else []))
    key = tree_fingerprint(folder, request.resize, tree)
    said = part or folder.name
    decoded = decode_once(files, (labels[0], labels[1]), tree.class_names, cache, key, request, said, colour)
    train, test = (
        ImageData(
            images,
            left,
            *(statistics or decoded.statistics),
            tree.class_names,
            name,
            raw_fingerprint=known,
            check=check,
        )
        for (images, left), known, check in zip(
            (decoded.train, decoded.test), decoded.fingerprints, decoded.checks, strict=True
        )
    )
    return train, test


def tree_fingerprint(folder: Path, resize: Resize | None, tree: Tree) -> str:
    """A hash that changes with the folder, the resizing, and the name, size or time of change of any file."""
    how = "\0".join(map(str, resize_key(resize)))
    digest = hashlib.blake2b(f"{FORMAT}\0{folder}\0{how}".encode(), digest_size=20)
    start = len(str(folder))
    for file in tree.train + tree.test:
        digest.update(f"\0{file.path[start:]}\0{file.size}\0{file.mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def cache_file(folder: Path, resize: Resize | None, *part: str) -> Path:
    """The cache file for the decoded images of `folder`, or of a part of the folder."""
    # The name does not depend on the folder's content, so that after a change the old cache file is replaced.
    return named_file("folder", [str(folder), *resize_key(resize), *part])
