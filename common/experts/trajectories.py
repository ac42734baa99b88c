"""Expert trajectories as trajectory matching reads them: two snapshots at a time, from our files or the authors'.

The authors' replay_buffer_<j>.pt hold a list of experts, each a list of snapshots, each a list of tensors in the order
of network.parameters(). They say nothing of how they were made, so only the tensors' shapes can be checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from common.config.command_line import data_flags, parse_buffer
from common.config.options import BufferOptions, DataOptions
from common.config.places import dataset_folder
from common.experts.folder import (
    UNREADABLE_TENSORS,
    buffer_folder,
    damaged,
    differences,
    expert_files,
    numbered_files,
    read_manifest,
    trajectory_shape,
)
from common.images.pixels import fingerprint
from common.system.errors import InputError
from common.system.files import UNREADABLE
from common.system.scripts import buffer_script
from common.system.seeds import generator

_REPLAY = re.compile(r"replay_buffer_(\d+)\.pt")
# What a manifest says of the code, not of the experts.
_OF_THE_CODE = ("format", "format_version", "version")


class Expert(NamedTuple):
    """One trajectory, still on disk."""

    name: str  # its file, for messages
    epochs: int
    snapshot: Callable[[int], Tensor]  # epochs trained -> [P]


@dataclass(frozen=True)
class Buffer:
    """The experts of one folder; reading a pair reads no more than its two snapshots."""

    folder: Path
    experts: tuple[Expert, ...]
    digest: str
    """of what the experts are and how they were made, wherever they lie, and however many of them there are yet"""

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the experts apart in any place: their names without the folder."""
        return tuple(expert.name.removeprefix(f"{self.folder}/") for expert in self.experts)

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def epochs(self) -> int:
        """Epochs that every expert has: snapshots 0 to `epochs` can be asked for."""
        return min(expert.epochs for expert in self.experts)

    def pair(self, expert: int, start: int, expert_epochs: int) -> tuple[Tensor, Tensor]:
        """(theta_0, theta_star): the weights after `start` and after `start + expert_epochs` epochs, each float32 [P].

        Both are on the CPU, in the order of network.parameters(). Raises IndexError for numbers that are not there, and
        InputError for weights that are not finite, do not move, or cannot be read.
        """
        if not (0 <= expert < len(self) and 0 <= start < start + expert_epochs <= self.epochs):
            raise IndexError(f"no epochs {start} to {start + expert_epochs} of expert {expert} in {self.folder}")
        chosen = self.experts[expert]
        pair = chosen.snapshot(start), chosen.snapshot(start + expert_epochs)
        for epoch, weights in zip((start, start + expert_epochs), pair, strict=True):
            if not weights.isfinite().all():
                raise InputError(
                    f"{chosen.name}: the weights after {epoch} epochs are not finite; remove it and train it anew"
                )
        if torch.equal(*pair):
            raise InputError(
                f"{chosen.name}: the weights after {start} and {start + expert_epochs} epochs are the same, and leave "
                "nothing to match; train it anew (the authors' buffer.py keeps only the last weights without a GPU)"
            )
        return pair


class ExpertOrder:
    """Which expert comes when: each once, in random order, before any comes again.

    A run keeps to the experts that it began with, however many are trained while it is stopped: `state_dict` is part of
    its checkpoints. max_experts: use the first so many. seed: of the run.
    """

    def __init__(self, buffer: Buffer, seed: int, max_experts: int | None = None) -> None:
        self._buffer, self._seed = buffer, seed
        self._experts = list(range(len(buffer)))[:max_experts]

    def __len__(self) -> int:
        return len(self._experts)

    def expert(self, position: int) -> int:
        """The number in the buffer of the expert that comes at this position, counted from 0."""
        order = torch.randperm(len(self), generator=generator(self._seed, "experts", position // len(self)))
        return self._experts[int(order[position % len(self)])]

    def stated(self) -> dict[str, Any]:
        """For configuration and summary: how many experts are used, and of which buffer."""
        return {"experts": len(self), "buffer": self._buffer.digest}

    def check(self, stated: dict[str, Any]) -> None:
        """Raises InputError where a run, by what it `stated`, has followed the experts of another buffer."""
        if stated["buffer"] != self._buffer.digest:
            raise InputError(
                f"the run has followed other experts than those in {self._buffer.folder}: give the --buffer_path "
                "that it began with, another --name, or --resume never to start over"
            )

    def state_dict(self) -> dict[str, Any]:
        """The experts that are used, and of which buffer they are."""
        names = self._buffer.names
        return self.stated() | {"names": [names[expert] for expert in self._experts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. Raises InputError for another buffer, and for one that lacks some of the experts."""
        self.check(state)
        places = {name: place for place, name in enumerate(self._buffer.names)}
        missing = [name for name in state["names"] if name not in places]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(state['names'])} experts that the run began with are missing in "
                f"{self._buffer.folder} ({missing[0]}{', ...' if len(missing) > 1 else ''}): train them with "
                "buffer.py as before, or give --resume never to start over"
            )
        self._experts = [places[name] for name in state["names"]]


def find_buffer(buffer_path: str | Path, dataset: str, model: str, zca: bool) -> Path:
    """The folder to read experts from: ours, or the authors' (<dataset>_NO_ZCA/<network>; whitened: <dataset>/...).

    Ours is also the answer where there is neither.
    """
    ours = buffer_folder(buffer_path, dataset, model, zca)
    theirs = Path(buffer_path).expanduser() / f"{dataset_folder(dataset)}{'' if zca else '_NO_ZCA'}" / model
    return theirs if numbered_files(theirs, _REPLAY) and not expert_files(ours) else ours


def open_buffer(
    folder: Path,
    made_for: dict[str, Any],
    epochs: int = 1,
    data: DataOptions | None = None,
    objective: str = "TM",
) -> Buffer:
    """The experts in a folder, checked against what they are to be used for.

    made_for: `buffers.describe` of the training images and the network. epochs: the last snapshot that will be asked
    for, max_start_epoch - 1 + expert_epochs. data: the options that chose the images, for the command that would train
    missing experts, and objective: whose buffer.py that is. Only headers are read, of the authors' files the lists and
    one snapshot.
    Raises InputError for a folder without experts, for experts of another dataset, normalisation or network, with fewer
    epochs, and for files that are damaged or hold more than tensors.
    """
    ours, theirs = expert_files(folder), numbered_files(folder, _REPLAY)
    if ours and theirs:
        raise InputError(f"{folder} holds {ours[0].name} and {theirs[0].name}, two formats: move one of them elsewhere")
    experts = _replayed(folder, theirs, made_for) if theirs else _stored(folder, ours, made_for)
    if not experts:
        data = data or DataOptions(dataset=made_for["dataset"], zca=made_for["zca"] is not None)
        command = _command(folder, data, made_for["model"], epochs, objective)
        raise InputError(f"no experts in {folder}: run `{command}` first")
    digest = fingerprint(experts[0].snapshot(0)) if theirs else _digest(read_manifest(folder))
    buffer = Buffer(folder, tuple(experts), digest)
    if buffer.epochs < epochs:
        raise InputError(
            f"the experts in {folder} have {buffer.epochs} epochs; max_start_epoch - 1 + expert_epochs is {epochs}: "
            f"train others with --train_epochs {epochs} or more (and --keep_epochs {epochs}, which suffices) "
            "into another --buffer_path, or lower --max_start_epoch"
        )
    return buffer


# -- our files ---------------------------------------------------------------------------------------------------


def _stored(folder: Path, files: list[Path], made_for: dict[str, Any]) -> list[Expert]:
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
        experts.append(Expert(str(file), snapshots - 1, partial(_stored_snapshot, file)))
    return experts


def _digest(manifest: dict[str, Any]) -> str:
    """Of what a manifest says of the experts, from which they follow; of the dataset's place its last part."""
    stated = {key: value for key, value in manifest.items() if key not in _OF_THE_CODE}
    stated["dataset"] = dataset_folder(str(stated["dataset"]))
    return hashlib.blake2b(json.dumps(stated, sort_keys=True).encode(), digest_size=20).hexdigest()


def _stored_snapshot(file: Path, epoch: int) -> Tensor:
    try:
        # Of numpy's slices only the row is read; torch's would ask for memory for the whole file.
        with safe_open(file, framework="np") as stored:
            return torch.from_numpy(stored.get_slice("trajectory")[epoch])
    except UNREADABLE_TENSORS as error:
        raise damaged(file, str(error)) from error


# -- the authors' files ------------------------------------------------------------------------------------------


def _replayed(folder: Path, files: list[Path], made_for: dict[str, Any]) -> list[Expert]:
    _check_whitening(folder, made_for)
    shapes = {name: tuple(shape) for name, shape in made_for["parameters"].items()}
    experts = []
    for file in files:
        for number, snapshots in enumerate(_read_replay(file)):
            name = f"{file}, expert {number}"
            for tensors in snapshots:
                _check_shapes(name, [tuple(tensor.shape) for tensor in tensors], shapes, made_for["model"])
            experts.append(Expert(name, len(snapshots) - 1, partial(_replayed_snapshot, snapshots)))
    return experts


def _read_replay(file: Path) -> list[list[list[Tensor]]]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [""])[0].partition(". ")[0]
        raise InputError(
            f"{file} cannot be read ({reason}): it is damaged, or holds more than tensors, which is never loaded "
            "because it could run code; copy it again, or train experts with buffer.py"
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
    return content


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


def _replayed_snapshot(snapshots: list[list[Tensor]], epoch: int) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in snapshots[epoch]])


def _check_whitening(folder: Path, made_for: dict[str, Any]) -> None:
    """The authors' folders are <dataset> with whitening and <dataset>_NO_ZCA without: all that tells the two apart."""
    dataset, here = dataset_folder(made_for["dataset"]), folder.parent.name
    if made_for["zca"] is not None and here == f"{dataset}_NO_ZCA":
        raise InputError(f"the experts in {folder} were trained without whitening: leave out --zca")
    if made_for["zca"] is None and here in (dataset, f"{dataset}_zca"):
        raise InputError(
            f"by its name {folder} holds replay buffers of whitened images: give --zca, or if they are not whitened "
            f"rename {here} to {dataset}_NO_ZCA"
        )


def _command(folder: Path, data: DataOptions, model: str, epochs: int, objective: str) -> str:
    """The command line that trains what is missing, on the same images."""
    chosen = ["--dataset", data.dataset, *(["--recipe", data.recipe] if data.recipe else [])]
    unless_given = parse_buffer(BufferOptions, objective, chosen)  # what the recipe says, where there is one
    words = ["python", buffer_script(objective), *chosen, "--model", model, *data_flags(data, unless_given)]
    # A recipe may say fewer epochs than are asked for.
    words += ["--train_epochs", str(max(epochs, unless_given.train_epochs)), "--keep_epochs", str(epochs)]
    return shlex.join([*words, "--buffer_path", str(folder.parent.parent)])
