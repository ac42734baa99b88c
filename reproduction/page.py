"""The results of `reproduce.py` as an HTML page, one file that any browser can open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.report.page import thumbnail_uri, write_page

STATES = ("finished", "running", "queued", "interrupted", "failed", "not started")
_TEMPLATE = Path(__file__).parent / "templates" / "results.html"


def write_results_page(path: Path, rows: Sequence[Mapping[str, Any]], title: str, notes: Sequence[str] = ()) -> None:
    """Write a page with the notes, followed by the rows, grouped by their `table` in the order in which tables come.

    A row has the texts table, cell, scale, state (one of STATES), ours, n, published, difference, time, memory, bytes,
    hardware, version, note and command ("" if there is none), picture (a file, embedded as a thumbnail, or None), and
    report (a link relative to the page, or None). Raises InputError if the page cannot be written.
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
    """The link if it is relative, otherwise None. Absolute paths and schemes such as javascript: are dropped."""
    if link is None or ":" in link.partition("/")[0] or link.startswith("/"):
        return None
    return link
