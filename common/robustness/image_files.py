"""Reads ImageNet-C, which is stored as image files in one folder per class."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.datasets.imagenet_classes import PREFIX, SUBSETS
from common.images import decode
from common.images.encoded import describe_remarks
from common.images.image_data import ImageData
from common.images.image_tree import LeftOut, image_files
from common.images.pixels import Decoding, Resize
from common.robustness.conditions import Condition, Part, Unusable, like_clean
from common.system.errors import InputError

_GROUPS = ("", "blur", "digital", "noise", "weather", "extra")  # each archive may be unpacked into its own folder
_WNID = re.compile(r"n\d{8}")


def image_trees(
    folder: Path,
    clean: ImageData,
    kinds: Sequence[str],
    levels: Sequence[int],
    resize: Resize | None,
    decoding: Decoding,
    skip_corrupt: bool,
    workers: int | None,
) -> dict[Condition, Part]:
    """Find the images of each corruption (`kinds`) and level of ImageNet-C, only of the classes of the clean images.

    clean: the uncorrupted test images. resize, decoding, skip_corrupt, workers: as for `open_target`.
    Raises `Unusable` for folders that are missing or empty, and InputError if the classes of the clean images are not
    ImageNet's.
    """
    wnids, left_out = _wnids(clean), LeftOut()
    parts: dict[Condition, Part] = {}
    for kind in kinds:
        place = next((folder / group / kind for group in _GROUPS if (folder / group / kind).is_dir()), None)
        if place is None:
            raise Unusable(f"there is no folder {kind}")
        for level in levels:
            files: list[str] = []
            labels: list[int] = []
            for label, wnid in enumerate(wnids):
                in_class = place / str(level) / wnid
                found = image_files(in_class, label, left_out) if in_class.is_dir() else []
                if not found:
                    raise Unusable(f"{in_class.relative_to(folder)} ({clean.class_names[label]}) has no images")
                files += [file.path for file in found]
                labels += [label] * len(found)
            condition = Condition(kind, level)
            read = partial(
                _read_files, files, torch.tensor(labels), clean, str(condition), resize, decoding, skip_corrupt, workers
            )
            parts[condition] = Part(len(files), read)
    left_out.report("ImageNet-C")
    return parts


def _wnids(clean: ImageData) -> list[str]:
    """The WordNet ids of the classes of the clean images, in the order of their labels."""
    subset = SUBSETS.get(clean.name.removeprefix(PREFIX)) if clean.name.startswith(PREFIX) else None
    if subset is not None:
        return list(subset)
    if all(_WNID.fullmatch(name) for name in clean.class_names):  # a folder: dataset made of ImageNet's class folders
        return list(clean.class_names)
    raise InputError(
        f"ImageNet-C has the classes of ImageNet, and those of {clean.name} are {', '.join(clean.class_names)}: "
        f"test a set that was made from {PREFIX}SUBSET"
    )


def _read_files(
    files: Sequence[str],
    labels: Tensor,
    clean: ImageData,
    name: str,
    resize: Resize | None,
    decoding: Decoding,
    skip: bool,
    workers: int | None,
) -> ImageData:
    """Decode the images of a condition, without a cache.

    A test reads each condition only once, and a cache of all conditions would fill a disk.
    """
    first = decode.read_first(files, resize, decoding, skip)
    if first.shape[1:] != clean.im_size:
        sides = " x ".join(map(str, clean.im_size))
        raise InputError(f"{first.name} is not {sides} pixels like the images of {clean.name}: give --image_size")
    pieces: list[np.ndarray] = []
    kept = torch.ones(len(files), dtype=torch.bool)
    remarks: Counter[str] = Counter()
    for chunk in decode.decode(files, range(len(files)), resize, decoding, first, workers, skip):
        kept[chunk.unreadable] = False
        remarks += chunk.remarks
        shape = (len(chunk.images), clean.channels, *clean.im_size)
        pieces.append(np.broadcast_to(chunk.images, shape))  # a chunk of gray images gets three equal channels
    told = logging.getLogger(__name__)
    if line := describe_remarks(remarks, len(files), name, decoding):
        told.warning("%s", line)
    if not kept.all():
        told.warning("%d of the %d images of %s cannot be read and are left out", int((~kept).sum()), len(files), name)
    return like_clean(clean, torch.from_numpy(np.concatenate(pieces)), labels[kept], name)
