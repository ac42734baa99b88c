"""The figures of robustness: mean accuracy, drop against clean images, mean corruption error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.robustness.conditions import Condition, Target
from common.system.errors import InputError
from common.system.files import read_json
from common.system.text import mean_and_std


def summarise(
    clean: Sequence[float | None],
    accuracies: Mapping[Condition, Sequence[float | None]],
    baseline: Mapping[Condition, float] | None = None,
) -> dict[str, Any]:
    """The figures of some networks from their accuracies (fractions), on clean images and under each condition.

    An accuracy is None where a network diverged: its weights are not finite, or its outputs on those images. Such a
    network has no figure that would need this accuracy, and is counted as "diverged" beside it.
    "mean" is the authors' figure, by network the plain mean over all conditions. "relative_drop" is the share of the
    clean accuracy that is lost (None where there is none to lose). With the errors of a baseline there is also "mce".
    """
    by_network = _without_nan(_array(accuracies.values()).mean(axis=0))  # from [conditions, networks]
    both = [each for each in zip(clean, by_network, strict=True) if None not in each]
    average = float(np.mean([each for each, _ in both])) if both else 0.0
    figures: dict[str, Any] = {
        "n": sum(each is not None for each in clean),
        "clean": _figures(clean),
        "conditions": [{"kind": kind, "level": level, **_figures(each)} for (kind, level), each in accuracies.items()],
        "mean": _figures(by_network),
        "relative_drop": 1 - float(np.mean([each for _, each in both])) / average if average else None,
    }
    if baseline is not None:
        errors = {
            condition: [None if each is None else 1 - each for each in of_networks]
            for condition, of_networks in accuracies.items()
        }
        figures["mce"] = mean_corruption_error(errors, baseline)
    return figures


def mean_corruption_error(
    errors: Mapping[Condition, Sequence[float | None]], baseline: Mapping[Condition, float]
) -> dict[str, Any]:
    """Corruption errors of networks as shares of a baseline's, 1 for as many errors: {"mean", "std", "n", "by_kind"}.

    CE_c = sum over levels s of E_{s,c}  /  sum over levels s of E^baseline_{s,c},  mCE = mean over corruptions c
    (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019, section 3.2, where the baseline is AlexNet). Sums go over the levels that were tested, all five in the paper.

    errors: top-1 errors as fractions, of each network, None where it diverged, as in `summarise`. baseline: of its
    networks' mean. Raises InputError where the baseline makes no error.
    """
    ratios: dict[str, np.ndarray] = {}  # of each network
    for kind in dict.fromkeys(condition.kind for condition in errors):
        levels = [condition for condition in errors if condition.kind == kind]
        against = sum(baseline[condition] for condition in levels)
        if not against > 0:
            raise InputError(f"the baseline makes no error under {kind}: an error relative to it is not defined")
        ratios[kind] = _array(errors[condition] for condition in levels).sum(axis=0) / against
    by_network = _without_nan(np.mean(list(ratios.values()), axis=0))
    return {
        **mean_and_std(by_network),
        "networks": by_network,
        "by_kind": {kind: mean_and_std(_without_nan(each))["mean"] for kind, each in ratios.items()},
    }


def _array(rows: Iterable[Sequence[float | None]]) -> np.ndarray:
    """Rows of figures as an array, with NaN for None: sums and means of it are NaN where a figure is missing."""
    return np.array(list(rows), dtype=float)


def _without_nan(figures: np.ndarray) -> list[float | None]:
    """Figures as JSON has them, with None for NaN."""
    return [None if math.isnan(each) else each for each in figures.tolist()]


def _figures(accuracies: Sequence[float | None]) -> dict[str, Any]:
    return {**mean_and_std(accuracies), "accuracies": list(accuracies)}


def baseline_errors(file: Path, target: Target, target_stats: str) -> dict[Condition, float]:
    """The errors of a baseline, means over its networks, from the results.json that a test of it wrote.

    target, target_stats: what the baseline is compared on. Raises InputError for another file, and where the baseline
    was tested on other images or with other statistics.
    """
    try:
        stored = read_json(file)
        name, stats = stored["target"], stored["target_stats"]
        sizes = dict(stored["images"])
        means = {Condition(each["kind"], each["level"]): each["mean"] for each in stored["conditions"]}
        errors = {condition: 1 - float(mean) for condition, mean in means.items() if mean is not None}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{file} is not readable as results of this script ({error}): give the results.json that --output wrote"
        ) from error
    if (name, stats) != (target.name, target_stats):
        raise InputError(
            f"{file} is of {name} with --target_stats {stats}, this is {target.name} with {target_stats}: "
            "test both alike"
        )
    if diverged := [condition for condition in target.parts if condition in means and means[condition] is None]:
        raise InputError(f"{file} has no error under {diverged[0]}, where all of its networks diverged: give another")
    if lacking := [condition for condition in target.parts if condition not in errors]:
        raise InputError(f"{file} lacks {lacking[0]}: test the baseline on the same corruptions and levels")
    for condition, part in target.parts.items():
        if (count := sizes.get(str(condition))) != part.size:
            raise InputError(f"{file} is of {count} images of {condition}, here are {part.size}: test both alike")
    return errors
