"""Trackers: a run's curves and pictures in TensorBoard or Weights & Biases, beside what its folder holds anyway.

The x axis is the number of updates made: the loss of the first update stands at 1, the evaluation before it at 0. Calls
come in that order. A point of a resumed run thus lies after its checkpoint exactly if the run makes it anew, which is
what keeps points from appearing twice. No tracker draws random numbers that a run could see.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from types import ModuleType
from typing import Any, Literal

from common.config.options import TrackerName
from common.system.errors import InputError
from common.system.files import write_atomically
from common.system.text import diverged_in

# What trackers leave in a run folder; removed with the run.
TRACKER_FOLDERS = ("tensorboard", "wandb")
_PROJECT = "fred"
_ACCURACY = "accuracy/mean"


class Tracker:
    """Shows nothing. The others override what they show; all of them are to be closed."""

    def scalars(self, iteration: int, **values: float) -> None:
        """Figures after `iteration` updates, e.g. `loss`, on the CPU already."""

    def evaluation(self, point: Mapping[str, Any]) -> None:
        """An evaluation as in metrics.jsonl: iteration, mean and std (fractions), and those of each of `networks`."""

    def picture(self, tag: str, path: Path, iteration: int) -> None:
        """A PNG file that has been drawn; it is read before this returns."""

    def summary(self, summary: Mapping[str, Any]) -> None:
        """What a finished run found, as in summary.json. A run that is closed without it was stopped."""

    def close(self) -> None:
        """Write, or upload, what is left."""


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
    """The tracker of the run in `folder`; `say` gets one line, which tells where to look.

    config: plain values, possibly nested; shown beside the curves.
    name, project: what wandb calls the run and where it files it (project: else as wandb is set up, else "fred").
    group: runs of the same group are shown together by wandb; by TensorBoard those below one folder are.
    resumed_from: updates made before this process, None for a new run.
    Raises InputError where the package is missing, or wandb cannot start.
    """
    if kind == "tensorboard":
        return _TensorBoard(folder / "tensorboard", config, resumed_from, say)
    if kind == "wandb":
        return _Wandb(folder, config, name, project, group, say)
    return Tracker()


class _TensorBoard(Tracker):
    """Event files in `folder`. Those of a run that is continued stay; what lies after its checkpoint is not shown."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], resumed_from: int | None, say: Callable[[str], None]
    ) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        except ImportError as error:
            raise _missing("tensorboard", error) from error
        # The point at the checkpoint is in it, those after it will be made again.
        start, purge = (0, 0) if resumed_from is None else (resumed_from, resumed_from + 1)
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        values = _flat(config)
        self._writer.add_text("config", _table(values), start)
        plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in values.items()}
        # Not add_hparams, which would show a second run, without curves, beside this one.
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
        assert self._writer.file_writer is not None  # until it is closed
        self._writer.file_writer.add_summary(summary, iteration)


class _Wandb(Tracker):
    """A wandb run with files in `folder`/wandb, whose id is kept there: the run continues as the folder does.

    wandb's own step is the number of updates. It never goes back, so wandb drops the points that it has already.
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
            # Set for all of wandb, not only for the run: logging in prints too.
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
                allow_val_change=True,  # the device, for one, may differ when a run is continued
            )
        except wandb.Error as error:
            raise InputError(
                f"wandb cannot start ({_one_line(error)}): set WANDB_MODE=offline to do without its server"
            ) from error
        self._wandb, self._say, self._complete, self._lost = wandb, say, False, False
        say({
            "online": f"tracked: {self._run.url}",
            # A run that was stopped and continued has left several.
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
        # wandb calls a run with another exit code than 0 failed: one that was stopped has not finished.
        self._send(lambda: self._run.finish(exit_code=0 if self._complete else 1))

    def _send(self, call: Callable[[], object]) -> None:
        """Hand something to wandb's own process, which deals with the network; without it the run goes on untracked."""
        if self._lost:
            return
        try:
            call()
        except ConnectionError as error:
            self._lost = True
            self._say(f"wandb's process has ended ({error}): the run goes on untracked, its folder has everything")
            with contextlib.suppress(ConnectionError):  # it cannot be reached; this is so that nobody tries at exit
                self._wandb.teardown()


def _mode(wandb: ModuleType, asked: str) -> Literal["online", "offline", "disabled"]:
    """What WANDB_MODE, or else wandb's settings, ask for; offline where that is online and nobody is logged in.

    Raises InputError where WANDB_MODE insists: a run asks nobody for a key.
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
    # Newer versions have deprecated the attribute, older ones would ask the user for a key.
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False))
    return wandb.api.api_key is not None


def _run_id(path: Path) -> str:
    """The id in the file, written there first for a new run. Not made from the path: two machines may share it."""
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
    """What is drawn of an evaluation, as fractions: mean and std, and the mean of each network of a pool.

    Where networks diverged it is also how many, and what has no accuracy is left out.
    """
    pool = point.get("networks", {})
    values = {_ACCURACY: point["mean"], "accuracy/std": point["std"]}
    values |= {f"accuracy/{name}": entry["mean"] for name, entry in pool.items()}
    drawn = {key: value for key, value in values.items() if value is not None}
    counts = {"diverged": diverged_in(point)} | {f"diverged/{name}": diverged_in(entry) for name, entry in pool.items()}
    return drawn | {key: count for key, count in counts.items() if count}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _table(values: Mapping[str, Any]) -> str:
    """A table in Markdown."""
    cells = {key: json.dumps(value, ensure_ascii=False).replace("|", "\\|") for key, value in values.items()}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {cell} |" for key, cell in cells.items())])
