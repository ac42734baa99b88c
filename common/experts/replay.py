"""Reads expert trajectories in the authors' format.

A file replay_buffer_<j>.pt holds a list of experts. Each expert is a list of snapshots, and each snapshot is a list of
tensors in the order of network.parameters(). The file does not say how the experts were trained, so only the shapes of
the tensors and the name of the folder can be checked.
"""

from __future__ import annotations

import re
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.config.places import dataset_folder
from common.experts.buffer import Expert
from common.experts.folder import numbered_files
from common.system.errors import InputError
from common.system.files import UNREADABLE, check_tensors, check_torch_file, reason_of

_REPLAY = re.compile(r"replay_buffer_(\d+)\.pt")


def replay_files(folder: Path) -> list[Path]:
    """The replay buffers in a folder, ordered by number; empty if the folder does not exist."""
    return numbered_files(folder, _REPLAY)


def replayed_experts(folder: Path, files: list[Path], made_for: dict[str, Any]) -> list[Expert]:
    """The experts in replay buffers, in the order of the files and of the lists in the files.

    made_for: `folder.describe` of the training images and the network. The files are memory-mapped: the lists are read
    at once, each snapshot only when it is used.
    Raises InputError for a file that is damaged, holds objects other than tensors, or does not fit the network, and for
    a folder whose name contradicts made_for about whitening. Damage in the weights of a snapshot is found when the
    snapshot is used, and raises InputError then.
    """
    _check_whitening(folder, made_for)
    shapes = {name: tuple(shape) for name, shape in made_for["parameters"].items()}
    experts = []
    for file in files:
        content, check = _read_replay(file)
        for number, snapshots in enumerate(content):
            name = f"{file}, expert {number}"
            for tensors in snapshots:
                _check_shapes(name, [tuple(tensor.shape) for tensor in tensors], shapes, made_for["model"])
            experts.append(Expert(name, len(snapshots) - 1, partial(_replayed_snapshot, snapshots, check)))
    return experts


class _StorageCheck:
    """Compares the storages of a mapped file with the checksums in the file, each when it is first used."""

    def __init__(self, file: Path, known: set[tuple[int, int]]) -> None:
        self._file, self._known = file, known  # (bytes, CRC-32) of every storage
        self._checked: set[int] = set()  # addresses

    def __call__(self, tensor: Tensor) -> None:
        """Raises InputError if the storage of this tensor is not what was written."""
        storage = tensor.untyped_storage()
        if not self._known:  # a file of torch before 1.6, which has no checksums
            return
        if storage.data_ptr() in self._checked or not storage.nbytes():
            return
        content = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if (storage.nbytes(), zlib.crc32(content.data)) not in self._known:
            raise InputError(
                f"{self._file} is damaged (weights with a wrong checksum): copy it again, or train experts with "
                "buffer.py"
            )
        self._checked.add(storage.data_ptr())


def _read_replay(file: Path) -> tuple[list[list[list[Tensor]]], _StorageCheck]:
    try:
        known = check_torch_file(file, storages=False)
        check = _StorageCheck(file, known)
        # Only a zip file, as torch writes since version 1.6, can be mapped.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles that torch.save did not write; they are refused
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=bool(known))
        check_tensors(content)
    except UNREADABLE as error:
        raise InputError(
            f"{file} cannot be read ({reason_of(error)}): it is damaged, or holds more than tensors, which is never "
            "loaded because it could run code; copy it again, or train experts with buffer.py"
        ) from error
    fits = isinstance(content, list) and all(
        isinstance(snapshots, list) and snapshots and all(isinstance(tensors, list) for tensors in snapshots)
        for snapshots in content
    )
    if not fits or not all(isinstance(t, Tensor) for snapshots in content for tensors in snapshots for t in tensors):
        raise InputError(
            f"{file} is not a list of experts, each a list of snapshots, each a list of tensors: "
            "give a --buffer_path with replay buffers"
        )
    return content, check


def _check_shapes(name: str, found: list[tuple[int, ...]], wanted: dict[str, tuple[int, ...]], model: str) -> None:
    if len(found) != len(wanted):
        raise InputError(
            f"{name} has {len(found)} parameter tensors, {model} has {len(wanted)}: give the --model it was made with"
        )
    for shape, (parameter, there) in zip(found, wanted.items(), strict=True):
        if shape != there:
            raise InputError(
                f"{name} has {list(shape)} where {parameter} of {model} is {list(there)}: "
                "give the --dataset and --model it was made with"
            )


def _replayed_snapshot(snapshots: list[list[Tensor]], check: _StorageCheck, epoch: int) -> Tensor:
    for tensor in snapshots[epoch]:
        check(tensor)
    return torch.cat([tensor.detach().float().flatten() for tensor in snapshots[epoch]])


def _check_whitening(folder: Path, made_for: dict[str, Any]) -> None:
    """Check whitening by the folder's name: <dataset> for whitened images, <dataset>_NO_ZCA for images that are not.

    These are the authors' names; the files do not say whether the images were whitened.
    """
    dataset, here = dataset_folder(made_for["dataset"]), folder.parent.name
    if made_for["zca"] is not None and here == f"{dataset}_NO_ZCA":
        raise InputError(f"the experts in {folder} were trained without whitening: leave out --zca")
    if made_for["zca"] is None and here in (dataset, f"{dataset}_zca"):
        raise InputError(
            f"by its name {folder} holds replay buffers of whitened images: give --zca, or if they are not whitened "
            f"rename {here} to {dataset}_NO_ZCA"
        )
