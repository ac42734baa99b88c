"""What updates are made of: draws, images, augmentation and precision, for the classes of this process.

The classes are divided among the processes of a job. Each matches its classes, and the gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.datasets import ClassSampler, Gathered
from common.matching import augment
from common.networks import Network, has_batchnorm
from common.runs.setup import Setup
from common.system import parallel
from common.system.devices import precision
from common.system.seeds import Draws, seeded


@dataclass(frozen=True)
class ClassShare:
    """The classes [first, last) that this process matches; other processes match the others."""

    first: int
    last: int

    @classmethod
    def of(cls, classes: int, undivided: bool = False) -> ClassShare:
        """This process's share of all classes. undivided: rank 0 matches all classes, the other ranks none."""
        if undivided:
            return cls(0, classes if parallel.is_main() else 0)
        return cls(*parallel.share(classes))

    @property
    def count(self) -> int:
        """The number of classes in this share; 0 if other processes match all classes."""
        return self.last - self.first

    @property
    def rows(self) -> slice:
        """The slice that selects this process's classes from an array whose first axis is the class."""
        return slice(self.first, self.last)


_SYNCHRONISED = ("cuda", "xpu")  # what nn.SyncBatchNorm takes of the devices that --device takes


def share_statistics(network: Network, classes: int, device: torch.device, model: str) -> tuple[Network, ClassShare]:
    """The network for matching and this process's classes, if batch statistics have to cover all classes.

    On GPUs the processes combine their batch statistics (SyncBatchNorm). Elsewhere, or with more processes than
    classes, rank 0 matches all classes, and one line with the name of the `model` reports it. A network without
    BatchNorm is returned unchanged.
    """
    if parallel.world() == 1 or not has_batchnorm(network):
        return network, ClassShare.of(classes)
    if device.type in _SYNCHRONISED and parallel.world() <= classes:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network), ClassShare.of(classes)
    where = "a CPU" if device.type == "cpu" else device.type
    reason = f"on {where}" if device.type not in _SYNCHRONISED else f"with more processes than the {classes} classes"
    tqdm.write(
        f"{model} normalises over the batch, which is not shared {reason}: "
        f"one of the {parallel.world()} processes matches all classes, and the others wait"
    )
    return network, ClassShare.of(classes, undivided=True)


REHEARSED: ContextVar[Callable[[Any], Iterator[int]] | None] = ContextVar("rehearsed", default=None)
"""What makes the iterator over a `Distillation`, from the Distillation, in place of its loop."""


@contextmanager
def rehearsal(loop: Callable[[Any], Iterator[int]]) -> Iterator[None]:
    """Inside the block, a script's loop over its `Distillation` is `loop` of it: nothing is evaluated or written."""
    token = REHEARSED.set(loop)
    try:
        yield
    finally:
        REHEARSED.reset(token)


class Pieces:
    """The pieces of an update, for the classes of this process.

    `train` and `test` are ImageData, `synset` is the set that is distilled, `network` is the network to match, in
    training mode. `options` are completed with what depends on the data, and `sources` say where each comes from.
    `graphs` is the device if passes are to be captured as CUDA graphs, else None.
    `share` says which classes this process matches: none if there are more processes than classes.
    """

    def __init__(self, setup: Setup) -> None:
        self.options, self.sources, self.device = setup.options, setup.sources, setup.device
        self.train, self.test, self.synset, self.network = setup.train, setup.test, setup.synset, setup.network
        self.share = ClassShare.of(setup.train.num_classes)
        self._compile = setup.compile
        self.graphs = setup.device if setup.graphs else None

    def draws(self, *numbers: int) -> Draws:
        """The random draws of one update. numbers: the iteration, then the update or expert within the iteration."""
        return Draws(self.options.seed, numbers)

    def real(self, count: int, draws: Draws) -> Gathered:
        """Draw `count` real images of each of this process's c classes: [c * count, ch, ...], made slice by slice.

        A slice of the result is a tensor, and `[:]` gives all images. c is 0 in a process without classes.
        """
        rows = self.sampler.draw(count, draws.generator("real"))  # [C, count]
        return Gathered(self.train, rows[self.share.rows].flatten())

    def synthetic(self, count: int, draws: Draws) -> Tensor:
        """Draw `count` synthetic images of each of this process's c classes, or take all n images (count = 0).

        Returns [c * count, ch, ...] or [c * n, ch, ...], grouped by class and differentiable with respect to the
        coefficients. A count above n means n.
        """
        if count == 0:
            whole = self.share.count == self.train.num_classes
            return self.synset.decode(None if whole else self.share.rows)
        count = min(count, self.synset.num_per_class)
        rows = self._synthetic_sampler.draw(count, draws.generator("synthetic"))  # [C, count]
        return self.synset.get(rows[self.share.rows].flatten())[0]

    def augmentation(self, draws: Draws) -> augment.DSAParams:
        """Draw one set of augmentation parameters per class of this process, shared by real and synthetic images."""
        classes, im_size = self.train.num_classes, self.train.im_size
        drawn = augment.sample(
            self.options.strategy, classes, draws.generator("augmentation"), im_size, device=self.device
        )
        return drawn[self.share.rows]

    @contextmanager
    def matching(self, network: nn.Module, draws: Draws) -> Iterator[None]:
        """Inside the block, networks run in --precision, and the dropout of `network` depends on `draws` alone."""
        # Processes match different classes, so each has dropout of its own.
        numbers = (*draws.numbers, self.share.first) if self.share.first else draws.numbers
        with precision(self.options.precision, self.device), seeded(network, draws.base, "dropout", *numbers):
            yield

    @cached_property
    def sampler(self) -> ClassSampler:
        """Draws the same number of real images from every class."""
        return ClassSampler(self.train)

    @cached_property
    def _synthetic_sampler(self) -> ClassSampler:
        rows = torch.arange(len(self.synset.labels), device=self.device)
        return ClassSampler(rows.split(self.synset.num_per_class))

    def share_statistics(self, network: Network) -> Network:
        """The network to match if batch statistics cover all classes. It also sets `share`, see there."""
        network, self.share = share_statistics(network, self.train.num_classes, self.device, self.options.model)
        return network

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled if --compile is given and this machine can compile, otherwise unchanged."""
        return torch.compile(function) if self._compile else function

    @property
    def compiler(self) -> Callable[..., Any] | None:
        """torch.compile for objectives that compile functions of their own, or None if nothing is to be compiled.

        Every input size is compiled separately (dynamic=False), because with dynamic sizes older versions of torch fail
        on second derivatives.
        """
        return partial(torch.compile, dynamic=False) if self._compile else None
