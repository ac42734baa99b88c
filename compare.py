"""Compares settings over several distilled sets, with a test of every claim: `python compare.py --help`.

python compare.py experiments/ladder_ipc1.toml                  makes the runs that are missing, then the tables
python compare.py experiments/ladder_ipc1.toml --rows float32   makes the runs of one row only, e.g. on another machine
python compare.py experiments/ladder_ipc1.toml --no_run         makes no runs

A row of the file is a set of flags for distill.py. Its lr_freq is searched first, one run per value, on images and with
a seed that the comparison does not use; every row tries as many values. Then each row distils one set
per seed, with the same seeds as the others. A row may name another one that it should beat: the two are compared by a
paired t-test over the seeds. Its unit is the distilled set, that is the mean over the networks trained on it; p is
corrected by Holm's method over all comparisons of the table. Running the same command again resumes the work.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from common.config.command_line import parse_plain
from common.config.places import run_folder, seed_name
from common.config.seeds import parse_seeds
from common.report.description import needed_bytes
from common.report.record import RunRecord, read_run
from common.system.command import run_command
from common.system.errors import InputError
from common.system.files import write_csv
from common.system.scripts import distill_script, run_script
from common.system.text import diverged_in, hardware_in_words, percent
from common.terminal.next_step import to_gallery

if TYPE_CHECKING:  # --help does not wait for pydantic
    from common.config.experiment import Experiment, Flags, Row


@dataclass
class Options:
    """Distil the rows of an experiment with several seeds, and compare them by paired tests over the sets."""

    experiment: Annotated[Path, tyro.conf.Positional]
    """TOML file with the rows; experiments/README.md says what it may hold"""
    rows: tuple[str, ...] = ()
    """make the runs of these rows only, and no table (default: all rows, then the table)"""
    run: bool = True
    """False: make no runs; write the tables from those that are there"""
    output: str = "runs/compare"
    """folder for the run folders and the tables: <experiment>.csv, and with _claims and _search in the name"""


class Runs:
    """The runs of an experiment: makes them, finds them, and reads what they reached."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment, self.folder = experiment, folder

    def make(self, row: Row) -> None:
        """Make the search of a row, then its sets. distill.py skips what is finished and resumes the rest."""
        for value in row.lr_freq:
            try:
                self._distill(row, self.experiment.search, name=_search_name(row, value), lr_freq=value)
            except InputError as error:  # with this value everything diverges, perhaps, and with the next not
                tqdm.write(f"lr_freq {value:g} of row '{row.name}' counts as the worst: {error}")
        step = {"lr_freq": self.step(row)} if row.lr_freq else {}
        self._distill(row, {}, name=row.label, seeds=self.experiment.seeds, **step)

    def _distill(self, row: Row, changed: Flags, **more: Any) -> None:
        flags = {
            "dataset": self.experiment.dataset, "ipc": self.experiment.ipc, **self.experiment.flags, **row.flags,
            **changed, **more, "save_path": self.folder,
        }  # fmt: skip
        words = [word for key, value in flags.items() for word in (f"--{key}", value)]
        script, *own = distill_script(self.experiment.objective)
        run_script(script, *own, *words)

    def step(self, row: Row) -> float:
        """The searched value of lr_freq with the best accuracy. Raises InputError if there is none with any."""
        scores = {}
        for value in row.lr_freq:
            run = self.searched(row, value)
            last = None if run is None or run.summary is None else run.summary["last"]
            if last is not None and not diverged_in(last):
                scores[value] = last.get("validation", last)["mean"]
        if not scores:
            raise InputError(f"no value of lr_freq of row '{row.name}' gave an accuracy: see above, and give others")
        return max(scores, key=lambda value: scores[value])

    def searched(self, row: Row, value: float) -> RunRecord | None:
        """The run of one value of a search; None if it did not finish."""
        try:
            return self._read(self.experiment.search.get("dataset", self.experiment.dataset), _search_name(row, value))
        except InputError:
            return None

    def sets(self, row: Row) -> list[RunRecord]:
        """The runs of a row, one per seed. Raises InputError if one is not finished."""
        name = self.experiment.row(row.runs or row.name).label
        return [
            self._read(self.experiment.dataset, seed_name(name, seed)) for seed in parse_seeds(self.experiment.seeds)
        ]

    def _read(self, dataset: str, name: str) -> RunRecord:
        run = read_run(run_folder(self.folder, self.experiment.objective, dataset, self.experiment.ipc, name))
        if run.summary is None:
            raise InputError(f"{run.folder} is not finished: run the comparison again")
        return run


def _search_name(row: Row, value: float) -> str:
    return f"{row.label}-lr{value:g}" if float(f"{value:g}") == value else f"{row.label}-lr{value!r}"


def _mean(run: RunRecord, point: str) -> float | None:
    """The accuracy of a finished run's set, over its networks; None if all of them diverged."""
    assert run.summary is not None
    return run.summary[point]["mean"]


def _accuracies(made: Sequence[RunRecord], row: Row) -> list[float]:
    """The accuracy of each set of a row, by seed. Raises InputError for a set that has none."""
    means = []
    for run in made:
        mean = _mean(run, row.point)
        if mean is None:
            raise InputError(f"{run.folder}: every network diverged, so row '{row.name}' cannot be compared")
        means.append(mean)
    return means


@dataclass
class Comparison:
    """A paired comparison of n sets each: mean difference with its standard error (fractions), and p of a t-test."""

    difference: float
    error: float
    p: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
    """Compare two rows whose entries belong together seed by seed. Of pairs that all differ by the same, p is 1."""
    from scipy import stats  # not before it is needed: it takes a second

    differences = np.subtract(ours, theirs)
    error = float(np.std(differences, ddof=1) / math.sqrt(len(differences)))
    # Equal differences have no deviation to judge them by: a few sets, and accuracies that are shares of a few images.
    p = float(stats.ttest_rel(ours, theirs).pvalue) if error > 1e-9 else 1.0
    return Comparison(float(np.mean(differences)), error, p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of comparisons (Holm 1979); in ascending order none falls below the last."""
    order = np.argsort(values)
    steps = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def tabulate(runs: Runs) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(one line for each row, one for each comparison). Rows whose runs are not all finished are left out, and said.

    Raises InputError if no row is left.
    """
    made: dict[str, list[RunRecord]] = {}
    for row in runs.experiment.rows:
        try:
            made[row.name] = runs.sets(row)
        except InputError as error:
            tqdm.write(f"row '{row.name}' is left out: {error}")
    if not made:
        raise InputError(f"no row of the experiment is finished in {runs.folder}: run it first, without --run False")
    rows = [row for row in runs.experiment.rows if row.name in made]
    means = {row.name: _accuracies(made[row.name], row) for row in rows}
    compared = {
        (row.name, other): paired(means[row.name], means[other])
        for row in rows
        for other in row.against
        if other in made
    }
    corrected = holm([each.p for each in compared.values()])
    claims = [
        {
            "row": row, "against": other, "difference": round(each.difference, 5),
            "standard_error": round(each.error, 5), "p": f"{each.p:.2g}", "p_holm": f"{p:.2g}",
        }
        for ((row, other), each), p in zip(compared.items(), corrected, strict=True)
    ]  # fmt: skip
    return [_as_row(row, made[row.name], means[row.name]) for row in rows], claims


def _as_row(row: Row, made: Sequence[RunRecord], means: Sequence[float]) -> dict[str, Any]:
    first = made[0]
    assert first.summary is not None
    budgets = [run.summary["budget"] for run in made if run.summary]
    return {
        "row": row.name,
        "storage": first.option("storage"),
        "images_per_class": budgets[0]["images_per_class"],
        "bytes": max(map(needed_bytes, budgets)),  # coded sets fill their budget to within 0.2 %
        "paper_bytes": budgets[0]["coefficient_bytes"],
        "lr_freq": first.option("lr_freq"),
        "updates": first.summary[row.point]["iteration"],
        "sets": len(made),
        "networks": first.summary[row.point]["n"],
        "mean": round(float(np.mean(means)), 5),
        "std": round(float(np.std(means)), 5),
        "means": " ".join(f"{mean:.4f}" for mean in means),
        **_provenance(made),
    }


def tabulate_search(runs: Runs) -> list[dict[str, Any]]:
    """One row for each value of each search that is finished."""
    table = []
    for row in runs.experiment.distilled:
        for value in row.lr_freq:
            run = runs.searched(row, value)
            made = [] if run is None else [run]
            accuracies = {point: _mean(run, point) if run is not None else "-" for point in ("start", "last")}
            held = None if run is None or run.summary is None else run.summary["last"].get("validation")
            accuracies["validation"] = "-" if held is None else held["mean"]
            table.append({"row": row.name, "lr_freq": value, **accuracies, **_provenance(made)})
    return table


def _provenance(made: Sequence[RunRecord]) -> dict[str, Any]:
    if not made:
        return dict.fromkeys(("seconds", "version", "hardware", "command"), "-")
    summaries = [run.summary or {} for run in made]
    return {
        "seconds": round(sum(each["seconds"] for each in summaries)),
        "version": " ".join(sorted({each["version"] for each in summaries})),
        "hardware": "; ".join(dict.fromkeys(hardware_in_words(run.config["hardware"]) for run in made)),
        "command": made[0].command({"save_path": None}),
    }


def show(experiment: Experiment, table: list[dict[str, Any]], claims: list[dict[str, Any]]) -> None:
    """Print both tables: accuracies in %, mean and standard deviation over the sets, and their differences."""
    print(f"\n{experiment.title}\ntest accuracy in %, sets of the seeds {experiment.seeds}\n")
    print(f"{'':<24}{'images':>8}{'bytes':>12}{'(paper: 4 each)':>17}{'accuracy':>16}")
    for row in table:
        accuracy = f"{percent(row['mean'])} ± {percent(row['std'])}"
        sizes = f"{row['images_per_class']:>8}{row['bytes']:>12,}{row['paper_bytes']:>17,}"
        print(f"{row['row']:<24}{sizes}{accuracy:>16}")
    if claims:
        print(
            "\ndifference ± its standard error over the pairs of sets; p of a paired t-test, corrected by Holm's method"
        )
    for claim in claims:
        points = f"{100 * claim['difference']:+.2f} ± {100 * claim['standard_error']:.2f}"
        print(f"{claim['row']} over {claim['against']}: {points}, p {claim['p_holm']}")


def main() -> None:
    options = parse_plain(Options)
    from common.config.experiment import read_experiment

    experiment = read_experiment(options.experiment)
    if options.rows and not options.run:
        raise InputError("--rows says which runs to make, and --run False makes none: leave out one of them")
    runs, output = Runs(experiment, Path(options.output)), Path(options.output)
    chosen = [experiment.row(name) for name in options.rows]
    if options.run:
        asked = [experiment.row(row.runs or row.name) for row in chosen] or experiment.distilled
        for row in {row.name: row for row in asked}.values():
            runs.make(row)
    if chosen:
        return
    name = options.experiment.stem
    (table, claims), searched = tabulate(runs), tabulate_search(runs)
    show(experiment, table, claims)
    print()
    for part, rows in {"": table, "_claims": claims, "_search": searched}.items():
        if rows:
            write_csv(output / f"{name}{part}.csv", rows)
            print(f"table  {output / f'{name}{part}.csv'}")
    print(to_gallery(output))


if __name__ == "__main__":
    run_command(main)
