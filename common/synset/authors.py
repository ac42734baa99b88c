"""Reads synthetic sets that the authors' scripts saved, without running code from the files.

pair      images_best.pt and labels_best.pt (or ..._<iteration>.pt), also with a prefix, as in FreD_ipc1#images_best.pt:
          one tensor each; the images are decoded, normalised and grouped by class. Labels are numbers of classes [N],
          or soft: probabilities or logits [N, C].
results   res_*.pt: {"data": [...], "accs_all_exps": {network: [accuracies]}} with one entry of `data` per experiment:
          [(images, labels)] if FreD wrote the file, [images, labels] if its ancestor DatasetCondensation did.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from common.disk.paths import expanded, is_file
from common.images.pixel_values import PixelValues
from common.synset.soft_labels import SoftLabelKind, SoftLabels, checked
from common.system.errors import InputError
from common.system.files import UNREADABLE, load_torch, reason_of

SUFFIXES = (".pt", ".pth")
_NAME = re.compile(r"(?P<before>.*)(?P<what>images|labels)(?P<after>[^/]*)")
_PARTNER = {"images": "labels", "labels": "images"}
_FORMS = "an images_*.pt beside its labels_*.pt, or a res_*.pt"

# The accuracies in res_*.pt are numpy scalars: their types, and the two names that versions of numpy give to their
# constructor. Loading them calls nothing that the file names.
_NUMBERS = (
    np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_,
)  # fmt: skip
_SCALAR = np.float64(0).__reduce__()[0]
_ALLOWED: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(number)) for number in _NUMBERS),
]


@dataclass(frozen=True)
class AuthorsSet:
    """Images and labels of a synthetic set and the files they come from: N images of C classes, n = N / C per class."""

    images: Tensor
    """float32 [N, ch, *im_size], contiguous, on the CPU, grouped by class; as a rule normalised, see `as_normalised`"""
    labels: Tensor
    """int64 [N]: n zeros, n ones, ..., n times C - 1"""
    kind: Literal["pair", "results"]
    accuracies: dict[str, list[float | None]] | None
    """network -> accuracies as fractions, those of all experiments in the file in order; None if it holds none"""
    files: tuple[Path, ...]
    """the files that were read: images and labels, or the one results file"""
    soft_labels: SoftLabels | None = None
    """those of the images, in their order, if the file holds a tensor [N, C] for labels"""

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return int(self.labels[-1]) + 1

    @property
    def num_per_class(self) -> int:
        """n, the number of images per class."""
        return len(self.labels) // self.num_classes

    @property
    def channels(self) -> int:
        """ch, the number of channels."""
        return self.images.shape[1]

    @property
    def im_size(self) -> tuple[int, ...]:
        """The two or three sides of an image, in pixels."""
        return tuple(self.images.shape[2:])


def read_authors(
    path: Path | str,
    exp: int | None = None,
    pixels: PixelValues | None = None,
    soft_labels: SoftLabelKind | None = None,
) -> AuthorsSet:
    """Read a pair, given the path of either file, or a res_*.pt.

    The tensors may be of any device, memory layout and floating-point width. Images that are not grouped by class are
    grouped; within a class their order is kept.
    exp: number of the experiment in a res_*.pt, counted from 0; None takes the last, which is usually the only one.
    pixels: what the pixel values are. They are not converted here, but "bytes" also allows uint8 images.
    soft_labels: what labels [N, C] are, None for probabilities. The class of such an image is the most likely one, or,
    if that makes classes of unequal size, the images are taken to be grouped by class already.
    Raises InputError if a file is missing, damaged, of another format, or holds anything but tensors and numbers (such
    a file is never loaded, because it could run code); if images are not finite; and if classes differ in size.
    """
    path = expanded(path)
    content = _load(path)
    if isinstance(content, Tensor):
        if exp is not None:
            raise InputError(f"{path} holds one set, not experiments to choose from: leave out the experiment {exp}")
        files = _both_files(path)
        tensors = [content if file == path else _load(file) for file in files]
        return checked_set(tensors[0], tensors[1], "pair", None, files, pixels, soft_labels)
    if not isinstance(content, dict) or "data" not in content:
        raise InputError(f"{path} is not a synthetic set of the authors: give {_FORMS}")
    images, labels = _experiment(path, content["data"], exp)
    accuracies = _accuracies(path, content.get("accs_all_exps"))
    return checked_set(images, labels, "results", accuracies, (path,), pixels, soft_labels)


def is_authors(path: Path | str) -> bool:
    """Whether a file has a suffix that `read_authors` reads (.pt or .pth)."""
    return Path(path).suffix in SUFFIXES


def _load(file: Path) -> Any:
    """Load tensors, numbers, lists and dictionaries; a global that the file names and `_ALLOWED` lacks is refused."""
    if not is_file(file):
        raise InputError(f"there is no file {file}: give {_FORMS}")
    try:
        return load_torch(file, _ALLOWED)
    except UNREADABLE as error:
        told = str(error)
        asked = re.search(r"GLOBAL (\S+)", told)
        if asked:
            raise InputError(
                f"{file} asks for {asked[1]}, which a synthetic set does not need and which could run code: "
                "it was not loaded"
            ) from error
        raise InputError(
            f"{file} cannot be read ({reason_of(error)}): it is damaged or no file of torch.save; copy it again"
        ) from error


def _both_files(path: Path) -> tuple[Path, Path]:
    """Return the paths (images, labels) of a pair, of which `path` is one."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise InputError(
            f"{path} holds a tensor, but its name has neither 'images' nor 'labels' in it, by which the other file "
            "of the pair is found: rename the two to images_best.pt and labels_best.pt"
        )
    other = path.with_name(f"{match['before']}{_PARTNER[match['what']]}{match['after']}")
    if not is_file(other):
        raise InputError(f"{path} has no {other.name} beside it: images and labels come as two files, copy both")
    return (path, other) if match["what"] == "images" else (other, path)


def _experiment(path: Path, data: Any, exp: int | None) -> tuple[Any, Any]:
    """Return the images and labels of one experiment of a res_*.pt."""
    if not isinstance(data, list) or not data:
        raise InputError(f"{path} has no experiment in its 'data': it is not a res_*.pt of the authors, or not whole")
    if exp is not None and not 0 <= exp < len(data):
        raise InputError(f"{path} has no experiment {exp}: there are {len(data)}, counted from 0")
    entry = data[-1 if exp is None else exp]
    if isinstance(entry, list | tuple) and len(entry) == 1:  # FreD's nesting
        entry = entry[0]
    if not (isinstance(entry, list | tuple) and len(entry) == 2):
        raise InputError(f"{path} holds no pair of images and labels in its 'data': give {_FORMS}")
    return entry[0], entry[1]


def _finite(accuracy: float) -> float | None:
    """The accuracy, None for one that is NaN or infinite, as a network that diverged has none."""
    return accuracy if math.isfinite(accuracy) else None


def _accuracies(path: Path, stored: Any) -> dict[str, list[float | None]] | None:
    if stored is None:
        return None
    try:
        # The scripts of ImageNet-abcde leave the lists empty.
        found = {str(name): [_finite(float(value)) for value in values] for name, values in stored.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path} has accuracies ('accs_all_exps') that are not lists of numbers by network") from error
    return {name: values for name, values in found.items() if values} or None


def checked_set(
    images: Any, labels: Any, kind: Literal["pair", "results"], accuracies: dict[str, list[float | None]] | None,
    files: tuple[Path, ...], pixels: PixelValues | None, soft_kind: SoftLabelKind | None,
) -> AuthorsSet:  # fmt: skip
    """Return images and labels, of whatever types, as a set grouped by class.

    files: those that the messages name, images first and labels last. pixels: see `read_authors`.
    Raises InputError for shapes and numbers that cannot be a set.
    """
    first, last = files[0], files[-1]
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        if pixels != "bytes":
            raise InputError(
                f"{first} holds no images: they are a tensor of floating-point numbers, [N, ch, *sides], or with "
                "--pixels bytes of whole ones in 0..255, which are then normalised"
            )
        images = images.float()
    if not (isinstance(images, Tensor) and images.layout == torch.strided and images.is_floating_point()):
        raise InputError(f"{first} holds no images: they are a tensor of floating-point numbers, [N, ch, *sides]")
    if images.dim() not in (4, 5) or 0 in images.shape:
        raise InputError(
            f"{first} has images of shape {list(images.shape)}: [N, ch, H, W] or [N, ch, D, H, W] is needed"
        )
    is_soft = isinstance(labels, Tensor) and labels.dim() == 2 and labels.is_floating_point()
    if not is_soft and not (isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_complex()):
        raise InputError(
            f"{last} holds no labels: they are a tensor [N] with the number of a class for every image, or a "
            "floating-point one [N, C] with a probability of every class"
        )
    if len(labels) != len(images):
        raise InputError(f"{first} has {len(images)} images, {last} {len(labels)} labels: they do not belong together")
    images = images.detach().to(torch.float32)
    if not images.isfinite().all():
        raise InputError(f"{first} has images that are not finite (NaN or infinity): the run that made it diverged")
    if is_soft:
        soft, whole = _soft(labels, soft_kind or "probabilities", last)
        order = whole.argsort(stable=True)
        soft = SoftLabels(soft.values[order], soft.kind)
        return AuthorsSet(images[order].contiguous(), whole[order], kind, accuracies, files, soft)
    if soft_kind is not None:
        raise InputError(f"{last} holds numbers of classes and no soft labels: leave out --soft_labels {soft_kind}")
    whole = labels.detach().to(torch.int64)
    if not torch.equal(whole.to(torch.float64), labels.detach().to(torch.float64)) or (whole < 0).any():
        raise InputError(f"{last} has labels that are not numbers of classes (0, 1, ...)")
    # The clamp limits the memory of bincount. A label above the number of images is wrong anyway: some class is empty.
    counts = torch.bincount(whole.clamp(max=len(whole)))
    if len(counts) > 1 and counts[0] == 0 and (counts[1:] == counts[1]).all():
        raise InputError(
            f"{last} numbers its classes from 1 (1 to {len(counts) - 1}), and they are counted from 0 here: subtract 1 "
            "from the labels, and save them again"
        )
    if (counts != counts[0]).any():
        told = ", ".join(map(str, counts[:10].tolist())) + (", ..." if len(counts) > 10 else "")
        raise InputError(f"{last} has classes of unequal size ({told} images): a synthetic set has as many of each")
    order = whole.argsort(stable=True)
    return AuthorsSet(images[order].contiguous(), whole[order], kind, accuracies, files)


def _soft(labels: Tensor, kind: SoftLabelKind, file: Path) -> tuple[SoftLabels, Tensor]:
    """The soft labels [N, C] of a file, and the class int64 [N] that each image is counted to."""
    soft = checked(labels, kind, len(labels), None, str(file), "if they are logits, give --soft_labels logits")
    count, classes = soft.values.shape
    if classes == 0 or count % classes:
        raise InputError(
            f"{file} has soft labels of {count} images of {classes} classes, which is not as many of each: a synthetic "
            "set has as many of each"
        )
    likely = soft.values.argmax(dim=1)
    if (torch.bincount(likely, minlength=classes) != count // classes).any():
        likely = torch.arange(classes, device=likely.device).repeat_interleave(count // classes)
    return soft, likely
