"""Reads images that others made, in class folders, an .npz or a .pt file. Nothing in a file is ever run."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from common.datasets import ImageData
from common.disk.listing import entries, entry_kind
from common.disk.paths import is_folder
from common.images.encoded import Unreadable, describe_remarks, read_image
from common.images.image_tree import ImageFile, LeftOut, class_folders, image_files
from common.images.pixel_values import PIXELS
from common.pretrained import forms
from common.synset.authors import SUFFIXES
from common.system.errors import InputError
from common.system.files import UNREADABLE, check_zip, load_torch, reason_of


class Found(NamedTuple):
    """What was read: images [N, ch, *im_size], uint8 or float32, and labels int64 [N]."""

    images: Tensor
    labels: Tensor
    class_names: list[str] | None  # in the order of the labels; None: they are numbers of the dataset's classes
    values: str | None  # a key of forms.VALUES or of PIXELS; None if nothing says what the numbers are
    statistics: list[Any]  # the mean and the std by which they are normalised; empty if nothing says so
    kind: str  # such as "png", "jpg, png" or "npz"
    bytes: int  # of the files


def read_folder(path: Path, train: ImageData, pixels: str | None) -> Found:
    """The image files of a folder, decoded: uint8 [N, ch, H, W] with the channels of `train`.

    Raises InputError for files that cannot be read or are of another size than the images of `train`.
    """
    if pixels is not None:
        raise InputError("--pixels says what the numbers of an .npz or .pt are, image files hold bytes: leave it out")
    inner = path / "train"
    root = inner if is_folder(inner) and any(entry_kind(each) == "folder" for each in entries(inner)) else path
    left_out = LeftOut()
    names = class_folders(root, left_out)
    files = [file for label, name in enumerate(names) for file in image_files(root / name, label, left_out)]
    left_out.report(root.name)
    if not files:
        raise InputError(f"{path} has no folders of images: put them into PATH/CLASS/, or give an .npz or .pt file")
    remarks = Counter[str]()
    images = np.stack([_pixels(file, train, remarks) for file in files])
    if told := describe_remarks(remarks, len(files), root.name, "shown"):
        logging.getLogger(__name__).warning("%s", told)
    kinds = sorted({Path(file.path).suffix.lower()[1:] for file in files})
    return Found(
        torch.from_numpy(images),
        torch.tensor([file.label for file in files]),
        names,
        "bytes",
        [],
        ", ".join(kinds),
        sum(file.size for file in files),
    )


def _pixels(file: ImageFile, train: ImageData, remarks: Counter[str]) -> np.ndarray:
    """One image, uint8 [ch, H, W]. A gray one fills all channels, a coloured one is made gray as Pillow does it."""
    try:
        picture = read_image(file.path, None, "shown")
    except Unreadable as error:
        raise InputError(f"{file.path} cannot be read as an image ({error.__cause__}): replace it") from error
    remarks.update(picture.remarks)
    if picture.pixels.shape[1:] != train.im_size:
        sides, wanted = (" x ".join(map(str, each)) for each in (picture.pixels.shape[1:], train.im_size))
        raise InputError(
            f"{file.path} is {sides} pixels, and the images of {train.name} are {wanted} (height x width): resize it, "
            "or give the --dataset that it stands for"
        )
    if len(picture.pixels) == train.channels:
        return picture.pixels
    if len(picture.pixels) == 1:
        return picture.pixels.repeat(train.channels, axis=0)
    return _luma(picture.pixels)


def _luma(pixels: np.ndarray) -> np.ndarray:
    from PIL import Image

    # WebP has no grayscale, so that gray images arrive in three channels.
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("L"))[None]


def read_tensors(path: Path, pixels: str | None) -> Found:
    """The images of an .npz or .pt file: "images" [N, ch, *sides] and "labels" [N], "class_names", "values".

    The last two may be missing. pixels: what the numbers are, where the file does not say so. Nothing in the file is
    run. Raises InputError for a file that is damaged or of another form.
    """
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}: give a folder of PATH/CLASS/FILE, an .npz or a .pt file")
    if path.suffix not in (".npz", *SUFFIXES):
        raise InputError(f"{path} is no folder, .npz or .pt file: give one, or images in folders PATH/CLASS/")
    try:
        content = _load_npz(path) if path.suffix == ".npz" else _load_pt(path)
    except (*UNREADABLE, MemoryError) as error:  # an array may claim any size
        raise InputError(f"{path} cannot be read ({reason_of(error)}): it is damaged, copy it again") from error
    images, labels = content.get("images"), content.get("labels")
    if not (_plain(images) and _plain(labels) and images.dim() in (4, 5) and images.numel()):
        raise InputError(f"{path} has no images and labels: it is to hold 'images' [N, ch, H, W] and 'labels' [N]")
    if labels.dim() != 1 or labels.dtype.is_floating_point or len(labels) != len(images):
        raise InputError(f"{path} has labels that are not one whole number for each of its {len(images)} images")
    told, names = content.get("values"), content.get("class_names")
    known = isinstance(told, str) and told in {*forms.VALUES, *PIXELS}
    if told is not None and (not known or pixels not in (None, told)):
        remedy = "leave out --pixels" if known else "give --pixels, and remove the entry"
        raise InputError(f"{path} says that its values are {told!r}: {remedy}")
    if not (names is None or (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names))):
        raise InputError(f"{path} has class_names that are no list of text: write them so, or leave them out")
    whole = images.dtype == torch.uint8
    return Found(
        images if whole else images.float(),
        labels.long(),
        None if names is None else list(names),
        told or pixels or ("bytes" if whole else None),
        [_numbers(path, content[key]) for key in ("mean", "std") if told == "normalised" and key in content],
        path.suffix[1:],
        path.stat().st_size,
    )


def _plain(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()


def _numbers(path: Path, values: Any) -> list[float]:
    plain = values.detach() if isinstance(values, Tensor) else values
    try:
        numbers: list[float] = np.asarray(plain, dtype=float).ravel().tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} has a mean or std that is no list of numbers: write one for each channel") from error
    return numbers


_KEYS = ("images", "labels", "class_names", "values", "mean", "std")


def _load_npz(path: Path) -> dict[str, Any]:
    check_zip(path)
    # Of a damaged file numpy leaves open what it has opened itself.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in _KEYS if key in stored}
    return {
        key: torch.from_numpy(array) if key in ("images", "labels") else array.tolist() for key, array in arrays.items()
    }


def _load_pt(path: Path) -> dict[str, Any]:
    content = load_torch(path)
    if not isinstance(content, dict):
        raise ValueError("it holds no dictionary")
    return content
