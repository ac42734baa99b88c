"""The record of a run, finished or not, read from its folder; it can be compared with the recipe and repeated."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import recipes
from common.config.options import NOT_PART_OF_A_RUN
from common.recipes import OBJECTIVES
from common.schemas import door
from common.system.errors import InputError
from common.system.scripts import VOXELS, distill_script
from common.system.text import points_of

# Options that count something, and what they count. A value below that of the recipe makes the run a reduced one.
_AMOUNTS = {
    "Iteration": "updates",
    "num_eval": "networks per evaluation",
    "epoch_eval_train": "epochs per evaluation network",
    "batch_real": "real images per class and update",
    "syn_steps": "steps of the student",
    "expert_epochs": "epochs of the expert",
    "max_start_epoch": "epochs to start from",
}
# Options that select the cell, or change only the speed or the times of evaluation, are not departures from the recipe.
_NO_DEPARTURE = NOT_PART_OF_A_RUN | {
    "objective", "dataset", "subset", "recipe", "ipc", "seed", "compile", "chunk", "networks_at_once", "skip_corrupt",
    "eval_it", "wait_eval",
}  # fmt: skip

_REMEDY = "restore the file, or distil again"


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder: `config` and `summary` as in their JSON files, and losses as (iteration, loss).

    `summary` is None for an unfinished run. Losses and evaluations are in the order of metrics.jsonl.
    """

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any] | None
    losses: list[tuple[int, float]]
    evaluations: list[dict[str, Any]]

    def option(self, name: str) -> Any:
        """Return the value of an option, or None if the run has no such option."""
        return self.config["options"].get(name, {}).get("value")

    @property
    def stored_as(self) -> str | None:
        """How the set is stored if not as float32 numbers: bf16, int8 or coded."""
        return None if self.option("storage") in (None, "fp32") else str(self.option("storage"))

    @property
    def budget(self) -> str:
        """The budget in words: "ipc 1", or "98,304 bits per class", and how the set is stored."""
        bits = self.option("bits_per_class")
        budget = f"ipc {self.option('ipc')}" if bits is None else f"{bits:,} bits per class"
        return budget if self.stored_as is None else f"{budget}, stored as {self.stored_as}"

    @property
    def objective(self) -> str:
        return self.config["objective"]

    @property
    def updates(self) -> int:
        """The number of updates made, as far as metrics.jsonl records them."""
        return max([0, *(n + 1 for n, _ in self.losses[-1:]), *(each["iteration"] for each in self.evaluations[-1:])])

    @property
    def points(self) -> dict[str, dict[str, Any]]:
        """The first, last and best evaluations so far, by the keys of `POINTS`; empty before the first one.

        There is no best one while a network diverged in every evaluation.
        """
        found = points_of(self.evaluations) if self.evaluations else {}
        return {key: point for key, point in found.items() if point is not None}

    @property
    def published(self) -> dict[str, Any] | None:
        """The published accuracy of the cell, as `recipes.published` returns it; None for plain pixels."""
        if self.objective not in OBJECTIVES or self.option("transform") == "identity":
            return None
        return recipes.published(
            self.objective, str(self.option("dataset")), self.option("ipc"), self.option("image_size")
        )

    def departures(self, but: Collection[str] = ()) -> tuple[list[str], list[str]]:
        """Return, in words, how the flags of the run depart from the recipe or the default, as (reduced, changed).

        reduced: amounts below the usual ones, such as fewer updates. changed: all other differences. but: options to
        leave out.
        """
        reduced, changed = [], []
        options = self.config["options"]
        for key in sorted(options, key=lambda name: [*_AMOUNTS, name].index(name)):
            value, source, usual = options[key]["value"], options[key]["source"], options[key].get("instead_of")
            if (
                key in _NO_DEPARTURE
                or key in but
                or source != "flag"
                or ("instead_of" in options[key] and value == usual)
            ):
                continue
            if key in _AMOUNTS and _is_number(value) and _is_number(usual) and value < usual:
                reduced.append(f"{value:,} of {usual:,} {_AMOUNTS[key]}")
            else:
                changed.append(f"{key} {_short(value)}" + ("" if usual is None else f" instead of {_short(usual)}"))
        return reduced, changed

    def chosen_here(self) -> list[str]:
        """Return the options whose value comes from a recipe but was chosen in this project, not published."""
        return [key for key, entry in self.config["options"].items() if entry["source"].startswith("tuned here")]

    def command(self, instead: Mapping[str, Any] | None = None) -> str:
        """Return the command line that repeats this run from the root of the repository.

        instead: flags to give in place of the run's own, with their values; None leaves a flag out.
        """
        words = distill_script(self.objective)
        if self.option("dataset") == "3D-MNIST" and self.config["options"]["dataset"]["source"] != "flag":
            words = [VOXELS]
        given = {key: entry["value"] for key, entry in self.config["options"].items() if entry["source"] == "flag"}
        instead = instead or {}
        for key, value in (given | dict(instead)).items():
            if key != "objective" and not (key in instead and value is None):
                words += [f"--{key}", str(value)]
        return f"python {shlex.join(words)}"


def read_run(folder: Path) -> RunRecord:
    """Read a run folder. Raises InputError if the folder is not that of a run, or one of its files is damaged."""
    from common.schemas.run import Config, Summary

    file = folder / "summary.json"
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not the folder of a run: give one that holds config.json")
    config = door.read(folder / "config.json", Config, _REMEDY)
    summary = door.read(file, Summary, _REMEDY) if file.exists() else None
    losses, evaluations = read_metrics(folder / "metrics.jsonl")
    return RunRecord(folder, config, summary, losses, evaluations)


def read_metrics(path: Path) -> tuple[list[tuple[int, float]], list[dict[str, Any]]]:
    """Return the losses as (iteration, loss) and the evaluations in a metrics.jsonl, up to a line that is not whole.

    Raises InputError for lines that no run has written.
    """
    from common.schemas.run import read_metrics_lines

    losses, evaluations = [], []
    for entry in read_metrics_lines(path, _REMEDY):
        if "loss" in entry:
            losses.append((entry["iteration"], entry["loss"]))
        elif "evaluation" in entry:
            evaluations.append(entry["evaluation"])
    return losses, evaluations


def seconds_of_evaluations(path: Path) -> float:
    """The seconds that the evaluations in a metrics.jsonl took, pictures and files of each included."""
    from common.schemas.run import read_metrics_lines

    return sum(entry.get("seconds", 0.0) for entry in read_metrics_lines(path, _REMEDY) if "evaluation" in entry)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
