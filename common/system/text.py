"""Writes amounts, accuracies and differences as text, and summarises evaluations, in one way for the whole project."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

POINTS = {
    "start": "before optimisation",
    "last": "last",
    "best_on_validation": "best on validation",
    "best_on_test": "best on test",
}
"""The evaluations of a summary, and what they are called."""


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


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first of many names: "cat, dog and 8 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def told_apart(names: Iterable[str], others: Collection[str]) -> list[str]:
    """Names for a message; one that only looks like one of the others is quoted, with escapes.

    Names look alike that differ in Unicode's form of a letter, in spaces or in case.
    """
    looks = set(map(_look, others))
    return [ascii(name) if name not in others and _look(name) in looks else name for name in names]


def _look(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()


def hardware_in_words(hardware: Mapping[str, Any]) -> str:
    """What `describe_hardware` tells, as one cell of a table: "device cpu, cores 2"."""
    return ", ".join(f"{key} {value}" for key, value in hardware.items())


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) < 10 else f"{value:.0f}"


def mean_and_std(accuracies: Sequence[float | None]) -> dict[str, Any]:
    """{"mean", "std", "n"} of n accuracies, given and returned as fractions.

    "std" is the population standard deviation over the networks, as the authors report it. None stands for a network
    that diverged, which has no accuracy: the figures are of the other networks, and None if there are none. "diverged"
    counts the networks that diverged; it is left out if there are none.
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
    """The number of networks that diverged, in a result of `mean_and_std`; 0 in results of older versions."""
    return int(figures.get("diverged", 0))


def with_diverged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table, one per network, with a column "diverged", 1 or 0, if any of them has None for its accuracy."""
    if all(row["accuracy"] is not None for row in rows):
        return rows
    return [row | {"diverged": int(row["accuracy"] is None)} for row in rows]


def point_of(accuracies: Mapping[str, Sequence[float | None]], principal: str) -> dict[str, Any]:
    """The record of one evaluation of one network or of a pool.

    It holds the name, `mean_and_std` and all accuracies of the principal network. For a pool, "networks" maps the name
    of every network to its own figures. accuracies: the fractions for each network name, None if a network diverged.
    """
    figures = {name: {**mean_and_std(each), "accuracies": list(each)} for name, each in accuracies.items()}
    pool = {"networks": figures} if len(figures) > 1 else {}
    return {"network": principal, **figures[principal], **pool}


def networks_of(point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of each network in one evaluation, keyed by network name; there is one network or a pool."""
    return point.get("networks", {point.get("network", ""): point})


def best_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the highest mean; of equal ones, the first. None if no evaluation can be the best.

    An evaluation in which a network diverged is a mean over fewer networks than the others, and is never the best.
    """
    comparable = [point for point in evaluations if not diverged_in(point)]
    return max(comparable, key=lambda point: point["mean"], default=None)


def best_on_validation(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation with the highest mean on the images held back; of equal ones, the first. None as for `best_of`."""
    comparable = [point for point in evaluations if not (diverged_in(point) or diverged_in(point["validation"]))]
    return max(comparable, key=lambda point: point["validation"]["mean"], default=None)


def chosen_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation of the best set: the best on the images held back, or on the test images if there are none."""
    held_back = any("validation" in point for point in evaluations)
    return best_on_validation(evaluations) if held_back else best_of(evaluations)


def points_of(evaluations: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any] | None]:
    """Those of `POINTS` that a run has, None for a best one in whose place a network diverged in every evaluation."""
    best = {"best_on_test": best_of(evaluations)}
    if "validation" in evaluations[0]:
        best = {"best_on_validation": best_on_validation(evaluations), **best}
    return {"start": evaluations[0], "last": evaluations[-1], **best}


def points_in(*summaries: Mapping[str, Any]) -> dict[str, str]:
    """Those of `POINTS` that all these summaries have, with their labels."""
    return {key: label for key, label in POINTS.items() if all(key in summary for summary in summaries)}


def best_by_network(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each network, the figures of the evaluation with its highest mean, and the iteration of that evaluation.

    Of evaluations with equal means, the first counts. Figures that leave out a network that diverged do not count; a
    network without other figures is missing from the result.
    """
    best: dict[str, dict[str, Any]] = {}
    for point in evaluations:
        for name, figures in networks_of(point).items():
            if not diverged_in(figures) and (name not in best or figures["mean"] > best[name]["mean"]):
                best[name] = {key: figures[key] for key in ("mean", "std", "n", "accuracies")}
                best[name]["iteration"] = point["iteration"]
    return best


def over_sets(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the same evaluation of n synthetic sets that differ only in the seed; accuracies are fractions.

    points: the result of `mean_and_std` for each set, over the networks that were trained on it. Returns {"mean",
    "std", "n", "means", "within"}: mean and population standard deviation of the sets' means, which are "means". "std"
    is None for a single set. "within" is {"std", "n"} over networks of one set: the root of the mean variance, None if
    each set has one network, and the number of networks of all sets together, with "diverged" for those left out.
    """
    means, stds = [point["mean"] for point in points], [point["std"] for point in points]
    diverged = sum(map(diverged_in, points))
    return {
        "mean": float(np.mean(means)),
        "std": float(np.std(means)) if len(means) > 1 else None,
        "n": len(means),
        "means": means,
        "within": {
            "std": float(np.sqrt(np.mean(np.square(stds)))) if any(point["n"] > 1 for point in points) else None,
            "n": sum(point["n"] for point in points),
            **({"diverged": diverged} if diverged else {}),
        },
    }


def percent(fraction: float | None) -> str:
    """A fraction as a percentage without the % sign: "44.65"; "-" for None or NaN, which mean that there is none."""
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f}"


def percent_with_std(figures: Mapping[str, Any]) -> str:
    """The result of `mean_and_std` in percent, without the % sign: "44.65 ± 0.47", or "44.65 ± 0.47, 1 diverged"."""
    text = "-" if figures["mean"] is None else f"{percent(figures['mean'])} ± {percent(figures['std'])}"
    return text + _diverged(figures)


def in_percent(figures: Mapping[str, Any]) -> str:
    """The result of `mean_and_std` in percent, in ASCII: "44.65 +- 0.47 %", or "44.65 +- 0.47 %, 1 diverged"."""
    text = "-" if figures["mean"] is None else f"{percent(figures['mean'])} +- {percent(figures['std'])} %"
    return text + _diverged(figures)


def sets_in_percent(figures: Mapping[str, Any] | None) -> str:
    """The result of `over_sets` in percent, in ASCII: "44.65 +- 0.47 % over 3 sets; 15 networks, +- 0.21 within a set".

    None, if no set has such an evaluation, gives "none".
    """
    if figures is None:
        return "none, for in every evaluation a network diverged"
    spread = "" if figures["std"] is None else f" +- {percent(figures['std'])}"
    within = figures["within"]
    networks = counted(within["n"], "network") + _diverged(within)
    if within["std"] is not None:
        networks += f", +- {percent(within['std'])} within a set"
    return f"{percent(figures['mean'])}{spread} % over {counted(figures['n'], 'set')}; {networks}"


def _diverged(figures: Mapping[str, Any]) -> str:
    return f", {count} diverged" if (count := diverged_in(figures)) else ""


def published_with_std(published: Mapping[str, Any], sign: str = "±") -> str:
    """A published accuracy in percent, with its standard deviation if one was published: "44.5 ± 0.4" or "44.5"."""
    return f"{published['accuracy']}" + (f" {sign} {published['std']}" if "std" in published else "")


def difference(name: str, there: Any, now: Any) -> str:
    """How a value in a stored file differs from the value given now: "--ipc 1 there, 10 now"."""
    return f"{name} {there} there, {now} now"
