"""Amounts, accuracies and differences: what is computed from them in one way, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def describe_seconds(seconds: float) -> str:
    """As people say it: "0.4 s", "35 s", "12 min", "2 h 40 min", "3 d 4 h"."""
    if round(seconds) < 60:
        return f"{_two_digits(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def describe_bytes(number: float) -> str:
    """In powers of 1000: "512 bytes", "35 MB", "1.2 GB"."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if round(number / 1000**power, 1) >= 1:
            return f"{_two_digits(number / 1000**power)} {unit}"
    return f"{number:.0f} bytes"


def counted(number: int, one: str) -> str:
    """A number of things: "1 image", "1,024 images"."""
    return f"{number:,} {one}{'s' * (number != 1)}"


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) < 10 else f"{value:.0f}"


def mean_and_std(accuracies: Sequence[float | None]) -> dict[str, Any]:
    """{"mean", "std", "n"}: fractions; the population standard deviation over networks, as the authors report it.

    None stands for a network that diverged, which has no accuracy. The figures are of the other networks, and where
    there are none, mean and std are None. "diverged" counts the networks that diverged; without any, it is left out.
    """
    finite = [each for each in accuracies if each is not None]
    diverged = len(accuracies) - len(finite)
    return {
        "mean": float(np.mean(finite)) if finite else None,
        "std": float(np.std(finite)) if finite else None,
        "n": len(finite),
        **({"diverged": diverged} if diverged else {}),
    }


def diverged_in(figures: Mapping[str, Any]) -> int:
    """How many networks diverged, of `mean_and_std`. Figures that were stored before this was counted say 0."""
    return int(figures.get("diverged", 0))


def with_diverged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table, a network each, with a column "diverged", 1 or 0, if the accuracy of any of them is None."""
    if all(row["accuracy"] is not None for row in rows):
        return rows
    return [row | {"diverged": int(row["accuracy"] is None)} for row in rows]


def point_of(accuracies: Mapping[str, Sequence[float | None]], principal: str) -> dict[str, Any]:
    """One evaluation, of one network or a pool: `mean_and_std` and all accuracies of the principal network.

    accuracies: fractions by network name, None for a network that diverged. Of a pool, "networks" holds the same for
    each of them.
    """
    figures = {name: {**mean_and_std(each), "accuracies": list(each)} for name, each in accuracies.items()}
    pool = {"networks": figures} if len(figures) > 1 else {}
    return {"network": principal, **figures[principal], **pool}


def networks_of(point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of an evaluation by network name, of a pool or of one network."""
    return point.get("networks", {point.get("network", ""): point})


def best_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the highest mean, the first of equals; None where no evaluation can be the best.

    A mean that leaves out a network that diverged is of fewer networks than the others, and is never the best.
    """
    comparable = [point for point in evaluations if not diverged_in(point)]
    return max(comparable, key=lambda point: point["mean"], default=None)


def best_by_network(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each network the figures with its highest mean, the first of equals, and the iteration that they are of.

    Figures from which a network that diverged is left out do not count; a network with no other figures is missing.
    """
    best: dict[str, dict[str, Any]] = {}
    for point in evaluations:
        for name, figures in networks_of(point).items():
            if not diverged_in(figures) and (name not in best or figures["mean"] > best[name]["mean"]):
                best[name] = {key: figures[key] for key in ("mean", "std", "n", "accuracies")}
                best[name]["iteration"] = point["iteration"]
    return best


def percent(fraction: float | None) -> str:
    """A fraction in %, without the sign: "44.65"; "-" for None or NaN, where there is no figure."""
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f}"


def percent_with_std(figures: Mapping[str, Any]) -> str:
    """`mean_and_std` in %, without the sign, as tables have it: "44.65 ± 0.47", or "44.65 ± 0.47, 1 diverged"."""
    text = "-" if figures["mean"] is None else f"{percent(figures['mean'])} ± {percent(figures['std'])}"
    return text + _diverged(figures)


def in_percent(figures: Mapping[str, Any]) -> str:
    """`mean_and_std` as a terminal can show it: "44.65 +- 0.47 %", or "44.65 +- 0.47 %, 1 diverged"."""
    text = "-" if figures["mean"] is None else f"{percent(figures['mean'])} +- {percent(figures['std'])} %"
    return text + _diverged(figures)


def _diverged(figures: Mapping[str, Any]) -> str:
    return f", {count} diverged" if (count := diverged_in(figures)) else ""


def published_with_std(published: Mapping[str, Any], sign: str = "±") -> str:
    """A published accuracy in %, with its standard deviation where one was published: "44.5 ± 0.4" or "44.5"."""
    return f"{published['accuracy']}" + (f" {sign} {published['std']}" if "std" in published else "")


def difference(name: str, there: Any, now: Any) -> str:
    """What is otherwise in something stored than in what is asked for now: "--ipc 1 there, 10 now"."""
    return f"{name} {there} there, {now} now"
