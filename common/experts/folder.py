"""Defines the format of buffers (folders of expert trajectories) and lets several processes fill a buffer.

<buffer_path>/<dataset>[_zca]/<network>/
    manifest.json               the images and network that the experts were trained for, and how they were trained
    expert_0000.safetensors     `trajectory`, float32 [epochs + 1, P]: row e holds the P weights after e epochs
    expert_0001.safetensors     ...
    .expert_0002.lock           exists while a process trains this expert
    .lock                       exists while a process writes the manifest

Every file is written once and atomically, so several processes can fill a folder, and can be killed while doing so.
"""

from __future__ import annotations

import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.config.places import dataset_folder
from common.datasets import ImageData
from common.disk.listing import matching
from common.disk.locks import Lock, take_lock, wait_for_lock
from common.disk.paths import expanded, is_folder
from common.schemas import door
from common.system.errors import InputError
from common.system.files import json_checksum, opened_tensors, write_atomically, write_json
from common.system.text import counted, difference
from common.system.version import code_version

FORMAT = "fred-experts"
VERSION = 2  # of the manifest; 2 has a checksum
EXPERT_VERSION = 2  # of the experts' files; 2 has a checksum for each snapshot
MANIFEST = "manifest.json"
_BUFFER = ("the buffer", "--buffer_path")  # what locks call the folder, and its flag, in error messages
_METADATA_KEY = "fred"
_EXPERT = re.compile(r"expert_(\d+)\.safetensors")
_OF_AN_EXPERT = re.compile(r"\.expert_(\d+)\.")
_NOT_FLAGS = ("image_size", "channels", "mean", "std")
_HELD_BACK = "validation"  # the key for the images that are held back, which a manifest has only if there are any
_OF_THE_DATASET = ("image_size", "channels", "class_names", "training_images", "mean", "std", "parameters")
_DAMAGED = "run buffer.py as before, which trains this expert again"


def buffer_folder(buffer_path: str | Path, dataset: str, model: str, zca: bool) -> Path:
    """The folder <buffer_path>/<dataset>[_zca]/<network>.

    For the datasets folder:PATH and hf:PATH, <dataset> is the last part of the path.
    """
    return expanded(buffer_path) / f"{dataset_folder(dataset)}{'_zca' if zca else ''}" / model


def describe(
    data: ImageData, model: str, network: nn.Module, validation: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Describe what experts are trained for, as JSON values: images, normalisation and the network's parameters.

    data: the training images. Different images can have the same names, mean and std, so the description contains a
    fingerprint of the raw images. For whitened images, the whitening holds that of all of them. validation: which
    images are held back and not in `data`, see `ValidationOptions`.
    """
    zca = data.whitening
    return {
        "dataset": data.name,
        "image_size": list(data.im_size),
        "channels": data.channels,
        "class_names": list(data.class_names),
        "training_images": {
            "count": len(data),
            "fingerprint": data.fingerprint if zca is None else zca.fingerprint,
        },
        "mean": list(data.mean),
        "std": list(data.std),
        "zca": None if zca is None else zca.as_metadata(),
        "model": model,
        "parameters": {name: list(parameter.shape) for name, parameter in network.named_parameters()},
        "parameter_count": sum(parameter.numel() for parameter in network.parameters()),
        **({} if validation is None else {_HELD_BACK: validation}),
    }


@contextmanager
def filling(folder: Path, made_for: dict[str, Any], made_by: dict[str, Any]) -> Iterator[None]:
    """Open `folder` for saving experts; other processes with the same arguments may save there at the same time.

    made_for: the result of `describe`. made_by: the training options, by the names of their flags. The first process
    writes both to the manifest.
    Raises InputError if the folder has a manifest that differs (the error names the differences) or if the folder
    cannot be written.
    """
    manifest = {"format": FORMAT, "format_version": VERSION, **made_for, **made_by}
    # Another process may be writing the manifest.
    lock = wait_for_lock(folder / ".lock", *_BUFFER, needed=lambda: not _is_begun(folder))
    if lock is not None:
        try:
            if not _is_begun(folder):
                _remove_temporary(folder, MANIFEST)
                manifest["version"] = code_version()
                write_json(folder / MANIFEST, manifest | {"checksum": json_checksum(manifest)})
        finally:
            lock.release()
    told = differences(read_manifest(folder), made_for | made_by)
    if told:
        raise InputError(
            f"{folder} holds experts with other settings ({told}): give another --buffer_path, or remove it"
        )
    for number in _left_over(folder):
        with _held(folder, number):
            pass  # removes leftover files, unless a process is training this expert
    yield


def missing_experts(folder: Path, num_experts: int, shape: tuple[int, int]) -> list[int]:
    """The numbers below num_experts of the experts that have no file with a trajectory of this shape.

    A file that exists but is damaged is reported on stderr.
    """
    missing = []
    for number in range(num_experts):
        if not _is_there(folder, number, shape):
            if expert_file(folder, number).exists():
                tqdm.write(f"{expert_file(folder, number)} is damaged: training this expert again", file=sys.stderr)
            missing.append(number)
    return missing


@contextmanager
def claimed(
    folder: Path, number: int, shape: tuple[int, int], while_waiting: Callable[[], None] | None = None
) -> Iterator[bool]:
    """Try to claim expert `number`; yields whether this process is to train it.

    The answer is False if another process is training the expert, or if the expert has a file with a trajectory of this
    shape already. Inside the context, other processes get False.
    while_waiting: if given, wait while another process trains the expert, until that process has saved it or has ended,
    and call this function every second; it may raise.
    Raises InputError if the folder cannot be written.
    """
    with _held(folder, number, while_waiting) as held:
        yield held and not _is_there(folder, number, shape)


def save_expert(folder: Path, number: int, trajectory: Tensor, accuracies: dict[int, float | None]) -> Path:
    """Write an expert's file and return the path of the file.

    accuracies: the test accuracies of the expert, by the number of epochs trained.
    Raises InputError if the file cannot be written.
    """
    from safetensors.torch import save

    metadata = {
        "format": FORMAT,
        "format_version": EXPERT_VERSION,
        "expert": number,
        "accuracies": accuracies,
        "checksums": [row_checksum(row) for row in trajectory],
    }
    content = save({"trajectory": trajectory.contiguous()}, {_METADATA_KEY: json.dumps(metadata, allow_nan=False)})
    file = expert_file(folder, number)
    write_atomically(file, lambda temporary: temporary.write_bytes(content))
    return file


def row_checksum(weights: Tensor) -> str:
    """A CRC-32 of one row of a trajectory, float32 [P], which a reader of that row alone can compare."""
    return f"{zlib.crc32(weights.contiguous().numpy().data):08x}"


def read_snapshots(file: Path, epochs: Iterable[int]) -> Iterator[Tensor]:
    """Read the weights after each of these numbers of epochs from an expert's file, float32 [P]; reads no other rows.

    Raises InputError if the file is damaged, by the checksum of each row. Files of versions that kept no checksums are
    believed.
    """
    with _opened(file) as stored:
        metadata, (count, _) = _metadata_in(stored, file), _shape_in(stored, file)
        checksums = metadata.get("checksums") if metadata["format_version"] > 1 else None
        if checksums is not None and len(checksums) != count:
            raise damaged(file, f"it has checksums of {len(checksums)} epochs, and weights of {count}")
        # numpy's slices read only the row; torch's would allocate memory for the whole file.
        rows = stored.get_slice("trajectory")
        for epoch in epochs:
            weights = torch.from_numpy(rows[epoch])
            if checksums is not None and checksums[epoch] != row_checksum(weights):
                raise damaged(file, f"the weights after {counted(epoch, 'epoch')} have a wrong checksum")
            yield weights


def read_expert_metadata(file: Path) -> dict[str, Any]:
    """What an expert's file tells of it: {"format_version", "accuracies", "checksums", ...}.

    Raises InputError if the file is damaged, or of a newer format version.
    """
    with _opened(file) as stored:
        return _metadata_in(stored, file)


def _metadata_in(stored: Any, file: Path) -> dict[str, Any]:
    from common.schemas.experts import Expert

    text = (stored.metadata() or {}).get(_METADATA_KEY, "{}")
    metadata = door.check(door.parse(text, str(file), _DAMAGED), Expert, str(file), _DAMAGED)
    if metadata["format_version"] > EXPERT_VERSION:
        raise damaged(file, f"its format version is {metadata['format_version']}")
    return metadata


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An expert's file, opened for reading. Raises InputError if it is damaged or lacks its trajectory."""
    try:
        with opened_tensors(file, "np") as stored:
            if "trajectory" not in stored.keys():  # noqa: SIM118 (not a mapping)
                raise damaged(file, "it has no trajectory")
            yield stored
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise damaged(file, str(error)) from error


def expert_file(folder: Path, number: int) -> Path:
    """The file that stores the trajectory of an expert."""
    return folder / f"expert_{number:04d}.safetensors"


def expert_files(folder: Path) -> list[Path]:
    """The expert files in a folder, ordered by number; empty if the folder does not exist."""
    return numbered_files(folder, _EXPERT)


def numbered_files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """The files of a folder whose names match the pattern, ordered by the number in the pattern's first group.

    The list is empty if the folder does not exist.
    """
    if not is_folder(folder):
        return []
    found = [(match, file) for file in matching(folder, "*") if (match := pattern.fullmatch(file.name))]
    return [file for _, file in sorted(found, key=lambda each: int(each[0][1]))]


def trajectory_shape(file: Path) -> tuple[int, int]:
    """The shape (epochs + 1, P) of the trajectory in an expert's file; only the header of the file is read.

    Raises InputError if the file is damaged or has another format.
    """
    with _opened(file) as stored:
        return _shape_in(stored, file)


def _shape_in(stored: Any, file: Path) -> tuple[int, int]:
    trajectory = stored.get_slice("trajectory")
    shape, kind = trajectory.get_shape(), trajectory.get_dtype()
    if len(shape) != 2 or min(shape) < 1 or kind != "F32":
        raise damaged(file, f"its trajectory is {kind} {shape}")
    return shape[0], shape[1]


def damaged(file: Path, what: str) -> InputError:
    """The error to raise for an expert's file that is damaged; `what` says how."""
    return InputError(f"{file} is damaged ({what}): {_DAMAGED}")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder of experts.

    Raises InputError if the manifest is missing, cannot be read, or has another format or a newer version.
    """
    from common.schemas.experts import Manifest, ManifestHead

    file = folder / MANIFEST
    if not file.exists():
        raise InputError(f"{folder} has experts but no {MANIFEST} that describes them: give another --buffer_path")
    remedy = "restore it, or give another --buffer_path"
    manifest = door.parse(door.read_text(file, remedy), str(file), remedy)
    manifest = door.check(manifest, ManifestHead, str(file), remedy)
    kind, version = manifest["format"], manifest["format_version"]
    if kind != FORMAT:
        raise InputError(f"{file} is not of expert trajectories, but of {kind!r}: give another --buffer_path")
    if version > VERSION:
        raise InputError(f"{file} has format version {version}, this code reads up to {VERSION}: update it")
    if version not in (1, VERSION) or (
        version == VERSION and manifest.pop("checksum", None) != json_checksum(manifest)
    ):
        raise InputError(
            f"{file} is damaged: restore it, or remove the folder and train its experts again with buffer.py"
        )
    return door.check(manifest, Manifest, str(file), remedy)


def differences(stored: dict[str, Any], asked: dict[str, Any]) -> str:
    """Describe in words where a manifest `stored` differs from `asked`; "" if nothing differs.

    A difference that follows from another one is left out.
    """
    skip, asked = {"parameter_count"}, {_HELD_BACK: None, **asked}
    if any(stored.get(key) != asked[key] for key in ("image_size", "channels", "zca", _HELD_BACK)):
        skip.add("training_images")
    if dataset_folder(str(stored.get("dataset"))) == dataset_folder(asked["dataset"]):
        skip.add("dataset")  # the same dataset, stored in another place
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
    if key == _HELD_BACK and stored and asked:
        return ", ".join(difference(f"--{each}", stored.get(each), asked[each]) for each in asked)
    if key == _HELD_BACK:
        return f"they have {'not ' if stored else ''}been trained on the images that --validation_share holds back"
    if key == "class_names":
        return "other classes"
    if key == "parameters":
        return "parameters of other names or shapes"
    return difference(key if key in _NOT_FLAGS else f"--{key}", stored, asked)


def _lock(folder: Path, name: str) -> Lock | None:
    return take_lock(folder / name, *_BUFFER)


@contextmanager
def _held(folder: Path, number: int, while_waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Lock expert `number` inside the context; yields False if another process holds the lock.

    while_waiting: see `claimed`.
    """
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
        # A process of an earlier version may have just opened the lock file. It then locks a file without a name, so
        # at worst an expert is trained twice, with the same result. Windows cannot remove an open file; there filelock
        # removes it when it releases the lock.
        with suppress(PermissionError):
            (folder / name).unlink(missing_ok=True)
        lock.release()


def _is_begun(folder: Path) -> bool:
    """Whether the folder has a manifest, or experts without a manifest.

    The manifest is written atomically, so it can be read without a lock.
    """
    return (folder / MANIFEST).exists() or bool(expert_files(folder))


def _left_over(folder: Path) -> list[int]:
    """The numbers of experts with a lock or temporary file, from a process that trains them or was killed doing so."""
    files = [*matching(folder, ".expert_*.lock"), *matching(folder, ".expert_*.tmp")]
    return sorted({int(match[1]) for file in files if (match := _OF_AN_EXPERT.match(file.name))})


def _remove_temporary(folder: Path, name: str) -> None:
    """Remove the temporary files of a process that was killed while it wrote the file `name`.

    The caller must hold the lock for this file.
    """
    for leftover in matching(folder, f".{name}.*.tmp"):
        leftover.unlink()


def _is_there(folder: Path, number: int, shape: tuple[int, int]) -> bool:
    """Whether the file of this expert exists, is undamaged in every row, and has a trajectory of this shape."""
    file = expert_file(folder, number)
    try:
        if not file.exists() or trajectory_shape(file) != shape:
            return False
        for _ in read_snapshots(file, range(shape[0])):
            pass
    except InputError:
        return False
    return True
