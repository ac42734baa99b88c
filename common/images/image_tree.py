"""Lists folders of image files, detects changes in them, and loads them as `ImageData`."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from common.disk.listing import EntryKind, entries, entry_kind
from common.disk.paths import unreadable
from common.images.decoded import check_request, decode_once
from common.images.disk_cache import named_file
from common.images.encoded import FORMAT, transparency
from common.images.image_data import ImageData, Request, Statistics, refuse_alike
from common.images.pixels import Decoding, Resize, resize_key
from common.system.errors import InputError

# First torchvision's IMG_EXTENSIONS, then others of formats that Pillow reads and people keep images in. Importing
# torchvision would take most of the time of a start from the cache.
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    ".jfif", ".jpe", ".gif", ".avif", ".pbm", ".pnm",
)  # fmt: skip
# Folders that systems hide, or fill with thumbnails and deleted files, without a dot before the name.
_SYSTEM_FOLDERS = frozenset({
    "@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot", "__MACOSX", "$RECYCLE.BIN",
    "System Volume Information", "lost+found",
})  # fmt: skip


class ImageFile(NamedTuple):
    """One image file of a tree; its size and time of change show whether it has changed."""

    path: str  # not a Path: making them would take most of the second that a start from the cache takes
    label: int
    size: int  # bytes
    mtime_ns: int


class LeftOut:
    """Counts the entries of folders that are not read as images, by kind, and keeps one name of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._names: dict[str, str] = {}

    def add(self, kind: str, name: str) -> None:
        """Count one entry of a kind."""
        self.counts[kind] += 1
        self._names[kind] = min(name, self._names.get(kind, name))  # whatever the order in which the disk lists them

    def __str__(self) -> str:
        """The kinds, the most frequent first: "12 .heic (a.heic, ...), 1 hidden (.DS_Store)"; "" if there are none."""
        return ", ".join(
            f"{count} {kind} ({self._names[kind]}{', ...' if count > 1 else ''})"
            for kind, count in sorted(self.counts.items(), key=lambda each: (-each[1], each[0]))
        )

    def report(self, name: str) -> None:
        """Log one line about what is left out of the images called `name`, if anything is."""
        if total := self.counts.total():
            entries, are = ("1 entry", "is") if total == 1 else (f"{total:,} entries", "are")
            logging.getLogger(__name__).warning("%s of %s %s not read as images: %s", entries, name, are, self)


class Tree(NamedTuple):
    """The class names, in the order of the labels, and the files of both splits, in the order of the images."""

    class_names: tuple[str, ...]
    train: list[ImageFile]
    test: list[ImageFile]
    left_out: LeftOut
    is_held_out: bool = False
    """Whether the test split was taken from the training images, for want of one."""


def class_folders(split: Path, left_out: LeftOut) -> list[str]:
    """The names of the folders in `split` without the hidden ones, in the order of torchvision's ImageFolder.

    Everything else in `split` is counted in `left_out`.
    """
    names = []
    for entry in entries(split):
        if is_hidden(entry.name):
            left_out.add("hidden", entry.name)
            continue
        kind = entry_kind(entry)
        if kind == "folder":
            names.append(entry.name)
        elif kind == "file" and is_image(entry.name):
            left_out.add("outside the class folders", entry.name)
        else:
            left_out.add(_told(entry, kind), entry.name)
    return sorted(names)


def count_beside(folder: Path, read: Collection[str], left_out: LeftOut) -> None:
    """Count in `left_out` what lies in `folder` beside the entries named in `read`; hidden entries are passed over."""
    for entry in entries(folder):
        if entry.name in read or is_hidden(entry.name):
            continue
        kind = entry_kind(entry)
        if kind == "folder":
            left_out.add("beside the splits", f"{entry.name}/")
        else:
            outside = kind == "file" and is_image(entry.name)
            left_out.add("outside the class folders" if outside else _told(entry, kind), entry.name)


def image_files(folder: Path, label: int, left_out: LeftOut, expected: tuple[str, ...] = ()) -> list[ImageFile]:
    """The image files in `folder` and its subfolders, sorted by path, all with the same label.

    Hidden files and folders are never read. They and all that is not an image file are counted in `left_out`, except
    files whose names end in one of `expected`, which belong to the dataset.
    """
    return sorted(_walk(str(folder), label, left_out, expected))


def image_file(path: str, label: int) -> ImageFile:
    """Look up the size and the time of change of one image file. Raises `InputError` if it is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 (Path takes ten times as long)
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file, and is never opened: replace it by the image")
    return ImageFile(path, label, status.st_size, status.st_mtime_ns)


def _walk(folder: str, label: int, left_out: LeftOut, expected: tuple[str, ...]) -> Iterator[ImageFile]:
    for entry in entries(folder):
        if is_hidden(entry.name):
            left_out.add("hidden", entry.name)
            continue
        kind = entry_kind(entry)
        if kind == "folder":
            if entry.is_symlink() and _is_around(entry.path, folder):  # it would be read until the path is too long
                left_out.add("linked to an enclosing folder", entry.name)
            else:
                yield from _walk(entry.path, label, left_out, expected)
        elif is_image(entry.name) and kind in ("file", "dangling"):
            # Of a link that leads nowhere the link itself: the image is missing, which decoding it will say.
            status = entry.stat(follow_symlinks=kind == "file")
            yield ImageFile(entry.path, label, status.st_size, status.st_mtime_ns)
        elif not entry.name.endswith(expected):
            left_out.add(_told(entry, kind), entry.name)


def is_hidden(name: str) -> bool:
    """Whether an entry of this name is hidden, or is a folder that a system keeps for itself."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def is_image(name: str) -> bool:
    """Whether a file of this name is read as an image."""
    return name.lower().endswith(EXTENSIONS)


def _is_around(link: str, folder: str) -> bool:
    """Whether a link leads to `folder` or to a folder that contains it."""
    target, inside = os.path.realpath(link), os.path.realpath(folder)
    return os.path.commonpath([target, inside]) == target


def _told(entry: os.DirEntry[str], kind: EntryKind) -> str:
    """What to call an entry that is neither hidden, nor a folder, nor an image file."""
    if kind == "dangling":
        return "linked to nothing"
    if kind == "special":
        return "neither file nor folder"
    return os.path.splitext(entry.name)[1].lower() or "without an extension"  # noqa: PTH122 (Path takes ten times as long)


def load_tree(
    tree: Tree,
    folder: Path,
    request: Request,
    name: str,
    statistics: Statistics | None = None,
    part: str | None = None,
    colour: bool = False,
    usual: Decoding = "shown",
) -> tuple[ImageData, ImageData]:
    """Load the images of a tree as uint8 `[N, ch, H, W]`; they are decoded once, then kept in the user's cache folder.

    name: the dataset's name, with which `load_dataset` loads the images again.
    statistics: mean and std to normalise with; None computes them from the training images.
    part: if the tree is only a part of `folder`, the name of that part, which then has its own cache file.
    colour: whether ch is always 3. Otherwise, ch is 1 if all files are grayscale and 3 if any is not.
    usual: how files are decoded unless the request says so.
    Logs one line about the entries that are left out, and one about the images that are not shown as they are stored.
    Raises `InputError` if a file is damaged, or differs in size from the others, or all images of a split are alike.
    """
    check_request(request)
    files = [file.path for file in tree.train + tree.test]
    labels = tuple(torch.tensor([file.label for file in files_of]) for files_of in (tree.train, tree.test))
    decoding = request.decoding or usual
    cache = cache_file(folder, request.resize, *([part] if part else []), *([decoding] if decoding != usual else []))
    key = tree_fingerprint(folder, request.resize, decoding, tree)
    said = part or folder.name
    tree.left_out.report(said)
    decoded = decode_once(files, (labels[0], labels[1]), tree.class_names, cache, key, request, decoding, said, colour)
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
    for data, split in ((train, "training"), (test, "test")):
        refuse_alike(data, f"{split} images", transparency(decoded.remarks, decoding))
    return train, test


def tree_fingerprint(folder: Path, resize: Resize | None, decoding: Decoding, tree: Tree) -> str:
    """A hash that changes with the folder, resizing and decoding, and the name, size or time of change of any file."""
    how = "\0".join(map(str, [*resize_key(resize), decoding]))
    digest = hashlib.blake2b(f"{FORMAT}\0{folder}\0{how}".encode("utf-8", "surrogateescape"), digest_size=20)
    start = len(str(folder))
    for file in tree.train + tree.test:
        digest.update(f"\0{file.path[start:]}\0{file.size}\0{file.mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def cache_file(folder: Path, resize: Resize | None, *part: str) -> Path:
    """The cache file for the decoded images of `folder`, or of a part of the folder."""
    # The name does not depend on the folder's content, so that after a change the old cache file is replaced.
    return named_file("folder", [str(folder), *resize_key(resize), *part])
