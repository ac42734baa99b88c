"""Amounts as people say them."""

from __future__ import annotations

from collections.abc import Sequence
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


def in_percent(figures: dict[str, Any]) -> str:
    """`mean_and_std` as people write it: "44.65 +- 0.47 %"."""
    return f"{100 * figures['mean']:.2f} +- {100 * figures['std']:.2f} %"
