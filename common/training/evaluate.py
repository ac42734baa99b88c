"""How good is a synthetic set: train fresh networks on it, test them on real images (the authors' evaluate_synset)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.datasets import ImageData, draw_per_class
from common.networks import has_dropout, reinitialise
from common.system import parallel
from common.system.seeds import derive, generator, seeded
from common.training.ensemble import Ensemble
from common.training.train import Batches, EvaluationProtocol, TrainingSet, accuracy, train

_ALL = 1 << 20


def evaluate(
    network: nn.Module,
    training_sets: Callable[[int], TrainingSet],
    test_data: ImageData,
    protocol: EvaluationProtocol,
    numbers: Sequence[int],
    seed: int,
    point: int = 0,
    forward: Callable[[Tensor], Tensor] | None = None,
    check_stop: Callable[[], None] = lambda: None,
    on_epoch: Callable[[], object] = lambda: None,
    together: int = 1,
    compiler: Callable[..., Any] | None = None,
) -> Iterator[float]:
    """Accuracies of fresh networks, one for each of `numbers`, as each is finished.

    training_sets: network number -> what it is trained on. point: tells evaluations of one run apart (its iteration).
    Network `number` depends on (seed, point, number) alone, so an evaluation may stop and go on, in any order.
    together: networks trained at the same time (`ensemble`), with the same draws as one by one; those with dropout,
    whose draws would differ, are trained one by one. compiler: such as torch.compile, for networks trained together.
    Several processes share the networks: all of them have to ask, and all are given all accuracies.
    """

    def trained(some: Sequence[int]) -> Iterator[float]:
        if not some:
            return
        if together > 1 and not has_dropout(network):
            yield from Ensemble(network, compiler).accuracies(
                [derive(seed, "evaluation network", point, number) for number in some],
                [training_sets(number) for number in some],
                test_data,
                protocol,
                [generator(seed, "evaluation draws", point, number) for number in some],
                check_stop,
                on_epoch,
            )
            return
        for number in some:
            reinitialise(network, derive(seed, "evaluation network", point, number))
            draws = generator(seed, "evaluation draws", point, number)
            with seeded(network, seed, "evaluation dropout", point, number):
                train(network, training_sets(number), protocol, draws, forward, check_stop, on_epoch)
            yield accuracy(network, test_data, forward)

    for some in _rounds(network, len(numbers), together):
        first, last = parallel.share(len(some))
        for accuracies in parallel.gather(list(trained(numbers[some.start + first : some.start + last]))):
            yield from accuracies


def trained_here(network: nn.Module, count: int, together: int) -> int:
    """How many of `count` networks `evaluate` trains in this process."""
    shares = (parallel.share(len(some)) for some in _rounds(network, count, together))
    return sum(last - first for first, last in shares)


def _rounds(network: nn.Module, count: int, together: int) -> Iterator[range]:
    """What of 0 .. count - 1 is trained before the processes tell each other: `together` in each of them."""
    size = parallel.world() * (1 if has_dropout(network) else together)
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def networks_at_once(wanted: int, device: torch.device) -> int:
    """How many networks to train together if `wanted` of them are asked for, 0 for what suits the device.

    A GPU waits for the CPU to start the many small steps of one network, so it takes all at once (not yet
    measured); a CPU loses (5 networks on 160 images of 32 px: 37 s together, 21 s one by one).
    """
    return wanted or (_ALL if device.type == "cuda" else 1)


def random_real(data: ImageData, ipc: int, draws: torch.Generator) -> Batches:
    """The simplest rival at the same budget: ipc real images a class, drawn without replacement."""
    indices = draw_per_class(data, ipc, draws).flatten().to(data.labels.device)
    return Batches(data.batch(indices), data.labels[indices])
