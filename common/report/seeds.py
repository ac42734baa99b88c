"""The page of several runs that differ only in the seed: `report.html` beside `seeds.json`, which `--seeds` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.places import dataset_folder
from common.report import pictures
from common.report.page import TEMPLATES, svg_uri, write_page
from common.report.record import RunRecord, read_run
from common.system.errors import InputError
from common.system.files import read_json
from common.system.text import counted, describe_seconds, diverged_in, percent, percent_with_std, published_with_std

FILE = "seeds.json"
POINTS = ("start", "last", "best_on_test")
"""The evaluations of a summary."""


def write_seeds_report(folder: Path) -> Path:
    """Write `report.html` into the folder that has seeds.json, and return its path.

    Raises InputError if the file is not what `--seeds` writes, or a run that it names is gone.
    """
    try:
        summary = read_json(folder / FILE)
        runs = {seed: read_run(folder.parent / name) for seed, name in summary["runs"].items()}
        figures = {key: _figures(summary[key]) for key in POINTS}
        pool = {name: {key: _figures(each[key]) for key in each} for name, each in summary.get("networks", {}).items()}
        asked = {"seeds": ",".join(map(str, summary["seeds"])), "name": summary["name"], "seed": None}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / FILE} is not what --seeds writes ({error!r}): distil again") from error
    first = next(iter(runs.values()))
    reduced, changed = first.departures()
    path = folder / "report.html"
    write_page(
        path,
        TEMPLATES / "seeds.html",
        run=first,
        name=folder.resolve().name,
        dataset=dataset_folder(str(first.option("dataset"))),
        reduced=", ".join(reduced),
        changed=", ".join(changed),
        figures=figures,
        pool=pool,
        published=None if first.published is None else published_with_std(first.published),
        rows=[_row(seed, run, folder) for seed, run in runs.items()],
        curves=svg_uri(lambda file: pictures.draw_sets(file, {seed: run.evaluations for seed, run in runs.items()})),
        command=first.command(asked),
        plural=counted,
    )
    return path


def _figures(figures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The result of `over_sets` as texts, accuracies in %."""
    if figures is None:
        return None
    within = figures["within"]
    return {
        "mean": percent(figures["mean"]),
        "std": None if figures["std"] is None else percent(figures["std"]),
        "sets": figures["n"],
        "within": percent(within["std"]),
        "networks": within["n"],
        "diverged": diverged_in(within),
    }


def _row(seed: str, run: RunRecord, folder: Path) -> dict[str, Any]:
    """The table row of a set; accuracies are over its networks."""
    summary = run.summary or {}
    points = {key: summary.get(key) for key in POINTS}
    return {
        "seed": seed,
        "link": f"../{run.folder.name}/report.html" if (run.folder / "report.html").exists() else None,
        **{key: "-" if point is None else percent_with_std(point) for key, point in points.items()},
        "networks": summary["last"]["n"],
        "time": describe_seconds(summary["seconds"]),
        "version": summary["version"],
    }
