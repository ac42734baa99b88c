"""Converts the result of a robustness test to a table, to text and to rows of a CSV file."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.system.text import in_percent, percent, with_diverged


def as_table(result: dict[str, Any]) -> tuple[np.ndarray, list[str], list[str]]:
    """Mean accuracies as fractions [corruptions, levels], the names of the rows and the titles of the columns.

    An accuracy is NaN if all networks diverged.
    """
    found = {(each["kind"], each["level"]): each["mean"] for each in result["conditions"]}
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    levels = list(dict.fromkeys(level for _, level in found))
    table = np.array([[found[kind, level] for level in levels] for kind in kinds], dtype=float)
    return table, kinds, ["accuracy" if level is None else f"level {level}" for level in levels]


def as_text(result: dict[str, Any]) -> str:
    """The table of accuracies in %, as means over networks, followed by the figures over all conditions."""
    table, kinds, columns = as_table(result)
    names, rows = [*kinds], [*table]
    if len(kinds) > 1:
        names, rows = [*names, "mean"], [*rows, table.mean(axis=0)]
    figures = np.array(rows)
    if len(columns) > 1:
        columns, figures = [*columns, "mean"], np.column_stack([figures, figures.mean(axis=1)])
    if "mce" in result:
        errors = result["mce"]["by_kind"] | {"mean": result["mce"]["mean"]}
        columns, figures = (
            [*columns, "CE"],
            np.column_stack([figures, np.array([errors[name] for name in names], dtype=float)]),
        )
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
    lines += [
        f"{name:<{width}}" + "".join(f"{percent(figure):>10}" for figure in row)
        for name, row in zip(names, figures, strict=True)
    ]
    stats = "" if result["target_stats"] == "train" else ", normalised by mean 0.5 and std 0.5"
    lines += [
        "",
        f"clean  {in_percent(result['clean'])} ({result['n']} x {result['network']})",
        f"mean   {in_percent(result['mean'])} ({result['target']}{stats})",
    ]
    if result["relative_drop"] is not None:
        lines.append(f"drop   {percent(result['relative_drop'])} % of the clean accuracy")
    if "mce" in result:
        lines.append(f"mCE    {in_percent(result['mce'])} of the errors in {result['options']['relative_to']}")
    return "\n".join(lines)


def as_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per network and condition, with accuracies as fractions; the rows for clean images come first.

    If any network diverged, every row has a column "diverged", 1 or 0.
    """
    tests = [{"kind": "clean", "level": None, **result["clean"]}, *result["conditions"]]
    return with_diverged(
        [
            {
                "kind": test["kind"],
                "level": test["level"],
                "network": result["network"],
                "number": number,
                "accuracy": each,
            }
            for test in tests
            for number, each in enumerate(test["accuracies"])
        ]
    )
