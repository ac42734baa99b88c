"""Renders the results of versus_authors.py as the table of benchmarks/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cases import AUTHORS, OURS, REFERENCES

from common.schemas import door
from common.system.errors import InputError
from common.system.files import write_atomically

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- versus_authors: begin -->", "<!-- versus_authors: end -->"

_HEADER = (
    "| case | authors | ours | authors, s | ours, s | ratio | CPU ratio | GFLOP/s | machine, GFLOP/s | MiB |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
_NONE = "-"  # what was not measured


def renew(results: Path, readme: Path = README) -> None:
    """Put the table of a JSON file between the two marks of the README.

    Raises InputError for a file that versus_authors.py has not written, and for a README without the marks.
    """
    from common.schemas.results import Comparisons

    rendered = render(door.read(results, Comparisons, "give the file of versus_authors.py --output"), results.name)
    put(rendered, readme, BEGIN, END)


def put(rendered: str, readme: Path, begin: str, end: str) -> None:
    """Put lines between two marks of a file in place of those that are there. Raises InputError if it lacks them."""
    text = readme.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{readme} lacks the lines {begin} and {end}: put them where the table belongs")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    whole = f"{before}{begin}\n{rendered}{end}{after}"
    write_atomically(readme, lambda temporary: temporary.write_text(whole, encoding="utf-8"))


def render(content: dict[str, Any], name: str) -> str:
    """The table as Markdown: what was measured where, a row for every comparison, and what the cases are.

    content: what versus_authors.py writes. name: of the file, to be named above the table.
    """
    hardware = content["hardware"]
    where = hardware.get("gpu", hardware["cpu"])
    lines = [
        f"{content['date']}, version {content['version']}, the authors' commit {content['authors'] or 'unknown'}, "
        f"{where}, {hardware['threads']} of {hardware['cores']} cores, torch {hardware['torch']}, allocator "
        f"{content['allocator']}; medians of {content['repeats']} turns, smallest and largest in brackets; `{name}`.",
        "",
        *_HEADER,
    ]
    for case, result in content["results"].items():
        lines += _rows(case, result)
    lines += ["", *(f"- `{case}`: {result['what']}" for case, result in content["results"].items())]
    return "\n".join(lines) + "\n"


def _rows(case: str, result: dict[str, Any]) -> list[str]:
    """A row for each pair of a version of the authors' and one of ours."""
    names = list(result.get("seconds") or result.get("peak_mib") or {})
    own = [name for name in names if name.startswith(OURS)]
    others = [name for name in names if name.startswith(AUTHORS)]
    return [_row(case, result, other, each) for other in others or [None] for each in own]


def _row(case: str, result: dict[str, Any], other: str | None, own: str) -> str:
    seconds, pair = result.get("seconds", {}), (other, own)
    machine = [_rate(result, name) for name in REFERENCES]
    cells = [
        f"`{case}`",
        _NONE if other is None else other.removeprefix(AUTHORS).lstrip(", ") or "as shipped",
        own.removeprefix(OURS).lstrip(", ") or "default",
        *(_seconds(seconds, name) for name in pair),
        _ratio(seconds, "median_s", *pair),
        _ratio(seconds, "cpu_median_s", *pair),
        _both(*(_rate(result, name) for name in pair)),
        _both(*machine),
        _both(*(_memory(result, name) for name in pair)),
    ]
    return f"| {' | '.join(cells)} |"


def _seconds(seconds: dict[str, Any], name: str | None) -> str:
    if name not in seconds:
        return _NONE
    of = seconds[name]
    return f"{of['median_s']:.3g} ({min(of['runs_s']):.3g} to {max(of['runs_s']):.3g})"


def _ratio(seconds: dict[str, Any], key: str, other: str | None, own: str) -> str:
    """The authors' over ours; bold where we lose."""
    if other not in seconds or own not in seconds:
        return _NONE
    ratio = seconds[other][key] / seconds[own][key]
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def _rate(result: dict[str, Any], name: str | None) -> str:
    """GFLOP/s, by the clock on the wall."""
    if name not in result.get("flops", {}) or name not in result.get("seconds", {}):
        return _NONE
    return f"{result['flops'][name] / result['seconds'][name]['median_s'] / 1e9:.0f}"


def _memory(result: dict[str, Any], name: str | None) -> str:
    weights = result.get("peak_mib", {})
    return f"{weights[name]:.0f}" if name in weights else _NONE


def _both(other: str, own: str) -> str:
    return _NONE if other == own == _NONE else f"{other}, {own}"
