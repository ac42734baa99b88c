"""What is compared with the authors' code: cases, shapes, seeds and versions, fixed here.

A case is one piece of work at one size. Its versions are the ways to do it, the authors' first; the name of a version
says how it differs from what its owner starts by default. A version is prepared by a function of the device and, the
authors', of their checkout, and then does the work at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import ours
import theirs
import torch
import torch.nn.functional as F
from ours import Run
from sizes import LARGE, SMALL, Size

from common.matching.augment import STRATEGIES

AUTHORS, OURS, COMPILED = "authors", "ours", "ours, compiled"
TOGETHER = "ours, all networks together"
AS_SHIPPED, NO_ANOMALIES = "authors, as shipped", "authors, anomaly mode off"
PRODUCT, CONVOLUTION = "matrix product", "convolution"
REFERENCES = (PRODUCT, CONVOLUTION)

_SIDE = 1024  # of the square matrices whose product is what the machine can do
_IMAGES = 32  # of the convolution; they stay in a cache


@dataclass(frozen=True)
class Theirs:
    """A version of the authors': the folder of the checkout, and a function of its code, the size and the device."""

    folder: str
    prepare: Callable[[theirs.Code, Size, torch.device], Run]


@dataclass(frozen=True)
class Case:
    """One piece of work.

    calls: calls per timing. network: whether a network computes, so that FLOPs, the speed of the machine, and memory
    are worth a measurement.
    """

    what: str
    size: Size
    theirs: dict[str, Theirs]
    ours: dict[str, Callable[[Size, torch.device], Run]]
    calls: int = 1
    network: bool = False

    def names(self, compiles: bool) -> list[str]:
        """The names of the versions, the authors' first. compiles: whether this machine can compile."""
        return [*self.theirs, *(name for name in self.ours if compiles or name != COMPILED)]

    def prepare(self, name: str, authors: Path, device: torch.device) -> Run:
        """Prepare one version. The global generators, from which the authors draw, are seeded."""
        torch.manual_seed(0)
        np.random.seed(0)
        if name in self.ours:
            return self.ours[name](self.size, device)
        version = self.theirs[name]
        return version.prepare(theirs.code_of(authors, version.folder, device.type == "cuda"), self.size, device)


def operation(what: str, size: Size, other: Theirs, own: Callable[[Size, torch.device], Run], calls: int = 1) -> Case:
    """A case without a network: the authors' version and ours."""
    return Case(what, size, {AUTHORS: other}, {OURS: own}, calls)


def computation(what: str, size: Size, others: dict[str, Theirs], own: Callable[..., Run]) -> Case:
    """A case with a network: the authors' versions, ours, and ours with --compile."""
    versions: dict[str, Callable[[Size, torch.device], Run]] = {
        OURS: partial(own, compile=False),
        COMPILED: partial(own, compile=True),
    }
    return Case(what, size, others, versions, network=True)


def references(size: Size, device: torch.device) -> tuple[dict[str, Run], dict[str, int]]:
    """What the machine reaches beside a case: a matrix product, and the middle convolution of the network, forward.

    Returns the functions, and the FLOPs of a call of each.
    """
    a, b = torch.randn(2, _SIDE, _SIDE, device=device)
    channels, side = size.middle
    images = torch.randn(_IMAGES, channels, side, side, device=device)
    weights = torch.randn(size.width, channels, 3, 3, device=device)
    runs: dict[str, Run] = {PRODUCT: lambda: a @ b, CONVOLUTION: lambda: F.conv2d(images, weights, padding=1)}
    return runs, {PRODUCT: 2 * _SIDE**3, CONVOLUTION: 2 * _IMAGES * side**2 * channels * size.width * 9}


def _operations(size: Size) -> dict[str, Case]:
    """The choice of positions, decoding, and the augmentations."""
    n = {name: size.per_class_synthetic(budget) for name, budget in (("dm", size.dm), ("tm", size.tm))}
    calls = 20 if size.side < 64 else 1  # a few milliseconds each
    chosen = (
        f"positions of 1 of {size.classes} classes, k {size.tm[1]} of {size.side}x{size.side} from {n['tm']} images"
    )
    alike = f"one class alike: {size.batch_real} real images, {n['dm']} synthetic ones with their gradient"
    each = f"a training batch of {size.batch_train} images, parameters of their own, without gradient"
    cases = {
        "selection": operation(chosen, size, Theirs("TM", theirs.selection), ours.selection),
        "decode": operation(
            f"{_tm_set(size)}, forward and backward", size, Theirs("TM", theirs.decode), ours.decode, calls
        ),
    }
    for name in STRATEGIES:
        other = Theirs("DM", partial(theirs.augment_class, name))
        cases[f"dsa_{name}"] = operation(alike, size, other, partial(ours.augment_class, name), calls)
    for name in STRATEGIES:
        other = Theirs("TM", partial(theirs.augment_each, name))
        cases[f"dsa_each_{name}"] = operation(each, size, other, partial(ours.augment_each, name), calls)
    return cases


def _updates(size: Size) -> dict[str, Case]:
    """One update of each objective."""
    anomalies = {AS_SHIPPED: True, NO_ANOMALIES: False}
    return {
        "dm": computation(_update(size, size.dm, "DSA"), size, {AUTHORS: Theirs("DM", theirs.dm)}, ours.dm),
        "dc": computation(_update(size, size.dc, "no DSA"), size, {AUTHORS: Theirs("DC", theirs.dc)}, ours.dc),
        "tm": computation(
            f"one update, {size.syn_steps} of {size.published_steps} steps, on {_tm_set(size)}, DSA; {_network(size)}",
            size,
            {name: Theirs("TM", partial(theirs.tm, anomalies=on)) for name, on in anomalies.items()},
            ours.tm,
        ),
    }


def _trainings(size: Size) -> dict[str, Case]:
    """Experts, and the networks of an evaluation."""
    expert = f"{size.expert_images} images of an epoch, batches of {size.batch_train}, DSA; {_network(size)}"
    test = f"{size.test_images} images, the authors' in batches of {theirs.TEST_BATCH} from normalised images in memory"
    cases = {
        "expert": computation(expert, size, {AUTHORS: Theirs("TM", theirs.expert)}, ours.expert),
        "test": computation(
            f"{test}; {_network(size)}",
            size,
            {AUTHORS: Theirs("DM", theirs.test_pass)},
            partial(ours.test_pass, graphs=False),
        ),
        "test_batches": operation(
            f"the batches of the test alone: {test}", size, Theirs("DM", theirs.test_batches), ours.test_batches
        ),
    }
    for networks in (1, 5):
        cases[f"evaluation_{networks}"] = computation(
            f"{networks} x {size.evaluation_epochs + 1} epochs on {_tm_set(size)}, DSA, tested on one image; "
            f"{_network(size)}",
            size,
            {AUTHORS: Theirs("TM", partial(theirs.evaluation, networks))},
            partial(ours.evaluation, networks),
        )
    several = cases["evaluation_5"]
    cases["evaluation_5"] = replace(several, ours=several.ours | {TOGETHER: partial(ours.evaluation, 5, together=5)})
    return cases


def _update(size: Size, budget: tuple[int, int], augmented: str) -> str:
    n = size.per_class_synthetic(budget)
    images = f"{size.batch_real} real and {n} synthetic images per class (k {budget[1]})"
    return f"one update, {images}, {augmented}; {_network(size)}"


def _tm_set(size: Size) -> str:
    return f"the {size.classes * size.per_class_synthetic(size.tm)} images of TM's set (k {size.tm[1]})"


def _network(size: Size) -> str:
    return f"{size.model}, {size.side} px, {size.classes} classes"


def cases_of(*sizes: Size) -> dict[str, Case]:
    """All cases at these sizes, as name_side."""
    cases: dict[str, Case] = {}
    for size in sizes:
        here = _operations(size) | _updates(size) | _trainings(size)
        cases |= {f"{name}_{size.side}": case for name, case in here.items()}
    if "selection_128" in cases:  # for each class 16,384 passes over two matrices of 1 GiB
        large = cases["selection_128"]
        cases["selection_128"] = replace(large, what=f"{large.what}; the authors' would take hours", theirs={})
    return cases


CASES = cases_of(SMALL, LARGE)
