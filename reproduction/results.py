"""Our results beside the published ones: one row per cell, read from its record and its result files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.command_line import find_recipe
from common.config.options import BufferOptions
from common.report.record import RunRecord, read_run
from common.robustness.authors_set import AUTHORS_PROTOCOL
from common.system.files import read_json
from common.system.text import diverged_in
from common.system.version import code_version
from reproduction.cells import folder_of, source_folder
from reproduction.jobs import State, read_record
from reproduction.plan import Plan, images_of
from reproduction.scales import Scale
from reproduction.tables import TABLES, Cell

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Row:
    """The results of a cell at a scale. Accuracies are in % of the test images; None means unknown.

    diverged: the number of networks that mean, std and n leave out, because they diverged.
    difference: our accuracy minus the published one, only at scale full and on the dataset's own images. reduced: what
    was less than, or different from, the recipe.
    """

    table: str
    cell: str
    scale: Scale
    state: State
    mean: float | None
    std: float | None
    n: int | None
    diverged: int
    last_mean: float | None
    last_std: float | None
    published: float | None
    published_std: float | None
    published_source: str
    difference: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    images: str
    reduced: str
    note: str
    hardware: str
    version: str
    command: str
    folder: str

    @property
    def ours(self) -> str:
        """Our mean and standard deviation, and how many networks diverged, as text; "" if there is no result."""
        told = [_with_std(self.mean, self.std), f"{self.diverged} diverged" if self.diverged else ""]
        return ", ".join(filter(None, told))

    @property
    def published_text(self) -> str:
        """The published mean and standard deviation as text; "unknown" if there is none."""
        return _with_std(self.published, self.published_std, places=1) or UNKNOWN

    @property
    def details(self) -> str:
        """Remarks that belong beside the accuracy, without the scale. At scale smoke, `reduced` is left out."""
        reduced = "" if self.scale == "smoke" else self.reduced
        return "; ".join(part for part in (reduced, self.images, self.note) if part)

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
    figures = _of_drifted(cell, plan, folder) if cell.target else _figures(cell, folder)
    published = cell.published or {}
    accuracy = published.get("accuracy")
    mean = figures.get("mean")
    state: State = "finished" if figures else record["state"]
    notes = [figures.get("note"), record.get("reason") if state in ("failed", "interrupted") else None]
    if times := record.get("interruptions"):
        notes.append(f"interrupted {'once' if times == 1 else f'{times} times'}")
    images = record.get("images", images_of(cell, plan).label)
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
        last_mean=figures.get("last_mean"),
        last_std=figures.get("last_std"),
        published=accuracy,
        published_std=published.get("std"),
        published_source=str(published.get("source", UNKNOWN)),
        difference=None if mean is None or accuracy is None or plan.scale != "full" or images else mean - accuracy,
        seconds=record.get("seconds") or figures.get("seconds"),
        peak_memory_bytes=figures.get("peak_memory_bytes"),
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
    if not (folder / "summary.json").exists():
        return {}
    run = read_run(folder)
    summary = run.summary
    assert summary is not None  # summary.json exists
    chosen, last = summary[TABLES[cell.table].figure], summary["last"]
    notes = ["no best on test: a network diverged in every evaluation"] if chosen is None else []
    if chosen is not last and (count := diverged_in(last)):
        notes.append(f"after the last update {count} of {count + last['n']} networks diverged")
    return {
        **({} if chosen is None else _percent(chosen) | {"n": chosen["n"], "diverged": diverged_in(chosen)}),
        "note": "; ".join(notes),
        **{f"last_{key}": value for key, value in _percent(last).items()},
        "seconds": summary["seconds"],
        "peak_memory_bytes": _peak(summary.get("peak_memory_bytes", {})),
        "reduced": _departures(cell, run, summary),
        "hardware": _hardware(run.config["hardware"]),
        "version": summary["version"],
    }


def _of_drifted(cell: Cell, plan: Plan, folder: Path) -> dict[str, Any]:
    file, synset = folder / "results.json", source_folder(cell, plan) / "synset.safetensors"
    if not file.exists():
        return {}
    results = read_json(file)
    clean, epochs = _percent(results["clean"]), results["evaluation"]["epochs"]
    on_clean = _with_std(clean["mean"], clean["std"])
    if count := diverged_in(results["clean"]):
        on_clean += f", {count} diverged"
    notes = [f"on clean images {on_clean}"]
    if synset.exists() and synset.stat().st_mtime > file.stat().st_mtime:
        notes.append("of a synthetic set that has been made anew since: run it with --resume never")
    return {
        **_percent(results["mean"]),
        "n": results["mean"]["n"],
        "diverged": diverged_in(results["mean"]),
        "reduced": f"{epochs:,} of {full:,} epochs" if epochs < (full := AUTHORS_PROTOCOL.epochs or 0) else "",
        "note": "; ".join(notes),
        "hardware": _hardware(results["hardware"]),
        "version": results["version"],
    }


def _percent(figures: dict[str, Any]) -> dict[str, float | None]:
    return {key: None if figures[key] is None else round(100 * figures[key], 2) for key in ("mean", "std")}


def _peak(memory: dict[str, int | None]) -> int | None:
    """The peak memory of the GPU if there is one, otherwise of the process."""
    return memory.get("cuda", memory.get("cpu"))


def _departures(cell: Cell, run: RunRecord, summary: dict[str, Any]) -> str:
    """What was less than, or different from, what the recipe says."""
    # The flags that define the table are no departures.
    reduced, changed = run.departures({"image_size", *(flag.removeprefix("--") for flag in cell.flags[::2])})
    wanted = find_recipe(cell.objective, cell.dataset, cell.ipc).values.get("num_experts", BufferOptions.num_experts)
    if "experts" in summary and summary["experts"] < wanted:
        reduced.append(f"{summary['experts']} of {wanted} experts")
    return ", ".join([*reduced, *changed])


def _hardware(described: dict[str, Any]) -> str:
    count = described["threads"]
    where = described.get("gpu") or f"{described['cpu']}, {count} thread{'s' * (count != 1)}"
    several = described.get("processes", 1)
    return f"{where}{f', {several} processes' if several > 1 else ''}, torch {described['torch']}"


def _with_std(mean: float | None, std: float | None, places: int = 2) -> str:
    if mean is None:
        return ""
    return f"{mean:.{places}f}" + (f" ± {std:.{places}f}" if std is not None else "")
