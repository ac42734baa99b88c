"""The files of a run folder: config.json, metrics.jsonl, summary.json, checksums.json and the checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, InstanceOf, model_validator
from torch import Tensor

from common.schemas import door
from common.schemas.fields import (
    Content,
    Count,
    Evaluated,
    Fraction,
    Hardware,
    Number,
    Objective,
    Positive,
    RunPoint,
    Seconds,
    Table,
    Text,
    absent,
    check_alike,
    wrong,
)
from common.system.errors import InputError

REMEDY = "restore the file, give another --name, or --resume never to start over"


Tries = Annotated[Text, Field(pattern=r"^[1-9]\d{0,8}$")]  # a number of images, as a key


class Option(Table):
    """The value of an option and where it comes from."""

    value: Any
    source: Text


class _TextOption(Option):
    value: Text


class _TextOrNone(Option):
    value: Text | None


class _CountOption(Option):
    value: Positive


class _WholeOption(Option):
    value: Count


class _CountOrNone(Option):
    value: Positive | None


class Options(Table):
    """All options of a run by name; those that are named here are used, not only shown."""

    __pydantic_extra__: dict[str, Option] = Field(init=False)

    dataset: _TextOption
    ipc: _CountOption
    msz_per_channel: _WholeOption
    Iteration: _WholeOption
    name: _TextOrNone = absent()
    transform: _TextOrNone = absent()
    storage: _TextOrNone = absent()
    bits_per_class: _CountOrNone = absent()
    image_size: _CountOrNone = absent()


class Config(Table):
    """config.json"""

    objective: Objective
    options: Options
    version: Text = ""
    hardware: Hardware = absent()


class Tried(Table):
    """What config.json says of the numbers of images that --n auto has tried."""

    tried_n: Annotated[dict[Tries, Fraction], Field(min_length=1)] = absent()


class Identity(Table):
    """What config.json says of whose folder it is. Older versions had no content."""

    identity: dict[Text, Any]
    content: Content = absent()


class Budget(Table):
    """What a set stores."""

    coefficient_bytes: Count
    payload_bytes: Count = 0
    position_bytes: Count = 0
    images_per_class: Count = 0


class Summary(Table):
    """summary.json of a finished run. Older versions had no content, and no share of the evaluations in the time."""

    start: RunPoint
    last: RunPoint
    best_on_test: RunPoint | None
    best_on_validation: RunPoint | None = None
    best_on_test_by_network: dict[Text, Evaluated] = absent()
    budget: Budget
    file: Text
    file_bytes: Count
    seconds: Seconds
    distillation_seconds: Seconds = absent()
    evaluation_seconds: Seconds = absent()
    peak_memory_bytes: dict[Text, Count | None] = absent()
    version: Text
    content: Content = absent()
    experts: Count = 0
    buffer: Text = ""


class Checksums(Table):
    """checksums.json: the checksum of each file by name, and whose they are."""

    __pydantic_extra__: dict[str, Text] = Field(init=False)

    identity: dict[Text, Any] = absent()


class LossLine(Table):
    """A line of metrics.jsonl about the loss of an iteration."""

    iteration: Count
    loss: Number


class EvaluationLine(Table):
    """A line of metrics.jsonl about an evaluation."""

    evaluation: RunPoint
    seconds: Seconds = 0.0


class OtherLine(Table):
    """A line of metrics.jsonl of another kind, which is passed over."""


# -- checkpoints -------------------------------------------------------------------------------------------------


class OptimizerState(Table):
    """The state of an optimiser of torch."""

    state: dict[Any, dict[Text, Any]]
    param_groups: list[dict[Text, Any]]


class SetState(Table):
    """The state of a synthetic set."""

    coefficients: InstanceOf[Tensor]
    positions: InstanceOf[Tensor]
    optimizer: OptimizerState
    step: InstanceOf[Tensor] | None = None
    code_bits: InstanceOf[Tensor] | None = None
    updates: Count | None = None


class StepState(Table):
    """The state of a learned step size."""

    value: InstanceOf[Tensor]
    optimizer: OptimizerState


class State(Table):
    """What a run goes on from."""

    synset: SetState
    step_size: StepState | None
    source: dict[Text, Any] | None
    others: dict[Text, Any] = absent()
    files: dict[Text, Text] = absent()
    content: Content = absent()
    iteration: Count
    seconds: Seconds
    evaluations: list[RunPoint]
    unfinished: dict[Text, list[Fraction | None]]
    unfinished_on_held: dict[Text, list[Fraction | None]] = absent()

    @model_validator(mode="after")
    def _agree(self) -> State:
        check_alike(self.evaluations)
        if self.iteration and not self.evaluations:
            raise wrong("an evaluation before the first iteration")
        return self


class Checkpoint(Table):
    """A checkpoint. Older versions had neither a checksum nor an identity."""

    metrics_bytes: Count
    metrics_checksum: Text = ""
    identity: dict[Text, Any] = absent()
    state: State


class ExpertsState(Table):
    """The state of the order of experts, among those that a checkpoint keeps."""

    experts: Count
    buffer: Text
    names: Annotated[list[Text], Field(min_length=1)]


def read_metrics_lines(path: Path, remedy: str) -> Iterator[dict[str, Any]]:
    """The entries of a metrics.jsonl, as far as its lines are whole: a run that was killed leaves half a line.

    Raises InputError for a line that does not fit its schema.
    """
    alike = set[bool]()
    found = list(door.lines(path, remedy)) if path.exists() else []
    for where, line in found:
        try:
            entry = door.parse(line, where, remedy)
        except door.NoJson:
            return  # the run drops it when it resumes
        kind: type[Table] = OtherLine
        if isinstance(entry, dict):
            kind = LossLine if "loss" in entry else EvaluationLine if "evaluation" in entry else OtherLine
        checked = door.check(entry, kind, where, remedy)
        if kind is EvaluationLine:
            alike.add("validation" in checked["evaluation"])
        if len(alike) > 1:
            raise InputError(f"{where} has a validation in some evaluations and not in others: {remedy}")
        yield checked
