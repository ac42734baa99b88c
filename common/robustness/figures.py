"""Computes the figures of robustness: mean accuracy, drop relative to clean images, mean corruption error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.robustness.conditions import Condition, Target
from common.schemas import door
from common.system.errors import InputError
from common.system.text import mean_and_std


def summarise(
    clean: Sequence[float | None],
    accuracies: Mapping[Condition, Sequence[float | None]],
    baseline: Mapping[Condition, float] | None = None,
) -> dict[str, Any]:
    """Summarise the accuracies (fractions) of several networks on clean images and under each condition.

    An accuracy is None if the network diverged: its weights, or its outputs on those images, are not finite. No figure
    that needs this accuracy counts the network; "diverged" beside the figure is the number of such networks.
    "mean" summarises, as the authors do, the plain mean over all conditions of each network. "relative_drop" is the
    share of the clean accuracy that is lost (None if the clean accuracy is 0). "mce" is there only if `baseline`, the
    errors of a baseline under each condition, is given; see `mean_corruption_error`.
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
    """Compute the mean corruption error (mCE) of networks relative to a baseline; 1 means as many errors as it makes.

    CE_c = sum over levels s of E_{s,c}  /  sum over levels s of E^baseline_{s,c},  mCE = mean over corruptions c
    (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019, section 3.2, where the baseline is AlexNet). E is the top-1 error. The sums run over the levels that were
    tested; in the paper these are all five.

    errors: the error of each network under each condition, as fractions, None if the network diverged. baseline: the
    mean error of the baseline's networks under each condition.
    Returns {"mean", "std", "n", "networks" (the mCE of each), "by_kind" (the mean CE_c of each corruption)}.
    Raises InputError if the baseline makes no error under a corruption.
    """
    ratios: dict[str, np.ndarray] = {}  # CE_c of each network, by corruption
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
    """Read the errors of a baseline (means over its networks) from the results.json of an earlier test.

    target, target_stats: the test set, and its normalisation, of the test to compare with the baseline.
    Raises InputError for a file that is not such a result, and if the baseline was tested on other images or with
    another normalisation.
    """
    from common.schemas.results import Tested

    stored = door.read(file, Tested, "give the results.json that --output wrote")
    name, stats, sizes = stored["target"], stored["target_stats"], stored["images"]
    means = {Condition(each["kind"], each["level"]): each["mean"] for each in stored["conditions"]}
    errors = {condition: 1 - float(mean) for condition, mean in means.items() if mean is not None}
    if (name, stats) != (target.name, target_stats):
        raise InputError(
            f"{file} is of {name} with --target_stats {stats}, this is {target.name} with {target_stats}: "
            "test both on the same images with the same --target_stats"
        )
    if diverged := [condition for condition in target.parts if condition in means and means[condition] is None]:
        raise InputError(f"{file} has no error under {diverged[0]}, where all of its networks diverged: give another")
    if lacking := [condition for condition in target.parts if condition not in errors]:
        raise InputError(f"{file} lacks {lacking[0]}: test the baseline on the same corruptions and levels")
    for condition, part in target.parts.items():
        if (count := sizes.get(str(condition))) != part.size:
            raise InputError(
                f"{file} is of {count} images of {condition}, but this test has {part.size}: "
                "test both on the same images"
            )
    return errors
