"""Our results beside the published ones: one row per cell, read from its record and its result files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.config.command_line import find_recipe
from common.config.options import BufferOptions
from common.report.description import needed_bytes
from common.report.record import RunRecord, read_run
from common.report.seeds import FILE as SEEDS_FILE
from common.report.seeds import figures_over_sets, named_runs
from common.report.verdict import Verdict, judge
from common.robustness.authors_set import AUTHORS_PROTOCOL
from common.runs.finished import is_finished_run
from common.schemas import door
from common.system.text import counted, diverged_in, over_sets
from common.system.version import code_version
from reproduction.cells import drifted_folders, folder_of, seeds_of, source_folder
from reproduction.jobs import State, read_record
from reproduction.plan import Plan, images_of
from reproduction.scales import Scale
from reproduction.tables import TABLES, Cell

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Row:
    """The results of a cell at a scale. Accuracies are in % of the test images; None means unknown.

    mean is over the n networks of one set, or over the means of several `sets`. std is that over the networks of one
    set, and sets_std that over sets, None for one set. diverged: the number of networks that these figures leave out.
    bytes: those that a decoder of one set needs; paper_bytes: its numbers, 4 bytes each, as the paper counts.
    difference: our accuracy minus the published one, only at scale full and on the dataset's own images. deviations:
    the difference in standard deviations of both, see `verdict.judge`: ours over sets if there are several, else over
    networks. within: whether these are at most `verdict.WITHIN`. seconds: of all commands of a cell.
    distillation_seconds, evaluation_seconds: the parts of its distillation. reduced: what was less than, or different
    from, the recipe.
    """

    table: str
    cell: str
    scale: Scale
    state: State
    mean: float | None
    std: float | None
    n: int | None
    diverged: int
    sets: int | None
    sets_std: float | None
    last_mean: float | None
    last_std: float | None
    last_sets_std: float | None
    published: float | None
    published_std: float | None
    published_source: str
    difference: float | None
    deviations: float | None
    within: bool | None
    seconds: float | None
    distillation_seconds: float | None
    evaluation_seconds: float | None
    peak_memory_bytes: int | None
    bytes: int | None
    paper_bytes: int | None
    images: str
    reduced: str
    note: str
    hardware: str
    version: str
    command: str
    folder: str

    @property
    def ours(self) -> str:
        """Our mean and standard deviations, and how many networks diverged, as text; "" if there is no result."""
        return accuracy_text(asdict(self))

    @property
    def published_text(self) -> str:
        """The published mean and standard deviation as text; "unknown" if there is none."""
        return _with_std(self.published, self.published_std, places=1) or UNKNOWN

    @property
    def details(self) -> str:
        """Remarks that belong beside the accuracy, without the scale. At scale smoke, `reduced` is left out."""
        return "; ".join(filter(None, (self.reduced_text, self.remarks_besides)))

    @property
    def reduced_text(self) -> str:
        """What was less than the recipe says, joined by ", "; "" at scale smoke, which says so itself."""
        return "" if self.scale == "smoke" else self.reduced

    @property
    def remarks_besides(self) -> str:
        """The remarks on images and on the run, without what was reduced."""
        return "; ".join(filter(None, (self.images, self.note)))

    @property
    def remarks(self) -> str:
        """All remarks that belong beside the accuracy, including the scale unless it is full."""
        scale = "" if self.scale == "full" else f"scale {self.scale}"
        return "; ".join(part for part in (scale, self.details) if part)


def collect(cells: Iterable[Cell], plans: Sequence[Plan]) -> list[Row]:
    """One row per cell and plan, without the cells that were not started."""
    current = code_version()
    rows = [row_of(cell, plan, current) for plan in plans for cell in cells]
    return [row for row in rows if row.state != "not started"]


def row_of(cell: Cell, plan: Plan, current: str | None = None) -> Row:
    """The row of a cell, from its record and result files. current: the version of this code, to note others."""
    record, folder = read_record(cell, plan), folder_of(cell, plan)
    if "folder" in record:
        folder = plan.root / record["folder"]
    seeds = seeds_of(record.get("seeds", plan.seeds))
    figures = _of_drifted(cell, plan, folder, seeds) if cell.target else _figures(cell, folder)
    published = cell.published or {}
    accuracy = published.get("accuracy")
    mean = figures.get("mean")
    images = record.get("images", images_of(cell, plan).label)
    comparable = accuracy is not None and mean is not None and plan.scale == "full" and not images
    verdict = _verdict(figures, published) if comparable else None
    state: State = "finished" if figures else record["state"]
    lost = state == "finished" and not figures
    state = "interrupted" if lost else state
    notes = [
        "the files of its run are damaged or gone: run it again" if lost else figures.get("note"),
        record.get("reason") if state in ("failed", "interrupted") else None,
    ]
    if times := record.get("interruptions"):
        notes.append(f"interrupted {'once' if times == 1 else f'{times} times'}")
    version, begun_by = str(figures.get("version", "")), record.get("begun_by", "")
    if begun_by and version and begun_by != version:
        notes.append(f"begun by version {begun_by}")
    if version and current is not None and version != current:
        notes.append("made by another code version")
    return Row(
        table=cell.table,
        cell="/".join(cell.parts),
        scale=plan.scale,
        state=state,
        mean=mean,
        std=figures.get("std"),
        n=figures.get("n"),
        diverged=figures.get("diverged", 0),
        sets=figures.get("sets"),
        sets_std=figures.get("sets_std"),
        last_mean=figures.get("last_mean"),
        last_std=figures.get("last_std"),
        last_sets_std=figures.get("last_sets_std"),
        published=accuracy,
        published_std=published.get("std"),
        published_source=str(published.get("source", UNKNOWN)),
        difference=verdict and verdict.difference,
        deviations=verdict and verdict.deviations,
        within=verdict and verdict.within,
        seconds=record.get("seconds") or figures.get("seconds"),
        distillation_seconds=figures.get("distillation_seconds"),
        evaluation_seconds=figures.get("evaluation_seconds"),
        peak_memory_bytes=figures.get("peak_memory_bytes"),
        bytes=figures.get("bytes"),
        paper_bytes=figures.get("paper_bytes"),
        images=images,
        reduced=figures.get("reduced", ""),
        note="; ".join(filter(None, notes)),
        hardware=str(figures.get("hardware", "")),
        version=version,
        command=" && ".join(record.get("commands", [])),
        folder=str(folder) if figures else "",
    )


def _figures(cell: Cell, folder: Path) -> dict[str, Any]:
    """The results of a finished cell, accuracies in %; {} if the cell is not finished."""
    key = TABLES[cell.table].figure
    folders = list(named_runs(folder).values()) if (folder / SEEDS_FILE).exists() else [folder]
    if not folders or not all(map(is_finished_run, folders)):
        return {}
    runs = [read_run(each) for each in folders]
    summaries = [run.summary or {} for run in runs]
    one = folders == [folder]
    summary, entries = (summaries[0], _of_networks) if one else (figures_over_sets(summaries), _of_sets)
    chosen, last = ({} if summary[each] is None else entries(summary[each]) for each in (key, "last"))
    notes = [] if chosen else ["no best on test: a network diverged in every evaluation"]
    if summary[key] is not summary["last"] and (count := last["diverged"]):
        notes.append(f"after the last update {count} of {count + last['n']} networks diverged")
    return {
        **chosen,
        "note": "; ".join(notes),
        **{f"last_{name}": last.get(name) for name in ("mean", "std", "sets_std")},
        "seconds": sum(each["seconds"] for each in summaries),
        **{key: _sum(each.get(key) for each in summaries) for key in ("distillation_seconds", "evaluation_seconds")},
        "peak_memory_bytes": max(_peak(each.get("peak_memory_bytes", {})) or 0 for each in summaries) or None,
        "bytes": needed_bytes(summaries[0]["budget"]),
        "paper_bytes": summaries[0]["budget"]["coefficient_bytes"],
        "reduced": _departures(cell, runs[0], summaries[0]),
        "hardware": "; ".join(
            dict.fromkeys(_hardware(run.config["hardware"]) for run in runs if "hardware" in run.config)
        ),
        "version": "; ".join(dict.fromkeys(each["version"] for each in summaries)),
    }


def _of_drifted(cell: Cell, plan: Plan, folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    from common.schemas.results import Drifted

    folders = drifted_folders(folder, seeds)
    files = [each / "results.json" for each in folders.values()]
    if not all(file.exists() for file in files):
        return {}
    tests = [door.read(file, Drifted, "remove it, and run the cell again") for file in files]
    first = tests[0]
    on_drifted, clean = (
        _of_sets(over_sets([test[each] for test in tests])) if seeds else _of_networks(first[each])
        for each in ("mean", "clean")
    )
    notes = [f"on clean images {accuracy_text(clean)}"]
    synsets = [source_folder(cell, plan, seed) / "synset.safetensors" for seed in folders]
    if any(
        synset.exists() and synset.stat().st_mtime > file.stat().st_mtime
        for synset, file in zip(synsets, files, strict=True)
    ):
        notes.append("of a synthetic set that has been made anew since: run it with --resume never")
    epochs, full = first["evaluation"]["epochs"], AUTHORS_PROTOCOL.epochs or 0
    return {
        **on_drifted,
        "reduced": f"{epochs:,} of {full:,} epochs" if epochs < full else "",
        "note": "; ".join(notes),
        "hardware": "; ".join(dict.fromkeys(_hardware(test["hardware"]) for test in tests)),
        "version": "; ".join(dict.fromkeys(test["version"] for test in tests)),
    }


def _of_networks(figures: dict[str, Any]) -> dict[str, Any]:
    """The entries of a row for the networks of one set, from `mean_and_std`."""
    return _percent(figures) | {"n": figures["n"], "diverged": diverged_in(figures)}


def _of_sets(figures: dict[str, Any]) -> dict[str, Any]:
    """The entries of a row for several sets, from `over_sets`."""
    over, within = _percent(figures), figures["within"]
    return {
        "mean": over["mean"],
        "std": None if within["std"] is None else round(100 * within["std"], 2),
        "n": within["n"],
        "diverged": diverged_in(within),
        "sets": figures["n"],
        "sets_std": over["std"],
    }


def _verdict(figures: dict[str, Any], published: dict[str, Any]) -> Verdict:
    """Our figures beside the published ones: over sets if there are several, else over the networks of the one set."""
    if (figures.get("sets") or 1) > 1:
        return judge(figures["mean"], figures["sets_std"], counted(figures["sets"], "set"), published)
    std = figures["std"] if figures["n"] > 1 else None
    return judge(figures["mean"], std, counted(figures["n"], "network"), published)


def _sum(seconds: Iterable[float | None]) -> float | None:
    """The sum of what runs took; None if one of them, of an older version, does not say."""
    known = list(seconds)
    return None if None in known else sum(each for each in known if each is not None)


def accuracy_text(figures: dict[str, Any]) -> str:
    """Mean and standard deviations of a row's entries as text, and how many networks diverged; "" without a mean."""
    mean, std, sets = figures.get("mean"), figures.get("std"), figures.get("sets")
    text = _with_std(mean, std)
    if sets is not None:
        text = f"{_with_std(mean, figures['sets_std'])} over {counted(sets, 'set')}"
        text += "" if std is None else f", ± {std:.2f} within a set"
    return ", ".join(filter(None, [text, f"{figures['diverged']} diverged" if figures.get("diverged") else ""]))


def _percent(figures: dict[str, Any]) -> dict[str, float | None]:
    return {key: None if figures[key] is None else round(100 * figures[key], 2) for key in ("mean", "std")}


def _peak(memory: dict[str, int | None]) -> int | None:
    """The peak memory of the accelerator if there is one that tells it, otherwise of the process."""
    return next((each for kind, each in memory.items() if kind != "cpu"), memory.get("cpu"))


def _departures(cell: Cell, run: RunRecord, summary: dict[str, Any]) -> str:
    """What was less than, or different from, what the recipe says."""
    # The flags that define the table are no departures.
    reduced, changed = run.departures({"image_size", *(flag.removeprefix("--") for flag in cell.flags[::2])})
    wanted = find_recipe(cell.objective, cell.dataset, cell.ipc).values.get("num_experts", BufferOptions.num_experts)
    if "experts" in summary and summary["experts"] < wanted:
        reduced.append(f"{summary['experts']} of {wanted} experts")
    return ", ".join([*reduced, *changed])


def _hardware(described: dict[str, Any]) -> str:
    where = described.get("gpu") or f"{described['cpu']}, {counted(described['threads'], 'thread')}"
    several = described.get("processes", 1)
    return f"{where}{f', {several} processes' if several > 1 else ''}, torch {described['torch']}"


def _with_std(mean: float | None, std: float | None, places: int = 2) -> str:
    if mean is None:
        return ""
    return f"{mean:.{places}f}" + (f" ± {std:.{places}f}" if std is not None else "")
