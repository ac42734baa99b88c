"""Several networks trained at the same time, as rows of one set of stacked weights.

Each network has its own training set, order of images and augmentation, so the numbers are those of training it alone,
but for the order in which sums are rounded. The optimiser works element by element, on stacked weights as on others.
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
from common.networks import reinitialise
from common.training import dc_augment
from common.training.train import TEST_BATCH, EvaluationProtocol, TrainingSet, epochs

State = dict[str, Tensor]  # by name, [n, ...]
Stack = Callable[[State, State, Tensor], Tensor]


class Ensemble:
    """Networks like a given one that are trained together, as often as is asked for.

    They are compiled when they are first trained, and first tested, and then never again. compiler: such as
    torch.compile, None to compile nothing.
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
        test_data: ImageData,
        protocol: EvaluationProtocol,
        draws: Sequence[torch.Generator],
        check_stop: Callable[[], None] = lambda: None,
        on_epoch: Callable[[], object] = lambda: None,
    ) -> list[float | None]:
        """Top-1 accuracies of n networks, with the initial weights of the n seeds, each trained on a set of its own.

        A network that diverged has None, as from `train.accuracy`; no number of one network enters those of another.
        training_sets: one per network, all of the same length. draws: a CPU generator per network. check_stop may raise
        between steps; on_epoch is called n times per epoch, once for each network. The device is waited for once, at
        the end. Raises ValueError for training sets of different lengths.
        """
        weights, buffers = initial(self._network, seeds)
        train(self._training, weights, buffers, training_sets, protocol, draws, check_stop, on_epoch)
        correct = torch.zeros(len(seeds), dtype=torch.long, device=test_data.labels.device)
        finite = torch.ones(len(seeds), dtype=torch.bool, device=test_data.labels.device)
        for tensor in (*weights.values(), *buffers.values()):
            finite &= _finite_rows(tensor)
        with torch.no_grad():
            for indices in torch.arange(len(test_data), device=test_data.labels.device).split(TEST_BATCH):
                images = test_data.batch(indices)
                logits = self._testing(weights, buffers, images.expand(len(seeds), *images.shape))  # [n, B, C]
                correct += (logits.argmax(dim=2) == test_data.labels[indices]).sum(dim=1)
                finite &= _finite_rows(logits)
        accuracies, sound = torch.stack([correct.double() / len(test_data), finite.double()]).tolist()
        return [each if fine else None for each, fine in zip(accuracies, sound, strict=True)]


def _finite_rows(tensor: Tensor) -> Tensor:
    """Whether each of the n parts of a tensor [n, ...] is finite throughout: bool [n]."""
    return tensor.detach().isfinite().reshape(len(tensor), -1).all(dim=1)


def initial(network: nn.Module, seeds: Sequence[int]) -> tuple[State, State]:
    """Weights and buffers [n, ...] of n networks, each as `reinitialise` makes it of its seed."""
    networks = [copy.deepcopy(network) for _ in seeds]
    for each, seed in zip(networks, seeds, strict=True):
        reinitialise(each, seed)
    weights, buffers = stack_module_state(networks)
    return weights, buffers


def stacked(network: nn.Module, compiler: Callable[..., Any] | None = None) -> Stack:
    """(weights, buffers, images [n, B, ch, ...]) -> logits [n, B, C], each network on its own images.

    In the network's mode: in training mode batch statistics in `buffers` are updated in place.
    """
    form = copy.deepcopy(network).to("meta")  # the weights come with every call

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
    check_stop: Callable[[], None] = lambda: None,
    on_epoch: Callable[[], object] = lambda: None,
) -> None:
    """Train the stacked networks in place, as `train.train` does each: they end with the weights to test."""
    lengths = {len(data.labels) for data in training_sets}
    if len(lengths) != 1:
        raise ValueError(f"networks that are trained together need training sets of one length, not {sorted(lengths)}")
    for optimizer in epochs(protocol, list(weights.values()), list(buffers.values())):
        _train_epoch(stack, weights, buffers, training_sets, optimizer, protocol, draws, check_stop)
        for _ in training_sets:
            on_epoch()


def _train_epoch(
    stack: Stack,
    weights: State,
    buffers: State,
    training_sets: Sequence[TrainingSet],
    optimizer: torch.optim.Optimizer,
    protocol: EvaluationProtocol,
    draws: Sequence[torch.Generator],
    check_stop: Callable[[], None],
) -> None:
    """Each network sees each of its images once, in batches of its own."""
    device = training_sets[0].labels.device
    count = len(training_sets[0].labels)
    orders = torch.stack([torch.randperm(count, generator=each) for each in draws]).to(device, non_blocking=True)
    for indices in orders.split(protocol.batch, dim=1):  # [n, B]
        check_stop()
        images = torch.cat([data.batch(rows) for data, rows in zip(training_sets, indices, strict=True)])
        labels = torch.cat([data.labels[rows] for data, rows in zip(training_sets, indices, strict=True)])
        images = _augmented(images, protocol, draws)
        logits = stack(weights, buffers, images.unflatten(0, indices.shape))
        # The sum over networks of their mean losses: each network's gradient is that of its own.
        loss = F.cross_entropy(logits.flatten(0, 1), labels) * len(draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _augmented(images: Tensor, protocol: EvaluationProtocol, draws: Sequence[torch.Generator]) -> Tensor:
    """images [n * B, ch, ...], those of each network by its own draws, in the order in which it would draw alone."""
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
