"""Format the rows of results as Markdown, as CSV, and for the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.disk.listing import matching
from common.disk.paths import is_folder
from common.report.seeds import named_runs
from common.report.verdict import WITHIN, Verdict, short
from common.system.text import describe_bytes, describe_seconds
from reproduction.results import Row
from reproduction.tables import TABLES, Figure

NOTES = (
    "Accuracy on the test images in %, mean and population standard deviation over n networks trained from scratch "
    "on the synthetic set; of several sets, over the means of the sets, and within a set. Only rows of scale full say "
    "anything about the published figures: short and smoke rows made fewer updates and trained fewer networks, smoke "
    "rows on stand-in images.",
    "A difference is followed by its size in standard deviations (s.d.), sqrt(ours^2 + theirs^2): ours over sets if "
    "there are several, else over networks; theirs as published, over networks. Where none is published, ours is taken "
    f"alone. A figure within {WITHIN:g} of them counts as reproduced. The time of a cell is that of all its commands, "
    "experts included; updates and evaluations of its distillation are shown apart.",
)
_HEAD = (
    "cell",
    "state",
    "ours, %",
    "n",
    "published, %",
    "difference",
    "time",
    "memory",
    "bytes (paper's count)",
    "remarks",
    "hardware",
    "version",
)


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as Markdown text, with one section per published table."""
    lines = ["# Ours beside the published figures", "", *(f"{note}\n" for note in NOTES)]
    for name, table in TABLES.items():
        mine = [row for row in rows if row.table == name]
        if not mine:
            continue
        lines += [f"## {table.title} (`{name}`)", ""]
        lines += [f"Published: {table.source}. Ours: {_compared(table.figure)}.", ""]
        lines += [_line(_HEAD), "| --- " * len(_HEAD) + "|", *(_line(_cells(row)) for row in mine)]
        lines += ["", "Commands:", "", "```sh"]
        lines += [f"# {row.cell}, scale {row.scale}\n{row.command}" for row in mine]
        lines += ["```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _compared(figure: Figure) -> str:
    return "the best evaluation of a run, as published" if figure == "best_on_test" else "after the last update"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _cells(row: Row) -> list[str]:
    return [
        row.cell,
        row.state,
        row.ours,
        "" if row.n is None else str(row.n),
        row.published_text,
        _difference(row),
        _time(row),
        _memory(row.peak_memory_bytes),
        _bytes(row),
        row.remarks,
        row.hardware,
        row.version,
    ]


def _difference(row: Row) -> str:
    return "" if row.difference is None else short(Verdict(row.difference, row.deviations, row.within, ""))


def _time(row: Row) -> str:
    """E.g. "1 h 20 min (distillation 1 h, evaluation 20 min)"; a run of an older version does not tell the parts."""
    if row.seconds is None:
        return ""
    parts = {"distillation": row.distillation_seconds, "evaluation": row.evaluation_seconds}
    told = ", ".join(f"{name} {describe_seconds(each)}" for name, each in parts.items() if each is not None)
    return describe_seconds(row.seconds) + (f" ({told})" if told else "")


def _memory(count: int | None) -> str:
    return "" if count is None else describe_bytes(count)


def _bytes(row: Row) -> str:
    return "" if row.bytes is None else f"{row.bytes:,} ({row.paper_bytes:,})"


def as_csv_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows for `write_csv`. Unknown values are empty.

    There is a column `diverged` if any network diverged, and there are columns about sets if any row is of several.
    """
    hidden = set() if any(row.diverged for row in rows) else {"diverged"}
    if all(row.sets is None for row in rows):
        hidden |= {"sets", "sets_std", "last_sets_std"}
    return [
        {key: "" if value is None else value for key, value in asdict(row).items() if key not in hidden} for row in rows
    ]


def as_page_rows(rows: Sequence[Row], page: Path) -> list[dict[str, Any]]:
    """The rows for `page.write_results_page`, with links relative to the page."""
    return [_page_row(row, page) for row in rows]


def _pictures(folder: Path) -> list[Path]:
    return matching(folder, "images_*.png") if is_folder(folder) else []


def _page_row(row: Row, page: Path) -> dict[str, Any]:
    folder = Path(row.folder) if row.folder else None
    pictures = _pictures(folder) if folder else []
    if folder and not pictures:  # of several sets, that of the first
        pictures = [path for run in [*named_runs(folder).values()][:1] for path in _pictures(run)]
    report = folder / "report.html" if folder else None
    return {
        "table": f"{TABLES[row.table].title} ({row.table})",
        "cell": row.cell,
        "scale": row.scale,
        "state": row.state,
        "ours": row.ours,
        "n": "" if row.n is None else row.n,
        "published": row.published_text,
        "difference": _difference(row),
        "time": _time(row),
        "memory": _memory(row.peak_memory_bytes),
        "bytes": _bytes(row),
        "hardware": row.hardware,
        "version": row.version,
        "reduced": row.reduced_text,
        "note": row.remarks_besides,
        "command": row.command.replace(" && ", "\n"),
        "picture": pictures[-1] if pictures else None,
        "report": _link(report, page) if report and report.exists() else None,
    }


def _link(file: Path, page: Path) -> str | None:
    """The link to `file` relative to the page, or None if the file is outside the page's folder."""
    file, folder = file.resolve(), page.resolve().parent
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else None
