"""Measures the cost of the parts of a run: one update of DM, DC or TM, and training and testing of a network.

Each part is executed once by the code that a run uses, but on the meta device, where tensors have a shape and no data.
An update decodes a new synthetic set, matches the images and takes one step of the set's optimiser.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import stack_module_state

from common.costs.meter import Cost, weigh
from common.matching import distribution, gradient, trajectory
from common.networks import Network, build_network, has_batchnorm, has_dropout
from common.recipes.shapes import DataShape
from common.synset.adam import SpreadAdam, spread_of
from common.synset.base import LearnedSet
from common.synset.packed import PackedArgs, PackedSet
from common.synset.synset import SynSet, SynSetArgs
from common.training import ensemble
from common.training.train import MOMENTUM

_META = torch.device("meta")


@dataclass(frozen=True)
class Workload:
    """The values that determine the cost of an update of every objective.

    k: coefficients kept per channel of a synthetic image. batch_syn: synthetic images per update, per class in DC and
    DM, of all classes together in TM; 0 for all images. packed: of a set in fewer bits, all of its arguments, with n as
    `num_per_class`. Such an object is hashable if its `im_size` is a tuple.
    """

    model: str
    shape: DataShape
    ipc: int
    k: int
    transform: str
    batch_syn: int
    optimizer: str = "sgd"
    packed: PackedArgs | None = None

    @property
    def per_class(self) -> int:
        """The number n of synthetic images per class."""
        if self.packed is not None:
            return self.packed.num_per_class
        return self.ipc * math.prod(self.shape.im_size) // self.k

    @property
    def matched(self) -> int:
        """The number of synthetic images per class in an update of DC or DM."""
        return min(self.batch_syn or self.per_class, self.per_class)

    @property
    def count(self) -> int:
        """The number of all synthetic images."""
        return self.shape.num_classes * self.per_class

    def network(self) -> Network:
        return network_of(self.model, self.shape)

    def synset(self) -> LearnedSet:
        shape = self.shape
        made: LearnedSet
        if self.packed is not None:
            made = PackedSet(self.packed)
        else:
            made = SynSet(
                SynSetArgs(
                    shape.channels, shape.num_classes, shape.im_size, _META, self.ipc, self.k, 1.0, 0.5,
                    self.transform, optimizer=self.optimizer,
                )
            )  # fmt: skip
        if isinstance(made.optimizer, SpreadAdam):
            made.optimizer.set_spread(spread_of(made.coefficients.detach()))
        return made

    def drawn(self, synset: LearnedSet) -> Tensor:
        """The synthetic images that are matched in an update of DC or DM."""
        if self.batch_syn == 0:
            return synset.decode()
        return synset.get(torch.zeros(self.shape.num_classes * self.matched, dtype=torch.long, device=_META))[0]


class _Real:
    """Real images whose tensors are created only when they are indexed, so that unused images count no memory."""

    def __init__(self, shape: DataShape, count: int) -> None:
        self.shape, self.count = shape, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice) -> Tensor:
        return blank(self.shape, len(range(self.count)[rows]))


@lru_cache
def dm_update(work: Workload, batch_real: int, chunk: int) -> Cost:
    """The cost of an update of DM. As many classes as fill one pass are measured and extrapolated to all classes."""
    classes = work.shape.num_classes
    whole = properties(work.model, work.shape).batchnorm
    count = classes if whole else min(classes, max(1, chunk // min(work.matched, batch_real)))

    def update() -> None:
        network = work.network().requires_grad_(False)
        synset = work.synset()
        images = work.drawn(synset)
        real, some = _Real(work.shape, count * batch_real), images[: count * work.matched]
        distribution.match(network.embed, real, some, count, chunk=None if whole else chunk)
        _step(synset, images, torch.empty_like(images))

    cost, decoding = weigh(update), _decoding(work)
    return Cost(decoding + round(classes / count * (cost.flops - decoding)), cost.bytes)


def dc_iteration(
    work: Workload, batch_real: int, chunk: int | None, distance: str, outer: int, inner: int, batch_train: int
) -> Cost:
    """FLOPs and memory of an iteration of DC: `outer` updates, with `inner` epochs of training between two of them."""
    update = _dc_update(work, batch_real, chunk, distance)
    batch = min(batch_train, work.count)
    trained = training(work.model, work.shape, batch)
    flops = outer * update.flops + (outer - 1) * inner * work.count * trained.flops
    return Cost(round(flops), max(update.bytes, trained.bytes if outer > 1 else 0))


@lru_cache
def _dc_update(work: Workload, batch_real: int, chunk: int | None, distance: str) -> Cost:
    classes = work.shape.num_classes
    ranges = gradient.class_ranges(classes, max(work.matched, batch_real), chunk or 1)

    def update(count: int) -> None:
        network = work.network()
        if has_batchnorm(network):
            gradient.freeze_batchnorm(network, blank(work.shape, count * gradient.BATCHNORM_IMAGES))
        synset = work.synset()
        images = work.drawn(synset)
        real = _Real(work.shape, count * batch_real)
        gradient.match(network, real, images[: count * work.matched], count, distance=distance, chunk=chunk)
        _step(synset, images, torch.empty_like(images))

    decoding = _decoding(work)
    one = weigh(lambda: update(1))
    together = ranges[0][1] - ranges[0][0]
    most = one if together == 1 else weigh(lambda: update(together))
    return Cost(decoding + classes * (one.flops - decoding), most.bytes)


@lru_cache
def tm_update(work: Workload, steps: int, chunk: int, unroll: trajectory.Unroll) -> Cost:
    """The cost of an update of TM with `steps` steps of the student network.

    A step is split into parts of at most `chunk` images (not split for networks with BatchNorm). One part is measured
    in place of all parts. The cost that a second step adds is measured and used for every further step.
    """
    batch = min(work.batch_syn or work.count, work.count)
    parts = 1 if properties(work.model, work.shape).batchnorm else math.ceil(batch / chunk)
    part = math.ceil(batch / parts)

    def update(count: int) -> None:
        student = trajectory.build_student(work.network())
        start, target = (torch.empty(student.num_parameters, device=_META) for _ in range(2))
        synset = work.synset()
        images = synset.decode()
        labels = torch.zeros(part, dtype=torch.long, device=_META)
        step_size, each = torch.zeros((), device=_META), [trajectory.Step()] * count
        trajectory.match(student, start, target, images[:part], labels, step_size, each, unroll=unroll)
        _step(synset, images, torch.empty_like(images))

    one, two = weigh(lambda: update(1)), weigh(lambda: update(2))
    flops = _decoding(replace(work, batch_syn=0)) + steps * batch / part * (two.flops - one.flops)
    further = steps - 1 if unroll == "adjoint" else steps * parts - 1
    return Cost(round(flops), one.bytes + further * max(0, two.bytes - one.bytes))


def _decoding(work: Workload) -> int:
    """FLOPs of decoding the set and of backpropagating from the images to the coefficients."""

    def update() -> None:
        synset = work.synset()
        images = work.drawn(synset)
        _step(synset, images, torch.empty_like(images))

    return weigh(update).flops


def _step(synset: LearnedSet, images: Tensor, to_images: Tensor) -> None:
    synset.optim_zero_grad()
    images.backward(to_images)
    synset.optim_step()


# -- networks --------------------------------------------------------------------------------------------------


@lru_cache
def training(name: str, shape: DataShape, batch: int, together: int = 1) -> Cost:
    """The cost of a training step: FLOPs per image and network, and bytes of `together` networks of `batch` images."""

    def step(count: int) -> None:
        network = network_of(name, shape).train()
        if count == 1:
            parameters, logits = list(network.parameters()), network(blank(shape, batch))
        else:
            weights, buffers = stack_module_state([copy.deepcopy(network) for _ in range(count)])
            some = blank(shape, count * batch).unflatten(0, (count, batch))
            parameters, logits = list(weights.values()), ensemble.stacked(network)(weights, buffers, some).flatten(0, 1)
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=MOMENTUM)
        F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=_META)).backward()
        optimizer.step()

    one = weigh(lambda: step(1))
    # Several networks together become grouped convolutions, and torch's FLOP formula for their gradient is too high.
    # So FLOPs are taken from a single network.
    return Cost(round(one.flops / batch), one.bytes if together == 1 else weigh(lambda: step(together)).bytes)


@lru_cache
def inference(name: str, shape: DataShape, batch: int, together: int = 1) -> Cost:
    """The cost of a test pass: FLOPs per image and network, and bytes of `together` networks that see one `batch`."""

    @torch.no_grad()
    def step() -> None:
        network_of(name, shape).eval()(blank(shape, batch))

    cost = weigh(step)
    return Cost(round(cost.flops / batch), together * cost.bytes)


def network_of(name: str, shape: DataShape) -> Network:
    """The network of this name, for images of this shape, on the meta device."""
    with _META:
        return build_network(name, shape.channels, shape.num_classes, shape.im_size)


class Properties(NamedTuple):
    """What a network has that decides how it is run."""

    batchnorm: bool
    dropout: bool


@lru_cache
def properties(name: str, shape: DataShape) -> Properties:
    """The properties of the network of this name, for images of this shape."""
    network = network_of(name, shape)
    return Properties(has_batchnorm(network), has_dropout(network))


def blank(shape: DataShape, count: int) -> Tensor:
    """Images without data, float32 [count, ch, *im_size] on the meta device."""
    return torch.empty(count, shape.channels, *shape.im_size, device=_META)
