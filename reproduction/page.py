"""The results of `reproduce.py` as an HTML page, one file that any browser can open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from common.report.page import picture_uri, write_page
from common.system.text import counted
from reproduction.scales import Scale

# Columns of figures, by what they are called.
_FIGURES = {
    "ours": "ours", "published": "published", "difference": "difference", "time": "time, memory",
    "bytes": "bytes (paper's count)",
}  # fmt: skip
STATES = ("finished", "running", "queued", "interrupted", "failed", "not started")
_TEMPLATE = Path(__file__).parent / "templates" / "results.html"


def write_results_page(path: Path, rows: Sequence[Mapping[str, Any]], title: str, notes: Sequence[str] = ()) -> None:
    """Write a page with the notes, followed by the rows, grouped by their `table` in the order in which tables come.

    A row has the texts table, cell, scale, state (one of STATES), ours, n, published, difference, time, memory, bytes,
    hardware, version, reduced (less than the recipe's, joined by ", "), note and command ("" if there is none), picture
    (a file, embedded, or None), and report (a link relative to the page, or None). In ours, difference, time and bytes
    a remark may follow the figure: in brackets, or behind " over ". Raises InputError if the page cannot be written.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        picture = row["picture"]
        tables.setdefault(row["table"], []).append({
            **row,
            "picture": None if picture is None else picture_uri(Path(picture)),
            "report": _relative(row["report"]),
            "brief": _brief(row["reduced"], row["note"]),
            "remarks": [f"reduced: {row['reduced']}"] * bool(row["reduced"]) + [row["note"]] * bool(row["note"]),
            "figures": {key: _with_remarks(row, key) for key in _FIGURES},
        })  # fmt: skip
    filters = {
        "state": {state: sum(row["state"] == state for row in rows) for state in STATES},
        "scale": {scale: sum(row["scale"] == scale for row in rows) for scale in get_args(Scale)},
    }
    write_page(path, _TEMPLATE, title=title, notes=notes, tables=tables, filters=filters, figures=_FIGURES)


def _brief(reduced: str, note: str) -> str:
    """What a row's remarks begin with, for one line: "reduced: 40 of 15,000 updates, ..."."""
    first, *others = [*reduced.split(", ")] if reduced else note.split("; ")
    more = bool(others or (reduced and note))
    return f"{'reduced: ' if reduced else ''}{first}{', ...' if more else ''}"


def _with_remarks(row: Mapping[str, Any], key: str) -> tuple[str, list[str]]:
    """A figure and the lines below it: of "7 min (distillation 5 min)" they are "7 min" and "distillation 5 min"."""
    parts = re.fullmatch(r"(.*?)(?: (\(.*\)|over .*))?", str(row[key]), flags=re.DOTALL)
    assert parts is not None  # any text matches
    figure, remark = parts[1], parts[2] or ""
    lines = [remark] if key == "bytes" else remark.strip("()").split(", ")
    if key == "ours" and row["n"] != "":
        lines.append(counted(row["n"], "network"))
    if key == "time" and row["memory"]:
        lines.append(row["memory"])
    return figure, [line for line in lines if line]


def _relative(link: str | None) -> str | None:
    """The link if it is relative, otherwise None. Absolute paths and schemes such as javascript: are dropped."""
    if link is None or ":" in link.partition("/")[0] or link.startswith("/"):
        return None
    return link
