"""Evaluations: pools of networks trained from scratch on a set and tested on real images.

`train_and_test` does it for one kind of network, `evaluate_pool` for several by name (the authors' evaluate_synset).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

from common.datasets import ImageData
from common.networks import has_dropout, reinitialise
from common.system import parallel
from common.system.devices import Precision
from common.system.devices import precision as computing_in
from common.system.errors import InputError
from common.system.seeds import derive, generator, seeded
from common.training.ensemble import Ensemble
from common.training.train import EvaluationProtocol, TrainingSet, accuracy, train

_ALL = 1 << 20


class EvaluationNetwork:
    """A network that evaluations train again and again from new weights, compiled at most once.

    network: on the device where it is trained; its weights are lost. compile: by torch.compile, when it is first used.
    """

    def __init__(self, network: nn.Module, compile: bool = False) -> None:
        self.network = network
        self.forward = torch.compile(network) if compile else network
        self.ensemble = Ensemble(network, partial(torch.compile, dynamic=False) if compile else None)


def evaluate_pool(
    networks: Mapping[str, EvaluationNetwork],
    training_sets: Callable[[int], TrainingSet],
    test_data: ImageData,
    protocol: EvaluationProtocol,
    num_eval: int,
    seed: int,
    *,
    dataset: str,
    point: int = 0,
    together: int = 0,
    precision: Precision = "fp32",
    finished: Mapping[str, Sequence[float | None]] | None = None,
    check_stop: Callable[[], None] = lambda: None,
    on_accuracy: Callable[[str, float | None], object] = lambda name, accuracy: None,
    lower: str | None = None,
    title: str = "",
    leave: bool = True,
    progress: bool = True,
) -> dict[str, list[float | None]]:
    """Top-1 accuracies (fractions) by network name: `num_eval` networks of each kind are trained and tested.

    A network that diverged, whose weights or outputs are not finite, has None. Raises InputError where all of all kinds
    have: a figure of no network says nothing. lower: what that sentence advises, if not to lower --lr_net.

    training_sets: network number -> what it is trained on, on the device of test_data. protocol: `for_network` fills it
    in for each network on `dataset`. seed, point, check_stop: as for `train_and_test`. together: how many networks of a
    kind are trained at the same time, 0 for what suits the device.
    finished: accuracies of an evaluation that was stopped, which goes on after them. on_accuracy: told (name, accuracy)
    of each further network as it is finished; of networks trained one by one, the weights are still there to be read.
    title: of the progress bar, if not the names of the networks; it shows epochs of all networks, and stays on
    the screen if `leave`.
    Of several processes all have to ask, and all are given everything; the first one shows the bar.
    """
    finished, together = finished or {}, networks_at_once(together, test_data.device)
    accuracies = {name: list(finished.get(name, [])) for name in networks}
    numbers = {name: range(len(accuracies[name]), num_eval) for name in networks}
    protocols = {name: protocol.for_network(dataset, name) for name in networks}
    total = sum(
        trained_here(each.network, len(numbers[name]), together) * protocols[name].epochs_of_training
        for name, each in networks.items()
    )
    bar = tqdm(
        total=total,
        desc=title or None,
        unit="epoch",
        leave=leave,
        dynamic_ncols=True,
        disable=not (progress and parallel.is_main()),
    )
    with bar, computing_in(precision, test_data.device):
        for name, network in networks.items():
            if not title:
                bar.set_description(name)
            for each in train_and_test(
                network,
                training_sets,
                test_data,
                protocols[name],
                numbers[name],
                seed,
                point,
                together,
                check_stop,
                on_epoch=bar.update,
            ):
                accuracies[name].append(each)
                on_accuracy(name, each)
    _check_some_converged(accuracies, protocols, lower)
    return accuracies


def _check_some_converged(
    accuracies: Mapping[str, Sequence[float | None]], protocols: Mapping[str, EvaluationProtocol], lower: str | None
) -> None:
    every = [each for of_kind in accuracies.values() for each in of_kind]
    if any(each is not None for each in every):
        return
    if lower is None:
        rates = ", ".join(dict.fromkeys(f"{protocol.lr:g}" for protocol in protocols.values()))
        lower = f"lower --lr_net ({rates})"
    which = "the network" if len(every) == 1 else f"all {len(every)} networks"
    raise InputError(f"{which} diverged, with weights or outputs that are not finite: {lower}")


def train_and_test(
    network: EvaluationNetwork,
    training_sets: Callable[[int], TrainingSet],
    test_data: ImageData,
    protocol: EvaluationProtocol,
    numbers: Sequence[int],
    seed: int,
    point: int = 0,
    together: int = 1,
    check_stop: Callable[[], None] = lambda: None,
    on_epoch: Callable[[], object] = lambda: None,
) -> Iterator[float | None]:
    """Top-1 accuracies (fractions) of fresh networks, one for each of `numbers`, as each is finished.

    None stands for a network that diverged.

    training_sets: network number -> what it is trained on. point: tells evaluations of one run apart (its iteration).
    Network `number` depends on (seed, point, number) alone, so an evaluation may stop and go on, in any order.
    together: networks trained at the same time (`ensemble`), with the same draws as one by one; those with dropout,
    whose draws would differ, are trained one by one. check_stop may raise between steps.
    Several processes share the networks: all of them have to ask, and all are given all accuracies.
    """

    def trained(some: Sequence[int]) -> Iterator[float | None]:
        if not some:
            return
        if together > 1 and not has_dropout(network.network):
            yield from network.ensemble.accuracies(
                [derive(seed, "evaluation network", point, number) for number in some],
                [training_sets(number) for number in some],
                test_data,
                protocol,
                [generator(seed, "evaluation draws", point, number) for number in some],
                check_stop,
                on_epoch,
            )
            return
        one, forward = network.network, network.forward
        for number in some:
            reinitialise(one, derive(seed, "evaluation network", point, number))
            draws = generator(seed, "evaluation draws", point, number)
            with seeded(one, seed, "evaluation dropout", point, number):
                train(one, training_sets(number), protocol, draws, forward, check_stop, on_epoch)
            yield accuracy(one, test_data, forward)

    for some in _rounds(network.network, len(numbers), together):
        first, last = parallel.share(len(some))
        for accuracies in parallel.gather(list(trained(numbers[some.start + first : some.start + last]))):
            yield from accuracies


def trained_here(network: nn.Module, count: int, together: int) -> int:
    """How many of `count` networks `train_and_test` trains in this process."""
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
