"""Results that a later command reads: of evaluations, robustness tests, several seeds, and reproduce.py's records."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from common.schemas.fields import Amount, Count, Evaluation, Figures, Fraction, Hardware, Seconds, Table, Text, absent

Positively = Annotated[float, Strict(), Field(gt=0, le=1e12, allow_inf_nan=False)]
Number = Annotated[Text, Field(pattern=r"^\d{1,9}$")]


class Seeds(Table):
    """seeds.json: the run folders by seed."""

    runs: Annotated[dict[Number, Text], Field(min_length=1)]


class Took(Table):
    """What a summary.json says of the time, which is all that an evaluation wants to know of it."""

    distillation_seconds: Seconds | None = None


class Under(Table):
    """The result under one corruption and level."""

    kind: Text
    level: Count | None
    mean: Fraction | None


class Tested(Table):
    """results.json of a robustness test, as far as a later one is measured by it."""

    target: Text
    target_stats: Text
    images: dict[Text, Count]
    conditions: list[Under]


class Trained(Evaluation):
    """How networks have been trained, when nothing is left to be chosen."""

    epochs: Count


class Drifted(Table):
    """results.json of a robustness test, as far as a table shows it."""

    mean: Figures
    clean: Figures
    evaluation: Trained
    hardware: Hardware
    version: Text


class Result(Figures):
    """The result of an evaluation, as far as a table shows it."""

    evaluation: Trained
    seconds: dict[Text, list[Seconds]]
    storage: dict[Text, Any] | None = None
    version: Text
    hardware: Hardware


class Record(Table):
    """The record of a cell."""

    state: Literal["not started", "queued", "running", "interrupted", "failed", "finished"]
    seconds: Seconds = 0.0
    interruptions: Count = 0
    commands: list[Text] = absent()
    reason: Text | None = None
    script: Count | None = None
    folder: Text = "."
    images: Text = ""
    begun_by: Text = ""
    seeds: Annotated[Text, Field(pattern=r"^[0-9][0-9, -]*$")] | None = None
    checksum: Text = absent()


class Downloads(Table):
    """sha256.json: the checksums of the authors' files by path."""

    sha256: dict[Text, Text]


class Times(Table):
    """How long one version took, turn by turn."""

    median_s: Positively
    cpu_median_s: Positively
    runs_s: Annotated[list[Seconds], Field(min_length=1)]


class Comparison(Table):
    """What benchmarks/versus_authors.py measured of one case, by version."""

    what: Text
    seconds: dict[Text, Times] = absent()
    peak_mib: dict[Text, Seconds] = absent()
    flops: dict[Text, Amount] = absent()


class Machine(Hardware):
    """Where it was measured."""

    cores: Count | None


class Comparisons(Table):
    """The results of benchmarks/versus_authors.py."""

    date: Text
    version: Text
    authors: Text | None
    allocator: Text
    repeats: Count
    hardware: Machine
    results: dict[Text, Comparison]


class Staged(Table):
    """How far a stage of gpu.py has come."""

    state: Literal["to do", "stopped", "finished", "failed"]
    seconds: Seconds
    calls: Count
    said: Text
    version: Text
    hardware: Hardware


class Kit(Table):
    """kit.json of gpu.py."""

    scale: Literal["full", "smoke"]
    cells: list[Text]
    stages: dict[Text, Staged]
