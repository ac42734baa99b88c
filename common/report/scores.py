"""The scores of DD-Ranking, which ask what the images of a set are worth beside its labels and its augmentation.

Source: DD-Ranking: Rethinking the Evaluation of Dataset Distillation (Li et al., arXiv 2505.13300), doc/introduction.md
of its repository NUS-HPC-AI-Lab/DD-Ranking. All accuracies are fractions of the test images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WEIGHT = 0.5
"""Of the leaderboard: both parts of a score count alike."""


def label_robust_score(syn: float, syn_hard: float, random: float, full: float, weight: float = WEIGHT) -> float:
    """The label-robust score LRS, in %, between 0 and 100.

        HLR = full - syn_hard      (hard label recovery: how far the set stays behind all real images)
        IOR = syn - random         (improvement over random)
        alpha = w IOR - (1 - w) HLR
        LRS = 100 (e^alpha - e^-1) / (e - e^-1)

    syn: accuracy of the set with its own labels. syn_hard: with hard labels; the same for a set that has no soft ones.
    random: of as many random real images, trained as the set is. full: of all real images with hard labels.
    """
    return _normalised(weight * (syn - random) - (1 - weight) * (full - syn_hard))


def augmentation_robust_score(
    syn: float, random: float, syn_plain: float, random_plain: float, weight: float = WEIGHT
) -> float:
    """The augmentation-robust score ARS, in %, between 0 and 100.

        beta = w (syn - random) + (1 - w) (syn_plain - random_plain)
        ARS = 100 (e^beta - e^-1) / (e - e^-1)

    syn, random: accuracies of the set and of as many random real images, both with the augmentation. syn_plain,
    random_plain: both without any.
    """
    return _normalised(weight * (syn - random) + (1 - weight) * (syn_plain - random_plain))


def worth(figures: Mapping[str, Any], of_reference: Mapping[str, Mapping[str, Any]], soft: bool) -> dict[str, float]:
    """What a set is worth beside the references of an evaluation, in % or points; without what is unknown.

    figures: `mean_and_std` of networks trained on the set. of_reference: the same of each reference.
    gain: over random images, in points. share_of_full: of the accuracy with all images. lrs, ars: the scores above,
    from means over networks; not for soft labels, for which random images would need some of the same teacher.
    """
    means = {what: each["mean"] for what, each in of_reference.items() if each["mean"] is not None}
    syn, found = figures["mean"], dict[str, float]()
    if syn is None:
        return found
    if "random" in means:
        found["gain"] = 100 * (syn - means["random"])
    if means.get("full"):
        found["share_of_full"] = 100 * syn / means["full"]
    if {"random", "full"} <= means.keys() and not soft:
        found["lrs"] = label_robust_score(syn, syn, means["random"], means["full"])
    if {"random", "random_unaugmented", "unaugmented"} <= means.keys() and not soft:
        plain = means["unaugmented"], means["random_unaugmented"]
        found["ars"] = augmentation_robust_score(syn, means["random"], *plain)
    return found


def _normalised(value: float) -> float:
    return 100 * (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))
