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
from common.matching import augment, dc_augment
from common.matching.transforms import Augmenter
from common.networks import drawn_in, reinitialise
from common.networks.graphs import Gradients, graphed_forward, graphed_gradients, set_gradients
from common.system.devices import all_to_device, to_device
from common.training.train import (
    EvaluationProtocol,
    TrainingSet,
    are_finite,
    augmenter_of,
    check_augmenter,
    epochs,
    targets,
    test_rows,
)

State = dict[str, Tensor]  # parameters or buffers of n networks by name, each [n, ...]
Stack = Callable[[State, State, Tensor], Tensor]


class Ensemble:
    """Trains and tests several networks of the given network's architecture together.

    compiler: a function such as torch.compile, or None to compile nothing. The training pass is compiled at the first
    training and the testing pass at the first test; later calls reuse both. graphs: whether to capture both as graphs,
    anew for each call, since each has weights of its own.
    """

    def __init__(self, network: nn.Module, compiler: Callable[..., Any] | None = None, graphs: bool = False) -> None:
        self._network, self._compiler, self._graphs = network, compiler, graphs

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
        train(self._training, weights, buffers, training_sets, protocol, draws, on_batch, augmenter, self._graphs)
        forward = self._forward(weights, buffers)
        by_test = [self._tested(forward, weights, buffers, data, on_batch) for data in tests]
        return [list(each) for each in zip(*by_test, strict=True)]

    def _forward(self, weights: State, buffers: State) -> Callable[[Tensor], Tensor]:
        """Images [B, ch, ...] -> logits [n, B, C] of the n networks, in a test."""
        count, tested = len(next(iter(weights.values()))), self._testing

        def forward(images: Tensor) -> Tensor:
            return tested(weights, buffers, images.expand(count, *images.shape))

        return graphed_forward(forward, next(iter(weights.values())).device) if self._graphs else forward

    @torch.no_grad()
    def _tested(
        self,
        forward: Callable[[Tensor], Tensor],
        weights: State,
        buffers: State,
        data: ImageData,
        on_batch: Callable[[], object],
    ) -> list[float | None]:
        """The accuracy of each of the n networks on `data`."""
        count = len(next(iter(weights.values())))
        parts = []
        for rows in test_rows(data):
            parts.append(forward(data.batch(rows)))  # [n, B, C]
            for _ in range(count):
                on_batch()
        logits = torch.cat(parts, dim=1)  # [n, N, C]; what follows is done once, not for each batch
        correct = (logits.argmax(dim=2) == data.labels).sum(dim=1)
        every = [tensor.detach().reshape(count, -1) for tensor in (*weights.values(), *buffers.values(), logits)]
        counts, sound = torch.stack([correct, are_finite(torch.cat(every, dim=1), 1)]).tolist()
        return [each / len(data) if fine else None for each, fine in zip(counts, sound, strict=True)]


def initial(network: nn.Module, seeds: Sequence[int]) -> tuple[State, State]:
    """Weights and buffers, each [n, ...], of n networks that `reinitialise` initialises from the n seeds."""
    device = next(network.parameters()).device
    drawn = network if device.type == "cpu" else drawn_in(network)
    networks = [copy.deepcopy(drawn) for _ in seeds]
    for each, seed in zip(networks, seeds, strict=True):
        reinitialise(each, seed)
    weights, buffers = stack_module_state(networks)
    if device.type == "cpu":
        return weights, buffers
    # All in one copy, and not network by network.
    moved = iter(all_to_device([each.detach() for each in (*weights.values(), *buffers.values())], device))
    return {name: next(moved).requires_grad_() for name in weights}, {name: next(moved) for name in buffers}


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
    graphs: bool = False,
) -> None:
    """Train the stacked networks in place, each as `train.train` would. graphs: capture the steps as graphs.

    Afterwards `weights` holds the weights to test: the final ones or, for a protocol of kind "glad", their average.
    """
    lengths = {len(data.labels) for data in training_sets}
    if len(lengths) != 1:
        raise ValueError(f"networks that are trained together need training sets of one length, not {sorted(lengths)}")
    check_augmenter(protocol, augmenter)
    count = len(draws)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        """The sum of the networks' mean losses, so that each network gets the gradient of its own mean loss."""
        logits = stack(weights, buffers, images.unflatten(0, (count, -1)))
        return F.cross_entropy(logits.flatten(0, 1), labels) * count

    parameters = list(weights.values())
    gradients = graphed_gradients(loss_of, parameters, parameters[0].device) if graphs else None
    for optimizer in epochs(protocol, parameters, list(buffers.values())):
        _train_epoch(loss_of, training_sets, optimizer, protocol, draws, on_batch, augmenter, gradients)


def _train_epoch(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    training_sets: Sequence[TrainingSet],
    optimizer: torch.optim.Optimizer,
    protocol: EvaluationProtocol,
    draws: Sequence[torch.Generator],
    on_batch: Callable[[], object],
    augmenter: Augmenter | None,
    gradients: Gradients | None,
) -> None:
    """Train every network for one epoch, each on its own images in its own order."""
    device = training_sets[0].labels.device
    count = len(training_sets[0].labels)
    orders = to_device(torch.stack([torch.randperm(count, generator=each) for each in draws]), device)
    for indices in orders.split(protocol.batch, dim=1):  # [n, B]
        images, labels = _gathered(training_sets, indices)
        images = _augmented(images, protocol, draws)
        if augmenter is not None:
            parts = zip(images.chunk(len(draws)), labels.chunk(len(draws)), draws, strict=True)
            augmented = [augmenter(*part) for part in parts]
            images, labels = (torch.cat(each) for each in zip(*augmented, strict=True))
        if gradients is None:
            loss = loss_of(images, labels)
            optimizer.zero_grad()
            loss.backward()
        else:
            set_gradients(optimizer, gradients(images, labels))
        optimizer.step()
        for _ in draws:
            on_batch()


def _gathered(training_sets: Sequence[TrainingSet], indices: Tensor) -> tuple[Tensor, Tensor]:
    """Images [n * B, ch, ...] of n training sets at `indices` [n, B], and what the loss compares outputs with."""
    first = training_sets[0]
    if all(data is first for data in training_sets):
        rows = indices.flatten()
        return first.batch(rows), targets(first, rows)
    pairs = list(zip(training_sets, indices, strict=True))
    return torch.cat([data.batch(rows) for data, rows in pairs]), torch.cat([targets(*pair) for pair in pairs])


def _augmented(images: Tensor, protocol: EvaluationProtocol, draws: Sequence[torch.Generator]) -> Tensor:
    """Augment images [n * B, ch, ...], B for each network, with the draws that each network would make alone."""
    each = len(images) // len(draws)
    drawn, after = [], []
    for generator in draws:
        drawn.append(augment.sample(protocol.strategy, each, generator, images.shape[2:], one_strategy=True))
        if protocol.dc_strategy:
            drawing = dc_augment.sample(protocol.dc_strategy, each, generator, images.shape[1:], device=images.device)
            after.append(drawing)
    images = augment.apply(images, augment.join(drawn))
    if after:
        parts = zip(images.split(each), after, strict=True)
        images = torch.cat([dc_augment.apply(some, params) for some, params in parts])
    return images
