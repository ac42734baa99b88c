"""The run folder: configuration, log, metrics and checkpoints. A run that was stopped or killed resumes from it."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock
from tqdm import tqdm

from common.config.command_line import options_with_sources
from common.config.options import DistillOptions, Sources
from common.config.places import dataset_folder, run_folder
from common.runs.identity import automatic_name, differences, identity
from common.runs.track import TRACKER_FOLDERS
from common.system import parallel
from common.system.devices import describe_hardware
from common.system.errors import InputError
from common.system.files import UNREADABLE, take_lock, torch_bytes, write_atomically, write_json
from common.system.signals import Stoppable
from common.system.version import code_version

_CHECKPOINTS = ("checkpoint.pt", "checkpoint_previous.pt")
_ZIP_FOLDER = 0x10  # attribute of a folder; torch.load would silently leave the entry's memory uninitialised
# In the order of removal: checkpoints go first, and config.json, which says whose folder it is, goes last.
_OWN_FILES = (*_CHECKPOINTS, "summary.json", "report.html", "metrics.jsonl", "log.txt", "config.json")


# The messages when a run is stopped; see `Stoppable`.
_WORDS = (
    "saving, then stopping",
    "everything is saved, --resume auto (the default) continues",
    "the last checkpoint is kept, the same command continues",
)


class Run(Stoppable):
    """One run folder, which one process at a time can hold.

    `config` holds the objective, every resolved option with its source, the identity, version and hardware. `folder` is
    <save_path>/<objective>/<dataset>/ipc<ipc>/<name>. The constructor raises InputError if the folder cannot be
    written, is in use, or belongs to a run with another configuration.
    """

    def __init__(self, options: DistillOptions, sources: Sources, objective: str, device: torch.device) -> None:
        super().__init__(*_WORDS)
        name = options.name or automatic_name(options, objective)
        self.folder = run_folder(options.save_path, objective, options.dataset, options.ipc, name)
        self.dataset = dataset_folder(options.dataset)
        self._entries: list[dict[str, Any]] = []
        self._lock = self._take_folder()
        for leftover in self.folder.glob(".*.tmp"):  # from a process that was killed while writing
            leftover.unlink()
        try:
            if options.resume == "never":
                self._clear()
            self._check_identity(options)
        except BaseException:
            self.close()
            raise
        self.config = {
            "objective": objective,
            "options": options_with_sources(options, sources, objective),
            "identity": identity(options),
            "version": code_version(),
            "hardware": describe_hardware(device),
        }
        if self.summary is None:  # the folder of a finished run is not changed
            write_json(self.folder / "config.json", self.config)

    # -- writing during the run --------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """Print a line above any progress bar, and append it to log.txt."""
        tqdm.write(text)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def add_to_config(self, entries: dict[str, Any]) -> None:
        """Add these entries to `config` and write config.json again."""
        self.config |= entries
        write_json(self.folder / "config.json", self.config)

    def record(self, **entry: Any) -> None:
        """Add a line to metrics.jsonl. It is written with the next checkpoint, so that the two never disagree."""
        self._entries.append(entry)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the recorded metrics, then a checkpoint with `state`. The checkpoint before this one is kept too."""
        metrics = self.folder / "metrics.jsonl"
        try:
            with metrics.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in self._entries)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"cannot write {metrics}: {error.strerror}; free space and run again to continue"
            ) from error
        self._entries.clear()
        newest, previous = (self.folder / name for name in _CHECKPOINTS)
        serialised = torch_bytes({"metrics_bytes": metrics.stat().st_size, "state": state})

        def write(temporary: Path) -> None:
            temporary.write_bytes(serialised)
            if newest.exists():
                newest.replace(previous)

        write_atomically(newest, write)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the state of the newest undamaged checkpoint, or None for a new run.

        metrics.jsonl is truncated to its length at that checkpoint. Raises InputError if there are checkpoints but none
        of them can be read.
        """
        found = [self.folder / name for name in _CHECKPOINTS if (self.folder / name).exists()]
        for path in found:
            try:
                content = _read_checkpoint(path, self.folder / "metrics.jsonl")
            except UNREADABLE as error:
                self.log(f"{path} is damaged ({error}): trying the one before it")
                continue
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.truncate(content["metrics_bytes"])
            for damaged in found[: found.index(path)]:  # otherwise the next save would replace the good one by it
                damaged.unlink()
            return content["state"]
        if found:
            raise InputError(
                f"no readable checkpoint in {self.folder}: give --resume never to start over, or another --name"
            )
        # A run that was killed before its first checkpoint may have left metrics, which will be written again.
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        return None

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None while the run is not finished."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, which marks the run as finished."""
        write_json(self.folder / "summary.json", summary)

    def close(self) -> None:
        """Release the lock on the folder, so that other processes can open it."""
        self._lock.release()

    # -- opening -----------------------------------------------------------------------------------------------

    def _take_folder(self) -> BaseFileLock:
        lock = take_lock(self.folder / ".lock", "the run folder", "--save_path")
        if lock is None:
            raise InputError(f"another process is at work in {self.folder}: wait for it, or give another --name")
        return lock

    def _clear(self) -> None:
        for pattern in ("*.safetensors", "*.png", "images_best.pt", "labels_best.pt", *_OWN_FILES):
            for path in self.folder.glob(pattern):
                path.unlink()
        for name in TRACKER_FOLDERS:
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)

    def _check_identity(self, options: DistillOptions) -> None:
        path = self.folder / "config.json"
        if not path.exists():
            if any((self.folder / name).exists() for name in _CHECKPOINTS):
                raise InputError(
                    f"{self.folder} has checkpoints but no config.json that says whose: "
                    f"give another --name, or --resume never to replace them"
                )
            return
        try:
            stored = dict(json.loads(path.read_text(encoding="utf-8"))["identity"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is not the configuration of a run: give another --name") from error
        told = differences(stored, options)
        if told:
            raise InputError(
                f"{self.folder} belongs to a run with another configuration ({told}): "
                f"give another --name, or --resume never to replace it"
            )


class Follower(Run):
    """The run for all processes except rank 0. It takes what rank 0 has read, and writes nothing."""

    def __init__(self, folder: Path, dataset: str, config: dict[str, Any], summary: dict[str, Any] | None) -> None:
        Stoppable.__init__(self, *_WORDS)
        self.folder, self.dataset, self.config = folder, dataset, config
        self._summary = summary

    def log(self, text: str) -> None:
        """Do nothing: rank 0 prints and writes the line."""

    def add_to_config(self, entries: dict[str, Any]) -> None:
        """Do nothing: rank 0 writes the entries."""

    def record(self, **entry: Any) -> None:
        """Do nothing: rank 0 records the entry."""

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Do nothing: rank 0 writes the checkpoint."""

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return None: rank 0 reads the checkpoint and sends it to the others."""
        return None

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json when the run was opened; None if the run was not finished then."""
        return self._summary

    def finish(self, summary: dict[str, Any]) -> None:
        """Do nothing: rank 0 writes summary.json."""

    def close(self) -> None:
        """Do nothing: rank 0 holds the lock."""


def open_run(options: DistillOptions, sources: Sources, objective: str, device: torch.device) -> Run:
    """Open the run of these options: `Run` on rank 0, `Follower` elsewhere. Raises the same errors as `Run`."""
    run = Run(options, sources, objective, device) if parallel.is_main() else None
    told = parallel.broadcast(None if run is None else (run.folder, run.dataset, run.config, run.summary))
    return Follower(*told) if run is None else run


def _read_checkpoint(path: Path, metrics: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        # torch.load does not verify the checksums that torch.save writes.
        bad = archive.testzip()
        folders = [info.filename for info in archive.infolist() if info.external_attr & _ZIP_FOLDER]
    if bad is not None:
        raise ValueError(f"wrong checksum of {bad}")
    if folders:
        raise ValueError(f"{folders[0]} is marked as a folder")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if metrics.stat().st_size < content["metrics_bytes"]:
        raise ValueError(f"{metrics.name} is shorter than it was")
    return {key: content[key] for key in ("metrics_bytes", "state")}
