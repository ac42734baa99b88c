"""What is compared with the authors' code: cases, shapes, seeds and versions, fixed here.

A case is one piece of work at one size. Its versions are the ways to do it, the authors' first; the name of a version
says how it differs from what its owner starts by default. A version is prepared by a function of the device and, the
authors', of their checkout, and then does the work at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ours
import theirs
import torch
import torch.nn.functional as F
from ours import Run
from sizes import LARGE, SMALL, Size

from common.matching.augment import STRATEGIES

AUTHORS, OURS, COMPILED = "authors", "ours", "ours, compiled"
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


def compare(what: str, size: Size, folder: str, prepare: Any, own: Any, calls: int = 1, compiled: bool = True) -> Case:
    """A case with the authors' version and ours. compiled: a network computes, and may be compiled."""
    versions = {OURS: own}
    if compiled:
        versions = {OURS: partial(own, compile=False), COMPILED: partial(own, compile=True)}
    return Case(what, size, {AUTHORS: Theirs(folder, prepare)}, versions, calls, network=compiled)


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


def _cases(size: Size) -> dict[str, Case]:
    """All cases at one size, by name without the size."""
    network = f"{size.model}, {size.side} px, {size.classes} classes"
    n = {name: size.per_class_synthetic(getattr(size, name)) for name in ("dm", "dc", "tm")}
    k = {name: getattr(size, name)[1] for name in n}
    decoded = f"the {size.classes * n['tm']} images of TM's set (k {k['tm']})"
    test = f"{size.test_images} images, the authors' in batches of {theirs.TEST_BATCH} from normalised images in memory"
    epochs = f"{size.evaluation_epochs + 1} epochs on {decoded}, DSA, tested on one image"
    few = 20 if size.side < 64 else 1

    cases = {
        "selection": compare(
            f"positions of 1 of {size.classes} classes, k {k['tm']} of {size.side}x{size.side} from {n['tm']} images",
            size, "TM", theirs.selection, ours.selection, compiled=False,
        ),
        "decode": compare(f"{decoded}, forward and backward", size, "TM", theirs.decode, ours.decode, few, False),
    }  # fmt: skip
    for strategy in STRATEGIES:
        cases[f"dsa_{strategy}"] = compare(
            f"one class alike: {size.batch_real} real images, {n['dm']} synthetic ones with their gradient",
            size, "DM", partial(theirs.augment_class, strategy), partial(ours.augment_class, strategy), few, False,
        )  # fmt: skip
    for strategy in STRATEGIES:
        cases[f"dsa_each_{strategy}"] = compare(
            f"a training batch of {size.batch_train} images, parameters of their own, without gradient",
            size, "TM", partial(theirs.augment_each, strategy), partial(ours.augment_each, strategy), few, False,
        )  # fmt: skip
    cases["dm"] = compare(
        f"one update, {size.batch_real} real and {n['dm']} synthetic images per class (k {k['dm']}), DSA; {network}",
        size, "DM", theirs.dm, ours.dm,
    )  # fmt: skip
    cases["dc"] = compare(
        f"one update, {size.batch_real} real and {n['dc']} synthetic images per class (k {k['dc']}); {network}",
        size, "DC", theirs.dc, ours.dc,
    )  # fmt: skip
    cases["tm"] = Case(
        f"one update of {size.syn_steps} steps (published: {50 if size.side == 32 else 20}) on {decoded}, DSA; "
        f"{network}, experts in memory",
        size,
        {
            AS_SHIPPED: Theirs("TM", partial(theirs.tm, anomalies=True)),
            NO_ANOMALIES: Theirs("TM", partial(theirs.tm, anomalies=False)),
        },
        {OURS: partial(ours.tm, compile=False), COMPILED: partial(ours.tm, compile=True)},
        network=True,
    )
    cases["expert"] = compare(
        f"{size.expert_images} images of an epoch, batches of {size.batch_train}, DSA; {network}",
        size, "TM", theirs.expert, ours.expert,
    )  # fmt: skip
    cases["test"] = compare(f"{test}; {network}", size, "DM", theirs.test_pass, ours.test_pass)
    cases["test_batches"] = compare(
        f"the batches of the test, without the network: {test}", size, "DM", theirs.test_batches, ours.test_batches,
        few, False,
    )  # fmt: skip
    for networks in (1, 5):
        cases[f"evaluation_{networks}"] = compare(
            f"training of {networks} x {network}: {epochs}",
            size, "TM", partial(theirs.evaluation, networks), partial(ours.evaluation, networks),
        )  # fmt: skip
    return cases


def cases_of(*sizes: Size) -> dict[str, Case]:
    """All cases at these sizes, as name_side."""
    cases = {f"{name}_{size.side}": case for size in sizes for name, case in _cases(size).items()}
    if "selection_128" in cases:  # 16,384 matrices of 1 GiB per class would take hours
        large = cases["selection_128"]
        cases["selection_128"] = Case(f"{large.what}; the authors' would take hours", LARGE, {}, large.ours)
    return cases


CASES = cases_of(SMALL, LARGE)
