"""Results of a robustness test as a table, a text and rows of a CSV file."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.system.text import in_percent, percent, with_diverged


def as_table(result: dict[str, Any]) -> tuple[np.ndarray, list[str], list[str]]:
    """Mean accuracies as fractions [kinds, levels], NaN where all networks diverged, and names of rows and columns."""
    found = {(each["kind"], each["level"]): each["mean"] for each in result["conditions"]}
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    levels = list(dict.fromkeys(level for _, level in found))
    table = np.array([[found[kind, level] for level in levels] for kind in kinds], dtype=float)
    return table, kinds, ["accuracy" if level is None else f"level {level}" for level in levels]


def as_text(result: dict[str, Any]) -> str:
    """The table in %, means over networks, and below it the figures of all conditions together."""
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
    """One row per network and condition, those on clean images first: accuracies as fractions.

    Where networks diverged, rows also say 1 for those and 0 for the others.
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
