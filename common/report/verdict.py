"""Ours beside the published figure: the difference, in standard deviations of both, and a verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from common import recipes
from common.config.command_line import find_recipe, with_recipe
from common.config.options import DistillOptions
from common.networks.pools import pool_names
from common.system.text import counted, published_with_std

WITHIN = 2.0
"""The number of standard deviations up to which a figure counts as reproduced."""


class Cell(NamedTuple):
    """What a published accuracy is of. image_size: the side of the images, in pixels."""

    objective: str
    dataset: str
    ipc: int
    image_size: int


class Verdict(NamedTuple):
    """How far our accuracy is from the published one. Accuracies are in % of the test images."""

    difference: float
    """ours - published"""
    deviations: float | None
    """n = |difference| / sqrt(s_ours^2 + s_published^2); None if neither is known, or both are zero"""
    within: bool | None
    """whether n is at most `WITHIN`; None if n is not known"""
    of: str
    """whose standard deviations s are, and over what"""


def judge(mean: float, std: float | None, over: str, published: Mapping[str, Any]) -> Verdict:
    """Compare our mean accuracy, in %, with a published one, as `recipes.published` returns it.

    std: our standard deviation in %, None if unknown, as for one network. over: what it is over, e.g. "5 networks".
    A deviation that is not known counts as 0, which makes n larger, and `of` says so.
    """
    difference, theirs = mean - published["accuracy"], published.get("std")
    spread = math.hypot(std or 0.0, theirs or 0.0)
    known = [f"ours over {over}"] * (std is not None) + ["theirs"] * (theirs is not None)
    of = " and ".join(known) + (", theirs is not published" if known and theirs is None else "")
    if not spread:
        return Verdict(difference, None, None, of)
    deviations = abs(difference) / spread
    return Verdict(difference, deviations, deviations <= WITHIN, of)


def judge_networks(figures: Mapping[str, Any], published: Mapping[str, Any]) -> Verdict | None:
    """`judge` of a result of `mean_and_std`, as fractions; None if all of its networks diverged."""
    if figures["mean"] is None:
        return None
    std = 100 * figures["std"] if figures["n"] > 1 else None
    return judge(100 * figures["mean"], std, counted(figures["n"], "network"), published)


def in_words(verdict: Verdict) -> str:
    """E.g. "-0.48 points, 0.9 standard deviations (ours over 5 networks and theirs): within 2"."""
    points = f"{verdict.difference:+.2f} points"
    if verdict.deviations is None:
        return f"{points}; no standard deviation is known to judge it by"
    told = "within" if verdict.within else "not within"
    return f"{points}, {verdict.deviations:.1f} standard deviations ({verdict.of}): {told} {WITHIN:g}"


def short(verdict: Verdict) -> str:
    """E.g. "-0.48 (0.9 s.d., within 2)", for a table."""
    if verdict.deviations is None:
        return f"{verdict.difference:+.2f}"
    told = "within" if verdict.within else "not within"
    return f"{verdict.difference:+.2f} ({verdict.deviations:.1f} s.d., {told} {WITHIN:g})"


def compared(
    cell: Cell | None, network: str, evaluation: Mapping[str, Any], figures: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Compare the figures of a network with those that are published for a cell; None if nothing is published for it.

    evaluation: how networks were trained, as `EvaluationProtocol.as_metadata` says it. figures: a result of
    `mean_and_std`, as fractions. Returns {"accuracy", "std", "source"} as published, with "differently", what sets this
    evaluation apart from the published one, and, if nothing does, the entries of `Verdict`.
    """
    published = None if cell is None else recipes.published(*cell)
    if cell is None or published is None:
        return None
    told = {"accuracy": published["accuracy"], "std": published.get("std"), "source": published["source"]}
    apart = _differently(cell, network, evaluation)
    verdict = None if apart else judge_networks(figures, published)
    return told | {"differently": apart} | ({} if verdict is None else verdict._asdict())


def describe(result: Mapping[str, Any]) -> str:
    """The result of `compared` as a line for people."""
    theirs = {key: value for key, value in result.items() if value is not None}
    line = f"{published_with_std(theirs, '+-')} % is published ({result['source']}): "
    if result["differently"]:
        return f"{line}not compared, for {', '.join(result['differently'])}"
    if "difference" not in result:
        return f"{line}not compared, for all networks diverged"
    return line + in_words(Verdict(*(result[key] for key in Verdict._fields)))


def _differently(cell: Cell, network: str, evaluation: Mapping[str, Any]) -> list[str]:
    """What sets an evaluation apart from that of the cell's recipe, which is the published one."""
    recipe = find_recipe(cell.objective, cell.dataset, cell.ipc)
    unsaid = {key: value for key, value in recipes.defaults(cell.objective).items() if key not in recipe.values}
    like = dataclasses.replace(with_recipe(DistillOptions, recipe), **unsaid)
    apart = []
    if network != (usual := pool_names("S", like.model)[0]):
        apart.append(f"the network is {network} and theirs {usual}")
    wanted = {"kind": like.eval_protocol, "epochs": like.epoch_eval_train, "batch": like.batch_train}
    found = {"kind": "dc", **evaluation}
    apart += [
        f"{name} is {found[name]} and theirs {value}"
        for name, value in wanted.items()
        if value is not None and found[name] != value
    ]
    strategies = [set(text.split("_")) - {"", "none"} for text in (found["strategy"], like.strategy)]
    if "augmentation" in found or strategies[0] != strategies[1]:
        apart.append("the augmentation is another one")
    return apart
