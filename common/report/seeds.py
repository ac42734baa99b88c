"""The page of several runs that differ only in the seed: `report.html` beside `seeds.json`, which `--seeds` writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.report import pictures
from common.report.description import needed_bytes
from common.report.page import TEMPLATES, svg_uri, write_page
from common.report.record import RunRecord, read_run
from common.report.run_page import head_of
from common.schemas import door
from common.system.errors import InputError
from common.system.text import (
    describe_seconds,
    diverged_in,
    networks_of,
    over_sets,
    percent,
    percent_with_std,
    points_in,
    published_with_std,
)

FILE = "seeds.json"


def write_seeds_report(folder: Path) -> Path:
    """Write `report.html` into the folder that has seeds.json, and return its path.

    The figures are computed anew from the runs. Raises InputError if the file names no runs, or one that is not there
    or not finished.
    """
    folders = named_runs(folder)
    if not folders:
        raise InputError(f"{folder / FILE} names no runs: distil again with --seeds")
    runs = {seed: read_run(each) for seed, each in folders.items()}
    for each in runs.values():
        if each.summary is None:
            raise InputError(f"{each.folder} is not finished: distil again with --seeds")
    summaries = [each.summary or {} for each in runs.values()]
    summary, labels = figures_over_sets(summaries), points_in(*summaries)
    pool = {name: {key: _figures(each[key]) for key in each} for name, each in summary.get("networks", {}).items()}
    first = next(iter(runs.values()))
    named = folder.resolve().name.removesuffix("-seeds") if first.option("name") else None
    asked = {"seeds": ",".join(map(str, runs)), "name": named, "seed": None}
    path = folder / "report.html"
    write_page(
        path,
        TEMPLATES / "seeds.html",
        **head_of(first, folder),
        figures={key: _figures(summary[key]) for key in labels},
        labels=labels,
        pool=pool,
        published=None if first.published is None else published_with_std(first.published),
        rows=[_row(seed, run, folder, labels) for seed, run in runs.items()],
        curves=svg_uri(lambda file: pictures.draw_sets(file, {seed: run.evaluations for seed, run in runs.items()})),
        command=first.command(asked),
    )
    return path


def named_runs(folder: Path) -> dict[int, Path]:
    """The run folders that seeds.json in a folder names, by seed; {} if there is no such file.

    Raises InputError for one that is damaged.
    """
    from common.schemas.results import Seeds

    if not (folder / FILE).exists():
        return {}
    told = door.read(folder / FILE, Seeds, "remove it, and distil again with --seeds, which keeps finished runs")
    return {int(seed): folder.parent / Path(name).name for seed, name in told["runs"].items()}


def figures_over_sets(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`over_sets` of the evaluations in the summaries of several runs, by those of `POINTS` that all of them have.

    A set without a best evaluation is left out there, and None stands where no set has one. For a pool, "networks" has
    the last and the best evaluation of each network.
    """
    figures: dict[str, Any] = {key: _over([each[key] for each in summaries]) for key in points_in(*summaries)}
    names = networks_of(summaries[0]["last"])
    if len(names) > 1:
        figures["networks"] = {
            name: {
                "last": _over([networks_of(each["last"]).get(name) for each in summaries]),
                "best_on_test": _over([each["best_on_test_by_network"].get(name) for each in summaries]),
            }
            for name in names
        }
    return figures


def _over(points: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    made = [point for point in points if point is not None and point["mean"] is not None]
    return over_sets(made) if made else None


def _figures(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The result of `over_sets` as texts, accuracies in %."""
    if figures is None:
        return None
    within = figures["within"]
    return {
        "mean": percent(figures["mean"]),
        "std": None if figures["std"] is None else percent(figures["std"]),
        "sets": figures["n"],
        "within": None if within["std"] is None else percent(within["std"]),
        "networks": within["n"],
        "diverged": diverged_in(within),
    }


def _row(seed: int, run: RunRecord, folder: Path, labels: Iterable[str]) -> dict[str, Any]:
    """The table row of a set; accuracies are over its networks. labels: the evaluations to show."""
    summary = run.summary or {}
    points = {key: summary.get(key) for key in labels}
    return {
        "seed": seed,
        "link": f"../{run.folder.name}/report.html" if (run.folder / "report.html").exists() else None,
        **{key: "-" if point is None else percent_with_std(point) for key, point in points.items()},
        "networks": summary["last"]["n"],
        "bytes": f"{needed_bytes(summary['budget']):,}",
        "paper_bytes": f"{summary['budget']['coefficient_bytes']:,}",
        "time": describe_seconds(summary["seconds"]),
        "version": summary["version"],
    }
