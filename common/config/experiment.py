"""Experiment files: which settings `compare.py` compares, with which flags and seeds (experiments/README.md)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config.seeds import parse_seeds
from common.system.errors import InputError
from common.system.files import check_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Flags = dict[str, Any]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Model):
    """One line of the table: some runs, and one evaluation of each."""

    name: str = Field(pattern=r"^\w[\w -]*$")
    flags: Flags = {}
    lr_freq: tuple[float, ...] = ()
    """values to search; none: the row takes that of its recipe"""
    runs: str | None = None
    """another row whose runs these are; only `point` differs"""
    point: Literal["start", "last"] = "last"
    """which evaluation: before the first update, or after the last"""
    against: tuple[str, ...] = ()
    """the rows to compare with"""

    @property
    def label(self) -> str:
        """The name as a part of the names of its run folders."""
        return self.name.replace(" ", "-")


class Experiment(_Model):
    """An experiment file: `flags` are those of all rows, `search` those that a search has in their place."""

    title: str
    objective: str
    dataset: str
    ipc: int = 1
    seeds: str
    flags: Flags = {}
    search: Flags = {}
    rows: tuple[Row, ...] = Field(min_length=1)

    def row(self, name: str) -> Row:
        """The row of this name. Raises InputError if there is none."""
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise InputError(f"there is no row '{name}': the rows are {', '.join(row.name for row in self.rows)}")
        return found[0]

    @property
    def distilled(self) -> list[Row]:
        """The rows that have runs of their own."""
        return [row for row in self.rows if row.runs is None]


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file. Raises InputError, with what to mend, for one that cannot be run."""
    try:
        check_regular(path)
        experiment = Experiment.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} is not a TOML file that can be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for row in experiment.rows:
        for other in (*row.against, *filter(None, [row.runs])):
            experiment.row(other)
        if row.runs is not None and (row.flags or row.lr_freq or experiment.row(row.runs).runs):
            raise InputError(f"{path}: row '{row.name}' takes the runs of '{row.runs}': it has no flags of its own")
    own = {"name", "seeds", "save_path", "dataset", "ipc", "bits_per_class", "subset"}
    for flags in (experiment.flags, *(row.flags for row in experiment.rows)):
        if taken := sorted(own & flags.keys()):
            raise InputError(f"{path}: {taken[0]} is no flag of a row, for it decides where the runs lie")
    searches = any(row.lr_freq for row in experiment.rows)
    if searches and int(experiment.search.get("seed", 0)) in parse_seeds(experiment.seeds):
        raise InputError(f"{path}: [search] needs a seed that is not one of {experiment.seeds}")
    same_images = experiment.search.get("dataset", experiment.dataset) == experiment.dataset
    if searches and same_images and not experiment.search.get("validation_share"):
        raise InputError(
            f"{path}: [search] would choose by the images that the rows are tested on: give it validation_share, a "
            "share of the training images to choose by, or a dataset with other test images"
        )
    if len({row.label for row in experiment.rows}) < len(experiment.rows):
        raise InputError(f"{path} has two rows of one name, in which a space and a hyphen are the same")
    if len({len(row.lr_freq) for row in experiment.distilled}) > 1:
        raise InputError(f"{path}: every row must search as many values of lr_freq")
    if len(parse_seeds(experiment.seeds)) < 2 and any(row.against for row in experiment.rows):
        raise InputError(f"{path}: a row can be compared with another from two seeds on")
    return experiment
