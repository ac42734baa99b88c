"""Writes amounts, accuracies and differences as text, and summarises evaluations, in one way for the whole project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def describe_seconds(seconds: float) -> str:
    """A duration in one or two units: "0.4 s", "35 s", "12 min", "2 h 40 min", "3 d 4 h"."""
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
    """A size in a unit that is a power of 1000 bytes: "512 bytes", "35 MB", "1.2 GB"."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if round(number / 1000**power, 1) >= 1:
            return f"{_two_digits(number / 1000**power)} {unit}"
    return f"{number:.0f} bytes"


def counted(number: int, one: str) -> str:
    """A number with its noun in the singular or the plural: "1 image", "1,024 images"."""
    return f"{number:,} {one}{'s' * (number != 1)}"


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) < 10 else f"{value:.0f}"


def mean_and_std(accuracies: Sequence[float]) -> dict[str, Any]:
    """{"mean", "std", "n"} of n accuracies, given and returned as fractions.

    "std" is the population standard deviation over the networks, as the authors report it.
    """
    return {"mean": float(np.mean(accuracies)), "std": float(np.std(accuracies)), "n": len(accuracies)}


def point_of(accuracies: dict[str, list[float]], principal: str) -> dict[str, Any]:
    """The record of one evaluation of one network or of a pool.

    It holds the name, `mean_and_std` and all accuracies of the principal network. For a pool, "networks" maps the name
    of every network to its own figures. accuracies: the fractions for each network name.
    """
    figures = {name: {**mean_and_std(each), "accuracies": each} for name, each in accuracies.items()}
    pool = {"networks": figures} if len(figures) > 1 else {}
    return {"network": principal, **figures[principal], **pool}


def networks_of(point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of each network in one evaluation, keyed by network name; there is one network or a pool."""
    return point.get("networks", {point.get("network", ""): point})


def best_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation with the highest mean; of equal ones, the first. Raises ValueError if there are no evaluations."""
    return max(evaluations, key=lambda point: point["mean"])


def best_by_network(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each network, the figures of the evaluation with its highest mean, and the iteration of that evaluation.

    Of evaluations with equal means, the first counts.
    """
    best: dict[str, dict[str, Any]] = {}
    for point in evaluations:
        for name, figures in networks_of(point).items():
            if name not in best or figures["mean"] > best[name]["mean"]:
                best[name] = {key: figures[key] for key in ("mean", "std", "n", "accuracies")}
                best[name]["iteration"] = point["iteration"]
    return best


def percent(fraction: float) -> str:
    """A fraction as a percentage without the % sign: "44.65"."""
    return f"{100 * fraction:.2f}"


def percent_with_std(figures: Mapping[str, Any]) -> str:
    """The result of `mean_and_std` in percent, without the % sign, for tables: "44.65 ± 0.47"."""
    return f"{percent(figures['mean'])} ± {percent(figures['std'])}"


def in_percent(figures: Mapping[str, Any]) -> str:
    """The result of `mean_and_std` in percent, in ASCII for terminals: "44.65 +- 0.47 %"."""
    return f"{percent(figures['mean'])} +- {percent(figures['std'])} %"


def published_with_std(published: Mapping[str, Any], sign: str = "±") -> str:
    """A published accuracy in percent, with its standard deviation if one was published: "44.5 ± 0.4" or "44.5"."""
    return f"{published['accuracy']}" + (f" {sign} {published['std']}" if "std" in published else "")


def difference(name: str, there: Any, now: Any) -> str:
    """How a value in a stored file differs from the value given now: "--ipc 1 there, 10 now"."""
    return f"{name} {there} there, {now} now"
