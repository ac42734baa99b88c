"""The page over many cells: what `reproduce.py` found, as one file that opens anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.report.page import thumbnail_uri, write_page

STATES = ("finished", "running", "queued", "interrupted", "failed", "not started")
_TEMPLATE = Path(__file__).parent / "templates" / "results.html"


def write_results_page(path: Path, rows: Sequence[Mapping[str, Any]], title: str, notes: Sequence[str] = ()) -> None:
    """The page over many cells, grouped by the `table` of each row in the order they come, below the notes.

    A row has table, cell, scale, state (one of STATES), ours, n, published, difference, time, memory, hardware,
    version, note, command (texts, "" for nothing), picture (a file, embedded small, or None), and report (a link
    relative to the page, or None). Raises InputError where the page cannot be written.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        picture = row["picture"]
        tables.setdefault(row["table"], []).append({
            **row,
            "picture": None if picture is None else thumbnail_uri(Path(picture)),
            "report": _relative(row["report"]),
        })  # fmt: skip
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    write_page(path, _TEMPLATE, title=title, notes=notes, tables=tables, counts=counts)


def _relative(link: str | None) -> str | None:
    """The link if it stays beside or below the page; javascript: and the like are none."""
    if link is None or ":" in link.partition("/")[0] or link.startswith("/"):
        return None
    return link
