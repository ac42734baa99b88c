"""Amounts, accuracies and differences: what is computed from them in one way, and how they are written."""

from __future__ import annotations

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


def mean_and_std(accuracies: Sequence[float]) -> dict[str, Any]:
    """{"mean", "std", "n"}: fractions; the population standard deviation over networks, as the authors report it."""
    return {"mean": float(np.mean(accuracies)), "std": float(np.std(accuracies)), "n": len(accuracies)}


def point_of(accuracies: dict[str, list[float]], principal: str) -> dict[str, Any]:
    """One evaluation, of one network or a pool: `mean_and_std` and all accuracies of the principal network.

    accuracies: fractions by network name. Of a pool, "networks" holds the same for each of them.
    """
    figures = {name: {**mean_and_std(each), "accuracies": each} for name, each in accuracies.items()}
    pool = {"networks": figures} if len(figures) > 1 else {}
    return {"network": principal, **figures[principal], **pool}


def networks_of(point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of an evaluation by network name, of a pool or of one network."""
    return point.get("networks", {point.get("network", ""): point})


def best_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation with the highest mean, the first of equals. Raises ValueError where there is none."""
    return max(evaluations, key=lambda point: point["mean"])


def best_by_network(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each network the figures with its highest mean, the first of equals, and the iteration that they are of."""
    best: dict[str, dict[str, Any]] = {}
    for point in evaluations:
        for name, figures in networks_of(point).items():
            if name not in best or figures["mean"] > best[name]["mean"]:
                best[name] = {key: figures[key] for key in ("mean", "std", "n", "accuracies")}
                best[name]["iteration"] = point["iteration"]
    return best


def percent(fraction: float) -> str:
    """A fraction in %, without the sign: "44.65"."""
    return f"{100 * fraction:.2f}"


def percent_with_std(figures: Mapping[str, Any]) -> str:
    """`mean_and_std` in %, without the sign, as tables have it: "44.65 ± 0.47"."""
    return f"{percent(figures['mean'])} ± {percent(figures['std'])}"


def in_percent(figures: Mapping[str, Any]) -> str:
    """`mean_and_std` as a terminal can show it: "44.65 +- 0.47 %"."""
    return f"{percent(figures['mean'])} +- {percent(figures['std'])} %"


def published_with_std(published: Mapping[str, Any], sign: str = "±") -> str:
    """A published accuracy in %, with its standard deviation where one was published: "44.5 ± 0.4" or "44.5"."""
    return f"{published['accuracy']}" + (f" {sign} {published['std']}" if "std" in published else "")


def difference(name: str, there: Any, now: Any) -> str:
    """What is otherwise in something stored than in what is asked for now: "--ipc 1 there, 10 now"."""
    return f"{name} {there} there, {now} now"
