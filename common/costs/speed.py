"""Measures how fast this machine is, in a second: training steps of a network, and what a packed set does beside them.

Real images are not needed: a step takes as long with random ones.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from common.costs import costs
from common.matching import augment
from common.networks import build_network
from common.recipes.shapes import DataShape
from common.synset.base import LearnedSet
from common.synset.packed import PackedSet
from common.system.devices import Precision, precision, wait_for
from common.system.seeds import generator
from common.system.text import counted
from common.training.train import MOMENTUM

_LONG = 1 / 6  # of the time for measuring; a step that takes as long is not made larger
_GROWTH = 4  # times as many images in the next step


@dataclass(frozen=True)
class Speed:
    """FLOPs per second of training steps, while nothing else runs, and in words what they were.

    busy: how many times as long the steps took now, because of other programs.
    """

    flops: float
    told: str
    busy: float = 1.0


class _Step(NamedTuple):
    """Seconds of a step: on the clock on the wall, and of all cores that computed it."""

    wall: float
    computing: float


@lru_cache
def measure(
    model: str,
    shape: DataShape,
    batch: int,
    device: torch.device,
    strategy: str,
    kind: Precision = "fp32",
    seconds: float = 0.3,
) -> Speed:
    """The speed of training this network on augmented images of this shape.

    On a CPU it is taken from the time that the process computes, divided by the number of cores that it keeps at work.
    batch: the most images per step; fewer are used where a step takes long. seconds: for so long steps of that size are
    repeated, of which the median counts. A second call with the same arguments measures nothing.
    """
    with torch.random.fork_rng(devices=[]):  # building a layer draws its weights from the global random state
        network = build_network(model, shape.channels, shape.num_classes, shape.im_size).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=MOMENTUM)
    draws = generator(0, "speed")

    def step(images: torch.Tensor) -> _Step:
        begun = time.perf_counter(), time.process_time()
        drawn = augment.sample(strategy, len(images), draws, shape.im_size, one_strategy=True, device=device)
        optimizer.zero_grad()
        labels = torch.zeros(len(images), dtype=torch.long, device=device)
        F.cross_entropy(network(augment.apply(images, drawn)), labels).backward()
        optimizer.step()
        wait_for(device)
        return _Step(time.perf_counter() - begun[0], time.process_time() - begun[1])

    def images(count: int) -> torch.Tensor:
        return torch.randn(count, shape.channels, *shape.im_size, generator=draws).to(device)

    with precision(kind, device):
        some = images(1)
        step(some)  # the first one loads libraries
        while min(step(some).computing, step(some).computing) < _LONG * seconds and len(some) < batch:
            some = images(min(batch, _GROWTH * len(some)))
        steps, until = [step(some)], time.perf_counter() + seconds
        while time.perf_counter() < until:
            steps.append(step(some))
    wall = took = statistics.median(each.wall for each in steps)
    if device.type == "cpu":
        cores = max(1.0, *(each.computing / each.wall for each in steps))
        took = statistics.median(each.computing for each in steps) / cores
    flops = len(some) * costs.training(model, shape, len(some)).flops / took
    told = f"training steps of {model} on {counted(len(some), 'image')} of this size here, {flops / 1e9:,.0f} GFLOP/s"
    return Speed(flops, told, max(1.0, wall / took))


def measure_set(synset: LearnedSet) -> tuple[float, float]:
    """(seconds of decoding all images and going back to the coefficients, seconds of coding the set for a file).

    Of a set without a payload both are 0: its transform is counted in FLOPs. The latter are those of the last time, 0
    before the first. The set keeps its coefficients.
    """
    if not isinstance(synset, PackedSet):
        return 0.0, 0.0
    # One thread computes as long as it takes, whatever else runs.
    alone = synset.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    begun = clock()
    images = synset.decode()
    images.backward(torch.zeros_like(images))
    synset.optim_zero_grad()
    wait_for(synset.device)
    return clock() - begun, synset.coding_seconds
