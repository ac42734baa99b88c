"""Trains several networks of one architecture at the same time, with their weights stacked along a new first dimension.

Each network has its own training set, order of images and augmentation. Its results are therefore those of training it
alone, except for rounding. The optimiser works element by element, so it needs no change for stacked weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from common.datasets import ImageData
from common.matching import augment
from common.matching.transforms import Augmenter
from common.networks import reinitialise
from common.training import dc_augment
from common.training.train import (
    EvaluationProtocol,
    TrainingSet,
    augmenter_of,
    check_augmenter,
    epochs,
    targets,
    test_indices,
)

State = dict[str, Tensor]  # parameters or buffers of n networks by name, each [n, ...]
Stack = Callable[[State, State, Tensor], Tensor]


class Ensemble:
    """Trains and tests several networks of the given network's architecture together.

    compiler: a function such as torch.compile, or None to compile nothing. The training pass is compiled at the first
    training and the testing pass at the first test; later calls reuse both.
    """

    def __init__(self, network: nn.Module, compiler: Callable[..., Any] | None = None) -> None:
        self._network, self._compiler = network, compiler

    @cached_property
    def _training(self) -> Stack:
        return stacked(self._network.train(), self._compiler)

    @cached_property
    def _testing(self) -> Stack:
        return stacked(self._network.eval(), self._compiler)

    def accuracies(
        self,
        seeds: Sequence[int],
        training_sets: Sequence[TrainingSet],
        tests: Sequence[ImageData],
        protocol: EvaluationProtocol,
        draws: Sequence[torch.Generator],
        on_batch: Callable[[], object] = lambda: None,
    ) -> list[list[float | None]]:
        """Train n networks, each on its own training set, and return for each its top-1 accuracies as fractions.

        There is one for each of `tests`, the images to test on. That of a network that diverged is None; it does not
        affect the other networks.

        seeds: n seeds, from which the initial weights are drawn. training_sets: one per network, all of the same
        length. draws: one CPU generator per network, for the order of images and the augmentation. on_batch is called
        after every batch of training and testing, once for each network, and may raise. The CPU waits for the device
        only once for each of `tests`, at the end.
        Raises ValueError for training sets of different lengths.
        """
        weights, buffers = initial(self._network, seeds)
        augmenter = augmenter_of(protocol, tests[0])
        train(self._training, weights, buffers, training_sets, protocol, draws, on_batch, augmenter)
        by_test = [self._tested(weights, buffers, data, on_batch) for data in tests]
        return [list(each) for each in zip(*by_test, strict=True)]

    @torch.no_grad()
    def _tested(
        self, weights: State, buffers: State, data: ImageData, on_batch: Callable[[], object]
    ) -> list[float | None]:
        """The accuracy of each of the n networks on `data`."""
        count, device = len(next(iter(weights.values()))), data.labels.device
        correct = torch.zeros(count, dtype=torch.long, device=device)
        finite = torch.ones(count, dtype=torch.bool, device=device)
        for tensor in (*weights.values(), *buffers.values()):
            finite &= _finite_rows(tensor)
        for indices in test_indices(data):
            images = data.batch(indices)
            logits = self._testing(weights, buffers, images.expand(count, *images.shape))  # [n, B, C]
            correct += (logits.argmax(dim=2) == data.labels[indices]).sum(dim=1)
            finite &= _finite_rows(logits)
            for _ in range(count):
                on_batch()
        accuracies, sound = torch.stack([correct.double() / len(data), finite.double()]).tolist()
        return [each if fine else None for each, fine in zip(accuracies, sound, strict=True)]


def _finite_rows(tensor: Tensor) -> Tensor:
    """Whether each of the n parts of a tensor [n, ...] is finite throughout: bool [n]."""
    return tensor.detach().isfinite().reshape(len(tensor), -1).all(dim=1)


def initial(network: nn.Module, seeds: Sequence[int]) -> tuple[State, State]:
    """Weights and buffers, each [n, ...], of n networks that `reinitialise` initialises from the n seeds."""
    networks = [copy.deepcopy(network) for _ in seeds]
    for each, seed in zip(networks, seeds, strict=True):
        reinitialise(each, seed)
    weights, buffers = stack_module_state(networks)
    return weights, buffers


def stacked(network: nn.Module, compiler: Callable[..., Any] | None = None) -> Stack:
    """A function (weights, buffers, images [n, B, ch, ...]) -> logits [n, B, C] that runs n networks at once.

    Each network sees its own B images. The function keeps the mode (training or testing) that `network` is in; in
    training mode it updates the batch statistics in `buffers` in place.
    """
    form = copy.deepcopy(network).to("meta")  # every call passes the weights, so this copy needs none

    def one(weights: State, buffers: State, images: Tensor) -> Tensor:
        return functional_call(form, (weights, buffers), (images,))

    several = vmap(one)
    return several if compiler is None else compiler(several)


def train(
    stack: Stack,
    weights: State,
    buffers: State,
    training_sets: Sequence[TrainingSet],
    protocol: EvaluationProtocol,
    draws: Sequence[torch.Generator],
    on_batch: Callable[[], object] = lambda: None,
    augmenter: Augmenter | None = None,
) -> None:
    """Train the stacked networks in place, each as `train.train` would.

    Afterwards `weights` holds the weights to test: the final ones or, for a protocol of kind "glad", their average.
    """
    lengths = {len(data.labels) for data in training_sets}
    if len(lengths) != 1:
        raise ValueError(f"networks that are trained together need training sets of one length, not {sorted(lengths)}")
    check_augmenter(protocol, augmenter)
    for optimizer in epochs(protocol, list(weights.values()), list(buffers.values())):
        _train_epoch(stack, weights, buffers, training_sets, optimizer, protocol, draws, on_batch, augmenter)


def _train_epoch(
    stack: Stack,
    weights: State,
    buffers: State,
    training_sets: Sequence[TrainingSet],
    optimizer: torch.optim.Optimizer,
    protocol: EvaluationProtocol,
    draws: Sequence[torch.Generator],
    on_batch: Callable[[], object],
    augmenter: Augmenter | None,
) -> None:
    """Train every network for one epoch, each on its own images in its own order."""
    device = training_sets[0].labels.device
    count = len(training_sets[0].labels)
    orders = torch.stack([torch.randperm(count, generator=each) for each in draws]).to(device, non_blocking=True)
    for indices in orders.split(protocol.batch, dim=1):  # [n, B]
        images = torch.cat([data.batch(rows) for data, rows in zip(training_sets, indices, strict=True)])
        labels = torch.cat([targets(data, rows) for data, rows in zip(training_sets, indices, strict=True)])
        images = _augmented(images, protocol, draws)
        if augmenter is not None:
            parts = zip(images.chunk(len(draws)), labels.chunk(len(draws)), draws, strict=True)
            augmented = [augmenter(*part) for part in parts]
            images, labels = (torch.cat(each) for each in zip(*augmented, strict=True))
        logits = stack(weights, buffers, images.unflatten(0, indices.shape))
        # The sum of the networks' mean losses, so that each network gets the gradient of its own mean loss.
        loss = F.cross_entropy(logits.flatten(0, 1), labels) * len(draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for _ in draws:
            on_batch()


def _augmented(images: Tensor, protocol: EvaluationProtocol, draws: Sequence[torch.Generator]) -> Tensor:
    """Augment images [n * B, ch, ...], B for each network, with the draws that each network would make alone."""
    each = len(images) // len(draws)
    drawn, after = [], []
    for generator in draws:
        drawn.append(augment.sample(protocol.strategy, each, generator, images.shape[2:], one_strategy=True))
        if protocol.dc_strategy:
            after.append(dc_augment.sample(protocol.dc_strategy, each, generator, images.shape[1:]))
    images = augment.apply(images, augment.join(drawn))
    if after:
        parts = zip(images.split(each), after, strict=True)
        images = torch.cat([dc_augment.apply(some, params) for some, params in parts])
    return images
