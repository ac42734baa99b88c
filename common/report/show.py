"""Describes a synthetic-set file in pictures and words: `python -m common.report show FILE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from common import frequency
from common.config.places import dataset_folder
from common.report import pictures
from common.report.description import clipped, describe_set
from common.synset.base import LearnedSet
from common.synset.file import file_bytes, load_synset
from common.synset.synset import SynSet
from common.terminal.next_step import to_gallery


@dataclass
class ShowOptions:
    """Draw a synthetic set (images, kept positions, energy of the coefficients) and print what it holds."""

    file: tyro.conf.Positional[str]
    """the synthetic set, a .safetensors file"""
    output: str | None = None
    """folder for images.png, masks.png and energy.png (default: <file without .safetensors>_pictures)"""


def show(options: ShowOptions) -> None:
    """Draw a synthetic set and print its description. Raises InputError for a file that cannot be read."""
    file = Path(options.file)
    synset, metadata = load_synset(file)
    folder = (
        Path(options.output) if options.output else file.with_name(f"{file.name.removesuffix('.safetensors')}_pictures")
    )
    parts = file_bytes(file)
    told = f"{parts['needed']:,} for a decoder, {parts['metadata']:,} of metadata, {parts['header']:,} of header"
    rows = describe_set(metadata) | {"file": f"{file.stat().st_size:,} bytes: {told}"}
    if outside := shown(synset.get(need_copy=True)[0], metadata)[1]:
        rows["pictures"] = outside
    for label, text in rows.items():
        print(f"{label:<14}{text}")
    for picture in draw(synset, metadata, folder):
        print(picture)
    print(to_gallery(file.parent))


def draw(synset: LearnedSet, metadata: dict[str, Any], folder: Path) -> list[Path]:
    """Draw images.png, masks.png and, except for plain pixels, energy.png into the folder; return their paths."""
    names = metadata.get("class_names") or [str(c) for c in range(synset.num_classes)]
    dataset, storage = dataset_folder(metadata.get("dataset") or "unknown dataset"), metadata.get("storage")
    budget = f"ipc {synset.ipc}, k {synset.msz_per_channel}"
    if storage is not None:
        budget = f"{storage['kind']}, {storage['bits_per_class']:,} bits per class"
    title = f"{dataset}, {budget}"
    paths = [folder / "images.png", folder / "masks.png"]
    drawing = pictures.draw_images if len(synset.im_size) == 2 else pictures.draw_voxels
    images, outside = shown(synset.get(need_copy=True)[0], metadata)
    drawing(paths[0], images, names, f"{title}\n{outside}" if outside else title)
    pictures.draw_masks(paths[1], synset.mask, names, f"{synset.describe_kept()} kept")
    if synset.transform != "identity":
        paths.append(folder / "energy.png")
        pictures.draw_energy(paths[2], *energy_by_frequency(synset), names, f"{title}: coefficient energy by frequency")
    return paths


def visible(images: Tensor, metadata: dict[str, Any]) -> Tensor:
    """Map normalised images [B, ch, ...] to 0..1 by the mean and std in the metadata; see `shown`."""
    return shown(images, metadata)[0]


def shown(images: Tensor, metadata: dict[str, Any]) -> tuple[Tensor, str]:
    """Return normalised images [B, ch, ...] as pixels in 0..1, and a remark on values that were changed for that.

    Without mean and std in the metadata, and for whitened images, the values are stretched from the lowest to the
    highest one. Otherwise mean and std give pixels, which are clipped to 0..1. The remark is "" if none are.
    """
    mean, std = metadata.get("mean"), metadata.get("std")
    if mean is None or std is None or metadata.get("zca"):  # whitened images need the training set to be inverted
        low, high = images.min(), images.max()
        remark = f"values are stretched from {float(low):.2f} (black) to {float(high):.2f} (white)"
        return (images - low) / (high - low).clamp_min(1e-12), remark
    shape = (1, -1, *[1] * (images.ndim - 2))
    pixels = images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return pixels.clamp(0, 1), clipped(pixels)


def energy_by_frequency(synset: LearnedSet) -> tuple[Tensor, Tensor]:
    """Return the F frequencies [F], ascending, and for each class the mean square [C, F] of a coefficient there.

    Several positions share a frequency. The mean is over images, channels and all positions of the frequency. The
    coefficients are in orthonormal units; those that are not kept count as 0. So, by Parseval's theorem, the mean
    squares of all d positions add up to the mean squared norm of an image channel.
    """
    scale = frequency.orthonormal_scale(synset.im_size, synset.transform).flatten().float()  # [d]
    if not isinstance(synset, SynSet):
        images = synset.get(need_copy=True)[0].cpu().unflatten(0, (synset.num_classes, -1))
        dense = frequency.forward(images, len(synset.im_size)).flatten(3) / scale  # [C, n, ch, d]
        return _by_frequency(synset, torch.arange(synset.d).expand(len(dense), -1), dense.square().mean(dim=(1, 2)))
    positions = synset.positions.long().cpu()  # [C, k]
    squares = (synset.coefficients.detach().cpu() / scale[positions][:, None, None]).square().mean(dim=(1, 2))  # [C, k]
    return _by_frequency(synset, positions, squares)


def _by_frequency(synset: LearnedSet, positions: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """The frequencies [F], and the means [C, F] of squares [C, k] at positions [C, k], of all positions of each."""
    values, bins = frequency.frequencies(synset.im_size, synset.transform).flatten().unique(return_inverse=True)
    energy = torch.zeros(synset.num_classes, len(values)).scatter_add_(1, bins[positions], squares)
    return values, energy / torch.bincount(bins)
