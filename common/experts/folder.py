"""Buffers, the folders of expert trajectories: where they lie, what they say of themselves, and how they are filled.

<buffer_path>/<dataset>[_zca]/<network>/
    manifest.json               what the experts were made for and how, the same for all of them
    expert_0000.safetensors     `trajectory`, float32 [epochs + 1, P]: row e holds the weights after e epochs
    expert_0001.safetensors     ...
    .expert_0002.lock           while a process trains this one
    .lock                       while a process writes the manifest

Every file is written once and whole, so that any number of processes may fill a folder, and be killed while they do.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from common.config.places import dataset_folder
from common.datasets import ImageData
from common.images.pixels import fingerprint
from common.system.errors import InputError
from common.system.files import read_json, take_lock, write_atomically, write_json
from common.system.text import difference
from common.system.version import code_version

FORMAT = "fred-experts"
VERSION = 1
MANIFEST = "manifest.json"
_METADATA_KEY = "fred"
_EXPERT = re.compile(r"expert_(\d+)\.safetensors")
_OF_AN_EXPERT = re.compile(r"\.expert_(\d+)\.")
_NOT_FLAGS = ("image_size", "channels", "mean", "std")
_OF_THE_DATASET = ("image_size", "channels", "class_names", "training_images", "mean", "std", "parameters")
# What safe_open and reading from it raise for a file that is not whole, or another.
UNREADABLE_TENSORS = (SafetensorError, OSError, ValueError, LookupError, TypeError)


def buffer_folder(buffer_path: str | Path, dataset: str, model: str, zca: bool) -> Path:
    """<buffer_path>/<dataset>[_zca]/<network>; of folder:PATH and hf:PATH the path's last part is named."""
    return Path(buffer_path).expanduser() / f"{dataset_folder(dataset)}{'_zca' if zca else ''}" / model


def describe(data: ImageData, model: str, network: nn.Module) -> dict[str, Any]:
    """What experts are made for, as JSON values: the images, how they are normalised, and the network's parameters.

    data: the training images. Names, mean and std can be borrowed or shared, so a fingerprint says which they are: that
    of the raw images, which of whitened ones the whitening keeps.
    """
    zca = data.whitening
    return {
        "dataset": data.name,
        "image_size": list(data.im_size),
        "channels": data.channels,
        "class_names": list(data.class_names),
        "training_images": {
            "count": len(data),
            "fingerprint": fingerprint(data.images) if zca is None else zca.fingerprint,
        },
        "mean": list(data.mean),
        "std": list(data.std),
        "zca": None if zca is None else zca.as_metadata(),
        "model": model,
        "parameters": {name: list(parameter.shape) for name, parameter in network.named_parameters()},
        "parameter_count": sum(parameter.numel() for parameter in network.parameters()),
    }


@contextmanager
def filling(folder: Path, made_for: dict[str, Any], made_by: dict[str, Any]) -> Iterator[None]:
    """Inside, experts may be saved in `folder`, beside other processes that were given the same.

    made_for: `describe`. made_by: the settings of the training, by the names of their flags. The first process writes
    both as the manifest; raises InputError where there is one that differs, saying in what, and where the folder cannot
    be written.
    """
    manifest = {"format": FORMAT, "format_version": VERSION, **made_for, **made_by}
    while not _is_begun(folder):
        lock = _lock(folder, ".lock")
        if lock is None:
            time.sleep(1)  # a process is just writing the manifest
            continue
        try:
            if not _is_begun(folder):
                _remove_temporary(folder, MANIFEST)
                write_json(folder / MANIFEST, manifest | {"version": code_version()})
        finally:
            lock.release()
    told = differences(read_manifest(folder), made_for | made_by)
    if told:
        raise InputError(
            f"{folder} holds experts with other settings ({told}): give another --buffer_path, or remove it"
        )
    for number in _left_over(folder):
        with _held(folder, number):
            pass  # removes what is there, unless a process is at this expert
    yield


def missing_experts(folder: Path, num_experts: int, shape: tuple[int, int]) -> list[int]:
    """The numbers below num_experts that have no file with a trajectory of this shape; a damaged one is told of."""
    missing = []
    for number in range(num_experts):
        if not _is_there(folder, number, shape):
            if expert_file(folder, number).exists():
                tqdm.write(f"{expert_file(folder, number)} is damaged: training this expert anew", file=sys.stderr)
            missing.append(number)
    return missing


@contextmanager
def claimed(
    folder: Path, number: int, shape: tuple[int, int], while_waiting: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Whether to train expert `number` here: no process is at it, and none has saved it in this shape meanwhile.

    Inside, other processes are told no. while_waiting: wait for a process that is at it, until it has saved the expert
    or ended, and call this every second; it may raise. Raises InputError where the folder cannot be written.
    """
    with _held(folder, number, while_waiting) as held:
        yield held and not _is_there(folder, number, shape)


def save_expert(folder: Path, number: int, trajectory: Tensor, accuracies: dict[int, float | None]) -> Path:
    """Write an expert's file and return its path. accuracies: of the network on the test images, by epochs trained.

    Raises InputError where it cannot be written.
    """
    metadata = {"format": FORMAT, "format_version": VERSION, "expert": number, "accuracies": accuracies}
    content = save({"trajectory": trajectory.contiguous()}, {_METADATA_KEY: json.dumps(metadata, allow_nan=False)})
    file = expert_file(folder, number)
    write_atomically(file, lambda temporary: temporary.write_bytes(content))
    return file


def expert_file(folder: Path, number: int) -> Path:
    """Where an expert's trajectory is kept."""
    return folder / f"expert_{number:04d}.safetensors"


def expert_files(folder: Path) -> list[Path]:
    """The files of the experts in a folder, by number; none where there is no such folder."""
    return numbered_files(folder, _EXPERT)


def numbered_files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of a folder whose names match, in the order of the number that is the pattern's group."""
    if not folder.is_dir():
        return []
    found = [(match, file) for file in folder.iterdir() if (match := pattern.fullmatch(file.name))]
    return [file for _, file in sorted(found, key=lambda each: int(each[0][1]))]


def trajectory_shape(file: Path) -> tuple[int, int]:
    """(epochs + 1, P) of an expert's file, from its header alone. Raises InputError if it is damaged or another."""
    try:
        with safe_open(file, framework="np") as stored:
            trajectory = stored.get_slice("trajectory")
            shape, kind = trajectory.get_shape(), trajectory.get_dtype()
    except UNREADABLE_TENSORS as error:
        raise damaged(file, str(error)) from error
    if len(shape) != 2 or min(shape) < 1 or kind != "F32":
        raise damaged(file, f"its trajectory is {kind} {shape}")
    return shape[0], shape[1]


def damaged(file: Path, what: str) -> InputError:
    """The error of an expert's file that cannot be used as it is."""
    return InputError(f"{file} is damaged ({what}): run buffer.py as before, which trains this expert anew")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder says of its experts. Raises InputError if it says nothing, or is of a newer version."""
    file = folder / MANIFEST
    if not file.exists():
        raise InputError(f"{folder} has experts but no {MANIFEST} that says of what: give another --buffer_path")
    try:
        manifest = read_json(file)
        kind, version = manifest["format"], int(manifest["format_version"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}): give another --buffer_path") from error
    if kind != FORMAT:
        raise InputError(f"{file} is not of expert trajectories, but of {kind!r}: give another --buffer_path")
    if version > VERSION:
        raise InputError(f"{file} has format version {version}, this code reads up to {VERSION}: update it")
    return manifest


def differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """In words what of `asked` is otherwise in a manifest; "" if nothing is. What follows from another is left out."""
    skip = {"parameter_count"}
    if any(stored.get(key) != asked[key] for key in ("image_size", "channels", "zca")):
        skip.add("training_images")
    if dataset_folder(str(stored.get("dataset"))) == dataset_folder(asked["dataset"]):
        skip.add("dataset")  # the same images in another place
    else:
        skip.update(_OF_THE_DATASET)
    if stored.get("model") != asked["model"]:
        skip.add("parameters")
    return ", ".join(
        _difference(key, stored.get(key), value)
        for key, value in asked.items()
        if key not in skip and stored.get(key) != value
    )


def _difference(key: str, stored: Any, asked: Any) -> str:
    if key == "zca" and stored and asked:
        return "whitened by other training images"
    if key == "zca":
        stored, asked = bool(stored), bool(asked)
    if key == "training_images":
        return "other training images"
    if key == "class_names":
        return "other classes"
    if key == "parameters":
        return "parameters of other names or shapes"
    return difference(key if key in _NOT_FLAGS else f"--{key}", stored, asked)


def _lock(folder: Path, name: str) -> BaseFileLock | None:
    return take_lock(folder / name, "the buffer", "--buffer_path")


@contextmanager
def _held(folder: Path, number: int, while_waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Whether this process has expert `number` to itself inside; while_waiting: see `claimed`."""
    name = f".expert_{number:04d}.lock"
    while (lock := _lock(folder, name)) is None:
        if while_waiting is None:
            yield False
            return
        while_waiting()
        time.sleep(1)
    try:
        _remove_temporary(folder, expert_file(folder, number).name)
        yield True
    finally:
        # A process of an earlier version that has just opened the file locks what has no name: at worst an expert is
        # trained twice, alike. Windows removes no open file; filelock does it there when it lets go.
        with suppress(PermissionError):
            (folder / name).unlink(missing_ok=True)
        lock.release()


def _is_begun(folder: Path) -> bool:
    """Whether there is a manifest, or experts without one. It is written whole, so it can be read without a lock."""
    return (folder / MANIFEST).exists() or bool(expert_files(folder))


def _left_over(folder: Path) -> list[int]:
    """Experts with a lock or a temporary file: a process is at them, or was killed while it was."""
    files = [*folder.glob(".expert_*.lock"), *folder.glob(".expert_*.tmp")]
    return sorted({int(match[1]) for file in files if (match := _OF_AN_EXPERT.match(file.name))})


def _remove_temporary(folder: Path, name: str) -> None:
    """Remove what a process killed in the middle of writing the file `name` has left; call it with the file's lock."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink()


def _is_there(folder: Path, number: int, shape: tuple[int, int]) -> bool:
    """Whether an expert has a whole file with a trajectory of this shape."""
    file = expert_file(folder, number)
    try:
        return file.exists() and trajectory_shape(file) == shape
    except InputError:
        return False
