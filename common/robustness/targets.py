"""Opens corrupted or shifted test sets: CIFAR-10-C and ImageNet-C (corrupted images), CIFAR-10.1 (new images).

`open_target` checks every file that will be read, so that missing files are reported before hours of training. The
images themselves are read later, one condition at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.images.image_data import ImageData
from common.images.pixels import Decoding, Resize
from common.robustness.arrays import corrupted_arrays, new_test_images
from common.robustness.conditions import (
    CIFAR10_CLASSES,
    CORRUPTIONS,
    EXTRA,
    LEVELS,
    VERSIONS,
    Condition,
    Target,
    TargetName,
    Unusable,
)
from common.robustness.image_files import image_trees
from common.system.errors import InputError, close_names

_FOLDERS = {
    "CIFAR10-C": ("CIFAR10-C", "CIFAR-10-C"),  # the archive unpacks to the second
    "CIFAR10.1": ("CIFAR10.1", "CIFAR-10.1"),
    "ImageNet-C": ("imagenet-c", "ImageNet-C"),
}
_EXPECTED = {
    "CIFAR10-C": "CORRUPTION.npy, uint8 [5 * N, 32, 32, 3] with level after level, and labels.npy: "
    "unpack CIFAR-10-C.tar of https://zenodo.org/records/2535967",
    "CIFAR10.1": "datasets/cifar10.1_v6_data.npy, uint8 [N, 32, 32, 3], and cifar10.1_v6_labels.npy (or v4): "
    "take them from https://github.com/modestyachts/CIFAR-10.1",
    "ImageNet-C": "CORRUPTION/LEVEL/WNID/*.JPEG: unpack the archives of https://zenodo.org/records/2235448",
}


def open_target(
    name: TargetName,
    root: Path,
    clean: ImageData,
    kinds: Sequence[str],
    levels: Sequence[int] = LEVELS,
    *,
    resize: Resize | None = None,
    decoding: Decoding = "stored",
    skip_corrupt: bool = False,
    workers: int | None = None,
) -> Target:
    """Open a corrupted or shifted test set in `root`, the folder that contains CIFAR10-C/, CIFAR10.1/ or imagenet-c/.

    Args:
        clean: the uncorrupted test images, which determine classes, image size and normalisation or whitening.
        kinds: corruptions, or versions of CIFAR-10.1.
        levels: levels of each corruption. CIFAR-10.1 has no levels.
        resize: ImageNet-C only: how the clean images were resized. None keeps the size of the files.
        decoding: ImageNet-C only: how image files become pixels, as for `load_dataset`.
        skip_corrupt: ImageNet-C only: leave out image files that cannot be read, and report how many.
        workers: ImageNet-C only: number of decoding threads; None chooses it.

    Raises:
        InputError: for an unknown kind or level, for a file that is missing or has the wrong content, and if image size
            or classes differ from those of the clean images.
    """
    _check_names(name, kinds, levels)
    folder = target_folder(name, root)
    try:
        if name == "ImageNet-C":
            return Target(name, image_trees(folder, clean, kinds, levels, resize, decoding, skip_corrupt, workers))
        if tuple(clean.class_names) != CIFAR10_CLASSES:
            raise InputError(
                f"{name} shows {', '.join(CIFAR10_CLASSES)}, labelled in this order, but the classes of {clean.name} "
                f"are {', '.join(clean.class_names)}: test a set that was made from CIFAR-10"
            )
        if name == "CIFAR10.1":
            return Target(name, {Condition(kind, None): new_test_images(folder, clean, kind) for kind in kinds})
        return Target(name, corrupted_arrays(folder, clean, kinds, levels))
    except Unusable as problem:
        raise InputError(f"{name} is not whole in {folder}: {problem}; it must hold {_EXPECTED[name]}") from None


def target_folder(name: TargetName, root: Path) -> Path:
    """The folder in `root` of a corrupted or shifted test set.

    Raises InputError if there is no such folder; the message says what the folder must contain.
    """
    folder = next((root / each for each in _FOLDERS[name] if (root / each).is_dir()), None)
    if folder is None:
        raise InputError(f"{name} is not in {root}: the folder {_FOLDERS[name][0]} must hold {_EXPECTED[name]}")
    return folder


def _check_names(name: TargetName, kinds: Sequence[str], levels: Sequence[int]) -> None:
    known = VERSIONS if name == "CIFAR10.1" else (*CORRUPTIONS, *EXTRA)
    for kind in kinds:
        if kind not in known:
            close = close_names(kind, known)
            guess = f", did you mean {close}?" if close else ":"
            raise InputError(f"{name} has no {kind!r}{guess} give some of {', '.join(known)}")
    for level in levels:
        if level not in LEVELS:
            raise InputError(f"there is no level {level}: corruptions have levels {LEVELS[0]} to {LEVELS[-1]}")
