"""The run folder: configuration, log, metrics and checkpoints. A run that was stopped or killed resumes from it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.config.command_line import options_with_sources
from common.config.options import DistillOptions, Sources
from common.config.places import dataset_folder
from common.disk.listing import matching
from common.disk.locks import Lock, take_lock
from common.images.image_data import different_content
from common.runs.finished import (
    CHECKPOINTS,
    CHECKSUMS,
    METRICS,
    SUMMARY,
    read_checkpoint,
    read_finished,
    write_finished,
)
from common.runs.identity import differences, folder_of, identity, wherever_it_lies
from common.runs.track import TRACKER_FOLDERS
from common.schemas import door
from common.system import parallel
from common.system.devices import describe_hardware
from common.system.errors import InputError
from common.system.files import check_regular, torch_bytes, write_atomically, write_json
from common.system.signals import Stoppable
from common.system.version import code_version

# In the order of removal: checkpoints go first, and config.json, which says whose folder it is, goes last.
_OWN_FILES = (*CHECKPOINTS, CHECKSUMS, SUMMARY, "report.html", METRICS, "log.txt", "config.json")


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
    written, is in use, or belongs to a run with another configuration or of other images, or if a finished run has lost
    files that no checkpoint can make again. content: `content_of` the data.
    """

    def __init__(
        self,
        options: DistillOptions,
        sources: Sources,
        objective: str,
        device: torch.device,
        content: dict[str, Any],
    ) -> None:
        super().__init__(*_WORDS)
        self.folder = folder_of(options, objective)
        self.dataset = dataset_folder(options.dataset)
        self._options = options
        self._entries: list[dict[str, Any]] = []
        self._metrics = hashlib.blake2b(digest_size=20)  # of metrics.jsonl as it has been written so far
        self._lock = self._take_folder()
        for leftover in matching(self.folder, ".*.tmp"):  # from a process that was killed while writing
            leftover.unlink()
        try:
            if options.resume == "never":
                self._clear()
            stored = self._check_identity(options)
            self.check_content(content, stored or {})
            if stored is not None and "content" not in stored:
                self.log(
                    f"{self.folder} does not say which images it was made from: it is taken to be of the "
                    f"{content['train']} + {content['test']} images that are there now, and records their fingerprint"
                )
            self._summary, self.broken = read_finished(self.folder, self.log)
            if METRICS in self.broken:
                raise InputError(
                    f"{self.folder / METRICS} is missing, or not what the run wrote, and cannot be made again: "
                    "restore the file, give another --name, or --resume never to start over"
                )
            if self.broken:
                names = " and ".join(self.broken)
                self.log(
                    f"{names} in {self.folder}: missing, damaged or of another run; made again if the checkpoint has it"
                )
        except BaseException:
            self.close()
            raise
        self.config: dict[str, Any] = {
            "objective": objective,
            "options": options_with_sources(options, sources, objective),
            "identity": identity(options),
            "version": code_version(),
            "hardware": describe_hardware(device),
            "content": content,
        }
        if self.summary is None:
            write_json(self.folder / "config.json", self.config)
        elif stored is not None and "content" not in stored:  # nothing else of a finished run is changed
            write_json(self.folder / "config.json", {**stored, "content": content})

    # -- writing during the run --------------------------------------------------------------------------------

    def log(self, text: str) -> None:
        """Print a line above any progress bar, and append it to log.txt. Raises InputError if it cannot be written."""
        tqdm.write(text)
        path = self.folder / "log.txt"
        try:
            check_regular(path, device=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text + "\n")
        except OSError as error:
            raise _unwritten(path, error) from error

    def add_to_config(self, entries: dict[str, Any]) -> None:
        """Add these entries to `config` and write config.json again."""
        self.config |= entries
        write_json(self.folder / "config.json", self.config)

    def record(self, **entry: Any) -> None:
        """Add a line to metrics.jsonl. It is written with the next checkpoint, so that the two never disagree."""
        self._entries.append(entry)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the recorded metrics, then a checkpoint with `state`. The checkpoint before this one is kept too."""
        metrics = self.folder / METRICS
        lines = "".join(json.dumps(entry) + "\n" for entry in self._entries).encode()
        try:
            check_regular(metrics)
            with metrics.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritten(metrics, error) from error
        self._entries.clear()
        self._metrics.update(lines)
        newest, previous = (self.folder / name for name in CHECKPOINTS)
        serialised = torch_bytes({
            "metrics_bytes": metrics.stat().st_size,
            "metrics_checksum": self._metrics.hexdigest(),
            "identity": self.config["identity"],
            "state": state,
        })  # fmt: skip

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
        found = [self.folder / name for name in CHECKPOINTS if (self.folder / name).exists()]
        for path in found:
            try:
                content = self._read_checkpoint(path, "trying the one before it")
            except InputError as error:
                self.log(str(error))
                continue
            with (self.folder / METRICS).open("r+b") as file:
                file.truncate(content["metrics_bytes"])
                self._metrics.update(file.read())
            for damaged in found[: found.index(path)]:  # otherwise the next save would replace the good one by it
                damaged.unlink()
            return content["state"]
        if found:
            raise InputError(
                f"no readable checkpoint in {self.folder}: give --resume never to start over, or another --name"
            )
        if self.broken:
            raise InputError(
                f"{' and '.join(self.broken)} in {self.folder} cannot be made again, for there is no checkpoint: "
                "give --resume never to start over, or another --name"
            )
        # A run that was killed before its first checkpoint may have left metrics, which will be written again.
        (self.folder / METRICS).unlink(missing_ok=True)
        return None

    def last_state(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, or None if it cannot be read. Nothing in the folder is changed."""
        try:
            return self._read_checkpoint(self.folder / CHECKPOINTS[0])["state"]
        except InputError:
            return None

    def _read_checkpoint(self, path: Path, remedy: str = "restore it") -> dict[str, Any]:
        """A checkpoint of this run, and of the metrics.jsonl that is there. Raises InputError for another one."""
        content = _read_checkpoint(path, self.folder / METRICS, remedy)
        stored = content.get("identity")  # which older versions did not keep; `check_content` compares the images
        if stored is not None and (told := differences(wherever_it_lies(stored, self._options), self._options)):
            raise InputError(f"{path} is of another run ({told}): {remedy}")
        if (made := content["state"]["iteration"]) > self._options.Iteration:
            raise InputError(f"{path} is of {made:,} iterations, of a run of {self._options.Iteration:,}: {remedy}")
        return content

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None while the run is not finished, or while its files have to be made again."""
        return self._summary

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json and the checksums of the run's files, which marks the run as finished."""
        write_finished(self.folder, summary, self.config["identity"])
        self._summary, self.broken = summary, []

    def close(self) -> None:
        """Release the lock on the folder, so that other processes can open it."""
        self._lock.release()

    # -- opening -----------------------------------------------------------------------------------------------

    def _take_folder(self) -> Lock:
        lock = take_lock(self.folder / ".lock", "the run folder", "--save_path")
        if lock is None:
            raise InputError(f"another process is at work in {self.folder}: wait for it, or give another --name")
        return lock

    def _clear(self) -> None:
        for pattern in ("*.safetensors", "*.png", "images_best.pt", "labels_best.pt", *_OWN_FILES):
            for path in matching(self.folder, pattern):
                path.unlink()
        for name in TRACKER_FOLDERS:
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)

    def check_content(self, content: dict[str, Any], stored: dict[str, Any]) -> None:
        """Raises InputError where the images differ from those of a configuration, checkpoint or summary of this run.

        content: `content_of` the data. stored: without "content" if an older version wrote it; then nothing is checked.
        """
        if "content" not in stored:
            return
        told = different_content(stored["content"], content)
        if told:
            raise InputError(
                f"the images of {self.dataset} are not those that {self.folder} was begun with ({told}): "
                f"restore them, give another --name, or --resume never to replace the run"
            )

    def _check_identity(self, options: DistillOptions) -> dict[str, Any] | None:
        """The stored configuration, None for a new run. Raises InputError where it is that of another run."""
        path = self.folder / "config.json"
        if not path.exists():
            if any((self.folder / name).exists() for name in CHECKPOINTS):
                raise InputError(
                    f"{self.folder} has checkpoints but no config.json that says whose: "
                    f"give another --name, or --resume never to replace them"
                )
            return None
        from common.schemas.run import REMEDY, Identity

        config = door.read(path, Identity, REMEDY)
        stored: dict[str, Any] = config["identity"]
        if "content" in config:  # which `check_content` compares
            stored = wherever_it_lies(stored, options)
        told = differences(stored, options)
        if told:
            raise InputError(
                f"{self.folder} belongs to a run with another configuration ({told}): "
                f"give another --name, or --resume never to replace it"
            )
        return config


class Follower(Run):
    """The run for all processes except rank 0. It takes what rank 0 has read, and writes nothing."""

    def __init__(self, folder: Path, dataset: str, config: dict[str, Any], summary: dict[str, Any] | None) -> None:
        Stoppable.__init__(self, *_WORDS)
        self.folder, self.dataset, self.config = folder, dataset, config
        self._summary, self.broken = summary, []

    def log(self, text: str) -> None:
        """Do nothing: rank 0 prints and writes the line."""

    def check_content(self, content: dict[str, Any], stored: dict[str, Any]) -> None:
        """Do nothing: rank 0 compares the images."""

    def add_to_config(self, entries: dict[str, Any]) -> None:
        """Do nothing: rank 0 writes the entries."""

    def record(self, **entry: Any) -> None:
        """Do nothing: rank 0 records the entry."""

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Do nothing: rank 0 writes the checkpoint."""

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return None: rank 0 reads the checkpoint and sends it to the others."""
        return None

    def last_state(self) -> dict[str, Any] | None:
        """Return None: rank 0 reads the checkpoint and sends it to the others."""
        return None

    def finish(self, summary: dict[str, Any]) -> None:
        """Do nothing: rank 0 writes summary.json."""

    def close(self) -> None:
        """Do nothing: rank 0 holds the lock."""


def open_run(
    options: DistillOptions, sources: Sources, objective: str, device: torch.device, content: dict[str, Any]
) -> Run:
    """Open the run of these options: `Run` on rank 0, `Follower` elsewhere. Raises the same errors as `Run`."""
    run = Run(options, sources, objective, device, content) if parallel.is_main() else None
    told = parallel.broadcast(None if run is None else (run.folder, run.dataset, run.config, run.summary))
    return Follower(*told) if run is None else run


def _unwritten(path: Path, error: OSError) -> InputError:
    remedy = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "put that right"
    return InputError(f"cannot write {path}: {error.strerror or error}; {remedy} and run again to continue")


def _read_checkpoint(path: Path, metrics: Path, remedy: str = "restore both") -> dict[str, Any]:
    """A checkpoint. Raises InputError if it is damaged, or if metrics.jsonl is not what the run had written then."""
    content = read_checkpoint(path, remedy)
    size, expected = content["metrics_bytes"], content.get("metrics_checksum")
    try:
        check_regular(metrics)
        with metrics.open("rb") as file:
            written = file.read(size)
    except OSError as error:
        raise InputError(f"{path} cannot be used ({metrics.name}: {error.strerror}): {remedy}") from error
    if len(written) < size:
        raise InputError(f"{path} cannot be used ({metrics.name} is shorter than it was): {remedy}")
    if expected is not None and hashlib.blake2b(written, digest_size=20).hexdigest() != expected:
        raise InputError(f"{path} cannot be used ({metrics.name} is not what the run wrote): {remedy}")
    return content
