"""Trackers, which show a run's curves and pictures in TensorBoard or Weights & Biases, in addition to the run folder.

The x axis is the number of iterations made: the loss of the first iteration is drawn at 1, and the evaluation before it
at 0. Calls come in this order. When a run is resumed, it makes exactly those points again whose x is greater than that
of its checkpoint, so trackers can drop their old copies, and no point appears twice. No tracker affects the random
numbers of a run.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any, Literal

from common.config.options import TrackerName
from common.system.errors import InputError
from common.system.files import json_text, write_atomically
from common.system.text import diverged_in

# The folders that trackers make in a run folder; they are removed with the run.
TRACKER_FOLDERS = ("tensorboard", "wandb")
_PROJECT = "fred"
_ACCURACY = "accuracy/mean"


class Tracker:
    """A tracker that shows nothing, and the base class of the others. Close every tracker after use."""

    def scalars(self, iteration: int, **values: float) -> None:
        """Show plain numbers after `iteration` iterations, e.g. `loss`."""

    def evaluation(self, point: Mapping[str, Any]) -> None:
        """Show an evaluation. point: as in metrics.jsonl, with iteration, mean, std (fractions), maybe `networks`."""

    def measured(self, iteration: int, figures: Mapping[str, Any]) -> None:
        """Show what was measured beside an evaluation: the entry `measured` of metrics.jsonl."""
        known = {f"measured/{key}": value for key, value in _flat(figures).items() if value is not None}
        self.scalars(iteration, **known)

    def picture(self, tag: str, path: Path, iteration: int) -> None:
        """Show the PNG file at `path`, which is read before this method returns."""

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Show the content of summary.json. A run that is closed without this call counts as stopped."""

    def close(self) -> None:
        """Write or upload everything that is still in memory."""


def open_tracker(
    kind: TrackerName,
    folder: Path,
    config: Mapping[str, Any],
    name: str,
    project: str | None = None,
    group: str | None = None,
    resumed_from: int | None = None,
    say: Callable[[str], None] = print,
) -> Tracker:
    """Open the tracker of the run in `folder`. `say` is called with one line about where to see the curves.

    config: plain values, possibly nested; shown beside the curves.
    name: the name of the run in wandb.
    project: the project in wandb (None: the project that wandb is set up with, otherwise "fred").
    group: wandb shows runs of the same group together. TensorBoard does so for all runs below one folder.
    resumed_from: iterations that were made before this process; None for a new run.
    Raises InputError if the package is missing or wandb cannot start.
    """
    if kind == "tensorboard":
        return _TensorBoard(folder / "tensorboard", config, resumed_from, say)
    if kind == "wandb":
        return _Wandb(folder, config, name, project, group, say)
    return Tracker()


class _TensorBoard(Tracker):
    """Writes event files in `folder`. A resumed run keeps its old files, and points after its checkpoint are hidden."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resumed_from: int | None, say: Callable[[str], None]
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        # The run makes only the points after its checkpoint again.
        start, purge = (0, 0) if resumed_from is None else (resumed_from, resumed_from + 1)
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        values = _flat(config)
        self._writer.add_text("config", _table(values), start)
        plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in values.items()}
        # add_hparams would show a second run, without curves, beside this one.
        names, values_here, self._end = hparams(plain, {_ACCURACY: 0.0})
        self._add(names, start)
        self._add(values_here, start)
        say(f"tracked: tensorboard --logdir {quote(str(folder))}")

    def scalars(self, iteration: int, **values: float) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, iteration)

    def evaluation(self, point: Mapping[str, Any]) -> None:
        self.scalars(point["iteration"], **_accuracies(point))
        self._writer.flush()

    def picture(self, tag: str, path: Path, iteration: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(tag, np.asarray(image.convert("RGB")), iteration, dataformats="HWC")

    def summary(self, summary: Mapping[str, Any]) -> None:
        iteration = summary["last"]["iteration"]
        self._writer.add_text("summary", _table(_flat(summary)), iteration)
        self._add(self._end, iteration)

    def close(self) -> None:
        self._writer.close()

    def _add(self, summary: Any, iteration: int) -> None:
        assert self._writer.file_writer is not None  # it is None only after close()
        self._writer.file_writer.add_summary(summary, iteration)


class _Wandb(Tracker):
    """A wandb run with files in `folder`/wandb. Its id is saved there, so a resumed run continues the same wandb run.

    wandb's step is the number of iterations. This step never decreases, so wandb drops points that it already has.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        project: str | None,
        group: str | None,
        say: Callable[[str], None],
    ) -> None:
        # wandb's reports of its own errors would use the network even when a run is offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb", error) from error
        try:
            # These are set for all of wandb, not only for the run, because logging in prints as well.
            settings = wandb.setup(wandb.Settings(silent=True, console="off")).settings
        except (wandb.Error, ValueError) as error:
            raise InputError(
                f"wandb refuses its settings ({_one_line(error)}): correct the environment variables WANDB_..."
            ) from error
        try:
            mode = _mode(wandb, settings.mode)
            self._run = wandb.init(
                dir=str(folder),
                project=project or settings.project or _PROJECT,
                id=_run_id(folder / "wandb" / "run_id"),
                name=name,
                group=group,
                config=dict(config),
                mode=mode,
                resume="allow",
                allow_val_change=True,  # e.g. the device may differ when a run is resumed
            )
        except wandb.Error as error:
            raise InputError(
                f"wandb cannot start ({_one_line(error)}): set WANDB_MODE=offline to do without its server"
            ) from error
        self._wandb, self._say, self._complete, self._lost = wandb, say, False, False
        say({
            "online": f"tracked: {self._run.url}",
            # A run that was stopped and resumed has several offline-run folders.
            "offline": f"tracked offline, to upload: wandb sync {quote(str(folder / 'wandb'))}/offline-run-*",
            "disabled": "not tracked: wandb is disabled",
        }[mode])  # fmt: skip

    def scalars(self, iteration: int, **values: float) -> None:
        self._send(lambda: self._run.log(values, step=iteration))

    def evaluation(self, point: Mapping[str, Any]) -> None:
        self.scalars(point["iteration"], **_accuracies(point))

    def picture(self, tag: str, path: Path, iteration: int) -> None:
        image = self._wandb.Image(str(path))
        self._send(lambda: self._run.log({tag: image}, step=iteration))

    def summary(self, summary: Mapping[str, Any]) -> None:
        self._complete = True
        self._send(lambda: self._run.summary.update(dict(summary)))

    def close(self) -> None:
        # wandb marks a run as failed if its exit code is not 0; a run that was stopped is not finished.
        self._send(lambda: self._run.finish(exit_code=0 if self._complete else 1))

    def _send(self, call: Callable[[], object]) -> None:
        """Send something to wandb's own process, which does the uploads. If that process has ended, tracking stops."""
        if self._lost:
            return
        try:
            call()
        except ConnectionError as error:
            self._lost = True
            self._say(f"wandb's process has ended ({error}): the run goes on untracked, its folder has everything")
            with contextlib.suppress(ConnectionError):  # so that wandb does not try to reach its process at exit
                self._wandb.teardown()


def _mode(wandb: ModuleType, asked: str) -> Literal["online", "offline", "disabled"]:
    """The mode in which wandb runs: `asked`, but offline instead of online if nobody is logged in.

    asked: the mode in wandb's settings, which WANDB_MODE sets. Raises InputError if WANDB_MODE is online and nobody is
    logged in, because a run never asks the user for a key.
    """
    if asked == "disabled":
        return "disabled"
    if asked in ("offline", "dryrun"):
        return "offline"
    if _logged_in(wandb):
        return "online"
    if os.environ.get("WANDB_MODE"):
        raise InputError(f"WANDB_MODE is {asked} but nobody is logged in: run wandb login, or unset WANDB_MODE")
    return "offline"


def _logged_in(wandb: ModuleType) -> bool:
    # Newer versions have deprecated wandb.api.api_key; in older ones wandb.login would ask the user for a key.
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False))
    return wandb.api.api_key is not None


def _run_id(path: Path) -> str:
    """The id in the file. A new run gets a random id, because two machines may have run folders at the same path."""
    if not path.exists():
        write_atomically(path, lambda temporary: temporary.write_text(secrets.token_hex(4), encoding="utf-8"))
    return path.read_text(encoding="utf-8")


def _missing(package: str, error: ImportError) -> InputError:
    return InputError(
        f"--track {package} needs the package {package} ({error}): pip install {package} (part of the extra trackers)"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _accuracies(point: Mapping[str, Any]) -> dict[str, float]:
    """The curves of an evaluation, as fractions: its mean and std, and the mean of each network of a pool.

    If networks diverged, there is also their number, and a curve without an accuracy has no point.
    """
    pool = point.get("networks", {})
    values = {_ACCURACY: point["mean"], "accuracy/std": point["std"]}
    values |= {f"accuracy/{name}": entry["mean"] for name, entry in pool.items()}
    drawn = {key: value for key, value in values.items() if value is not None}
    counts = {"diverged": diverged_in(point)} | {f"diverged/{name}": diverged_in(entry) for name, entry in pool.items()}
    return drawn | {key: count for key, count in counts.items() if count}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _table(values: Mapping[str, Any]) -> str:
    """The values as a Markdown table with one row per key."""
    cells = {key: json_text(value).replace("|", "\\|") for key, value in values.items()}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {cell} |" for key, cell in cells.items())])
