"""Opens a folder of expert trajectories, in our format or the authors', and checks that they fit their use."""

from __future__ import annotations

import hashlib
import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from common.config.command_line import data_flags, parse_buffer
from common.config.options import BufferOptions, DataOptions
from common.config.places import dataset_folder
from common.disk.paths import expanded
from common.experts.buffer import Buffer, Expert
from common.experts.folder import (
    buffer_folder,
    damaged,
    differences,
    expert_files,
    read_manifest,
    read_snapshots,
    trajectory_shape,
)
from common.experts.replay import replay_files, replayed_experts
from common.images.pixels import fingerprint
from common.system.errors import InputError
from common.system.scripts import buffer_script, start_words
from common.system.text import counted

# Keys of a manifest that describe the code, not the experts.
_OF_THE_CODE = ("format", "format_version", "version")


class NoExperts(InputError):
    """A folder has no experts yet."""


def find_buffer(buffer_path: str | Path, dataset: str, model: str, zca: bool) -> Path:
    """The folder to read experts from: `buffer_folder`, or a folder with replay buffers named as the authors do.

    The authors' folder is <dataset>_NO_ZCA/<network>, or <dataset>/<network> for whitened images. It is chosen only if
    it has replay buffers and `buffer_folder` has no experts.
    """
    ours = buffer_folder(buffer_path, dataset, model, zca)
    theirs = expanded(buffer_path) / f"{dataset_folder(dataset)}{'' if zca else '_NO_ZCA'}" / model
    return theirs if replay_files(theirs) and not expert_files(ours) else ours


def open_buffer(
    folder: Path,
    made_for: dict[str, Any],
    epochs: int | None = 1,
    data: DataOptions | None = None,
    objective: str = "TM",
) -> Buffer:
    """Open the experts in a folder and check that they fit their use.

    made_for: `folder.describe` of the training images and the network. epochs: the last snapshot that will be read,
    max_start_epoch - 1 + expert_epochs; None if the experts are to suggest it. data (the options that chose the images)
    and objective (whose buffer.py trains experts) are used only for an error message, which gives the command that
    trains missing experts.
    Of our files only the headers are read; of the authors' files the lists and one snapshot.
    Raises NoExperts, an InputError, for a folder without experts; InputError for experts of another dataset,
    normalisation or network, for too few epochs, and for files that are damaged or hold objects other than tensors.
    """
    ours, theirs = expert_files(folder), replay_files(folder)
    if ours and theirs:
        raise InputError(f"{folder} holds {ours[0].name} and {theirs[0].name}, two formats: move one of them elsewhere")
    if theirs and made_for.get("validation"):
        raise InputError(f"the experts in {folder} are the authors', trained on all images: give --validation_share 0")
    experts = replayed_experts(folder, theirs, made_for) if theirs else _experts_of(folder, ours, made_for)
    if not experts:
        data = data or DataOptions(dataset=made_for["dataset"], zca=made_for["zca"] is not None)
        command = training_command(folder, data, made_for["model"], epochs, objective)
        raise NoExperts(f"no experts in {folder}: run `{command}` first")
    digest = fingerprint(experts[0].snapshot(0)) if theirs else _digest(read_manifest(folder))
    buffer = Buffer(folder, tuple(experts), digest)
    if epochs is not None and buffer.epochs < epochs:
        raise InputError(
            f"the experts in {folder} have {counted(buffer.epochs, 'epoch')}; max_start_epoch - 1 + expert_epochs is "
            f"{epochs}: train others with --train_epochs {epochs} or more (and --keep_epochs {epochs}, which suffices) "
            "into another --buffer_path, or lower --max_start_epoch"
        )
    return buffer


def _experts_of(folder: Path, files: list[Path], made_for: dict[str, Any]) -> list[Expert]:
    """The experts in files of our format, checked against the manifest; only headers are read."""
    if not files:
        return []
    told = differences(read_manifest(folder), made_for)
    if told:
        raise InputError(
            f"the experts in {folder} were made for something else ({told}): give the options that they were made "
            "with, or train others with buffer.py into another --buffer_path"
        )
    experts = []
    for file in files:
        snapshots, count = trajectory_shape(file)
        if count != made_for["parameter_count"]:
            raise damaged(file, f"{count} parameters, the network has {made_for['parameter_count']}")
        experts.append(Expert(str(file), snapshots - 1, partial(_read_snapshot, file)))
    return experts


def _digest(manifest: dict[str, Any]) -> str:
    """A digest of everything that determines the experts; of the dataset it uses the name, not the path."""
    settings = {key: value for key, value in manifest.items() if key not in _OF_THE_CODE}
    settings["dataset"] = dataset_folder(str(settings["dataset"]))
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=20).hexdigest()


def _read_snapshot(file: Path, epoch: int) -> Tensor:
    (weights,) = read_snapshots(file, [epoch])
    return weights


def training_command(folder: Path, data: DataOptions, model: str, epochs: int | None, objective: str) -> str:
    """The command line that trains the experts that are missing in a folder, on the same images."""
    chosen = ["--dataset", data.dataset, *(["--recipe", data.recipe] if data.recipe else [])]
    unless_given = parse_buffer(BufferOptions, objective, chosen)  # the recipe's values, or the defaults
    words = [*start_words(buffer_script(objective)), *chosen, "--model", model, *data_flags(data, unless_given)]
    if epochs is not None:  # a recipe may train for fewer epochs than are needed
        words += ["--train_epochs", str(max(epochs, unless_given.train_epochs)), "--keep_epochs", str(epochs)]
    return shlex.join([*words, "--buffer_path", str(folder.parent.parent)])
