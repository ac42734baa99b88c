"""Opens any synthetic set by its name: our file, an authors' file, or hf://owner/name on the Hugging Face Hub."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from common.disk.paths import expanded
from common.images.pixel_values import PixelValues
from common.images.zca import EPS
from common.networks.pools import principal
from common.synset.authors import AuthorsSet, is_authors, read_authors
from common.synset.base import LearnedSet
from common.synset.file import load_synset
from common.synset.hub import PREFIX, fetch
from common.synset.soft_labels import SoftLabelKind
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from common.system.text import point_of
from common.system.version import code_version


def open_synset(
    name: str,
    device: torch.device | str = "cpu",
    zca: bool | None = None,
    pixels: PixelValues | None = None,
    soft_labels: SoftLabelKind | None = None,
) -> tuple[LearnedSet, dict[str, Any]]:
    """Return a synthetic set and its metadata from our file, an authors' file or hf://owner/name[/file].

    The images of an authors' file are opened as plain pixels, with the values of the file (see `as_normalised`).
    zca: whether an authors' file holds whitened images, which the file itself does not record.
    pixels, soft_labels: what the pixel values and the labels [N, C] of an authors' file are, which the file does not
    record either.
    Raises InputError if `name` is not a readable synthetic set, or if one of these is given for another format.
    """
    path = fetch(name) if name.startswith(PREFIX) else expanded(name)
    if not is_authors(path):
        check_no_pixels(name, pixels, soft_labels)
        return load_synset(path, device)
    authors = read_authors(path, pixels=pixels, soft_labels=soft_labels)
    metadata = told_by_file(authors, zca=bool(zca))
    metadata["source"] = source_of(authors, residual=0.0)
    return as_pixels(authors, device), metadata


def check_no_pixels(name: str, pixels: PixelValues | None, soft_labels: SoftLabelKind | None = None) -> None:
    """Raise InputError if --pixels or --soft_labels was given for a file of this project, which says so itself."""
    if soft_labels is not None:
        raise InputError(
            f"--soft_labels says what the authors' files hold, and {name} is none and says so itself: leave it out"
        )
    if pixels is not None:
        raise InputError(
            f"--pixels says what the authors' files hold, and {name} is none: leave it out (a set that was converted "
            "from wrong values has to be converted again with --pixels)"
        )


def as_pixels(authors: AuthorsSet, device: torch.device | str = "cpu") -> SynSet:
    """Return a set of exactly the stored images: transform identity, k = d pixels, ipc = n images per class."""
    d = math.prod(authors.im_size)
    coefficients = authors.images.flatten(2).unflatten(0, (authors.num_classes, authors.num_per_class))
    positions = torch.arange(d, dtype=torch.int32, device="cpu").expand(authors.num_classes, d)
    return synset_of(authors, coefficients, positions, authors.num_per_class, device, transform="identity")


def synset_of(
    authors: AuthorsSet,
    coefficients: Tensor,
    positions: Tensor,
    ipc: int,
    device: torch.device | str,
    *,
    transform: str = "dct",
    lr_freq: float = 0.0,
    mom_freq: float = 0.0,
) -> SynSet:
    """Return a `SynSet` for an authors' set, with coefficients float32 [C, n, ch, k] at positions int32 [C, k].

    ipc: the budget, which must give n images per class.
    Raises InputError if the budget, the coefficients and the positions do not fit together.
    """
    synset = SynSet(
        SynSetArgs(
            channel=authors.channels,
            num_classes=authors.num_classes,
            im_size=authors.im_size,
            device=device,
            ipc=ipc,
            msz_per_channel=coefficients.shape[3],
            lr_freq=lr_freq,
            mom_freq=mom_freq,
            transform=transform,
        )
    )
    synset.load_state_dict({"coefficients": coefficients.to(device), "positions": positions.to(device)})
    synset.soft_labels = authors.soft_labels and authors.soft_labels.to(device)
    return synset


def told_by_file(authors: AuthorsSet, zca: bool = False, model: str | None = None) -> dict[str, Any]:
    """Return metadata as a distillation writes it; most values are None, because an authors' file does not hold them.

    model: the network to train on the set; None takes the first network whose accuracies the file holds.
    """
    accuracies = authors.accuracies or {}
    model = model or next(iter(accuracies), None)
    return {
        "dataset": None,
        "mean": None,
        "std": None,
        "zca": {"eps": EPS, "fingerprint": None} if zca else None,
        "class_names": None,
        "image_size": None,
        "resize": None,
        "antialias": None,
        "objective": None,
        "model": model,
        "network": model,
        "evaluation": None,
        "accuracy": point_of(accuracies, principal(accuracies, model or "")) if accuracies else None,
        "seed": None,
        **({} if authors.soft_labels is None else {"soft_labels": authors.soft_labels.kind}),
        "version": code_version(),
    }


def source_of(authors: AuthorsSet, residual: float) -> dict[str, Any]:
    """Return the metadata entry that says where a set comes from.

    residual: that of `recover.Recovered`, 0 for images stored unchanged.
    """
    return {
        "format": f"the authors' {authors.kind}",
        "files": [file.name for file in authors.files],
        "residual": residual,
    }
