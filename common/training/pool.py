"""Trains pools of evaluation networks from scratch on a set and tests them on real images.

`train_and_test` handles one architecture; `evaluate_pool` handles several by name (the authors' evaluate_synset).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from common.datasets import ImageData
from common.matching.transforms import check_augmentation
from common.networks import has_dropout, reinitialise
from common.networks.graphs import graphed_forward
from common.system import parallel, start
from common.system.devices import Precision
from common.system.devices import precision as computing_in
from common.system.errors import InputError
from common.system.progress import Progress
from common.system.seeds import derive, generator, seeded
from common.training.ensemble import Ensemble
from common.training.train import (
    EvaluationProtocol,
    TrainingSet,
    accuracy,
    augmenter_of,
    batches_of_test,
    gradients_of,
    train,
)

_ALL = 1 << 20  # more networks than any evaluation trains


class EvaluationNetwork:
    """A network that evaluations train repeatedly from new initial weights, compiled at most once.

    network: the network, on the device where it is trained; its weights are overwritten. compile: whether to use
    torch.compile, which compiles at the first use. graphs: whether to capture steps and tests as CUDA graphs, for each
    evaluation anew: they take the memory of a step and a test as long as they are kept.
    """

    def __init__(self, network: nn.Module, compile: bool = False, graphs: bool = False) -> None:
        self.network = network
        self.forward = torch.compile(network) if compile else network
        self.graphs = graphs and not has_dropout(network)
        self.ensemble = Ensemble(network, partial(torch.compile, dynamic=False) if compile else None, self.graphs)


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
    validation: ImageData | None = None,
    on_validation: Callable[[str, float | None], object] = lambda name, accuracy: None,
    check_stop: Callable[[], None] = lambda: None,
    on_accuracy: Callable[[str, float | None], object] = lambda name, accuracy: None,
    lower: Callable[[], str] | None = None,
    title: str = "",
    leave: bool = True,
    progress: bool = True,
) -> dict[str, list[float | None]]:
    """Train and test `num_eval` networks of each architecture; return top-1 accuracies (fractions) by network name.

    A network that diverged, whose weights or outputs are not finite, has None. Raises InputError if all networks of all
    architectures diverge. lower: asked what that sentence advises, if not to lower --lr_net.

    training_sets: a function from a network's number to its training set, on the device of test_data. protocol:
    completed for each network on `dataset` by `for_network`. seed, point: as for `train_and_test`. check_stop: called
    after every batch of training and testing; it may raise.
    together: how many networks of one architecture are trained at the same time, 0 for the number that suits the
    device. finished: accuracies from an interrupted evaluation; those networks are not trained again.
    on_accuracy: called with (name, accuracy) as each further network is finished. If networks are trained one by one,
    the network still holds its trained weights during this call. validation: further images to test every network on;
    on_validation is called with (name, accuracy on them) before on_accuracy.
    title: title of the progress bar, which counts the batches of training and testing of all networks; if
    empty, the bar shows the name of the
    current network. leave: whether the bar stays on the screen.
    With several processes, all of them must call this function, and each gets all accuracies. Only the first process
    shows the bar.
    """
    check_augmentation(protocol.augmentation, test_data)
    finished, together = finished or {}, networks_at_once(together, test_data.device)
    accuracies = {name: list(finished.get(name, [])) for name in networks}
    numbers = {name: range(len(accuracies[name]), num_eval) for name in networks}
    protocols = {name: protocol.for_network(dataset, name) for name in networks}
    # Training sets of one evaluation are of equal length.
    images = next((len(training_sets(each[0]).labels) for each in numbers.values() if each), 0)
    tests = [test_data] if validation is None else [test_data, validation]
    testing = sum(batches_of_test(len(each), each.im_size) for each in tests)
    total = sum(
        trained_here(each.network, len(numbers[name]), together) * (protocols[name].batches(images) + testing)
        for name, each in networks.items()
    )
    bar = Progress(
        total=total,
        desc=title or None,
        unit="batch",
        leave=leave,
        disable=not (progress and parallel.is_main()),
    )

    def after_batch() -> None:
        bar.update()
        check_stop()

    start.give_back_memory()
    with bar, computing_in(precision, test_data.device):
        for name, network in networks.items():
            if not title:
                bar.set_description(name)
            for each, *held in train_and_test(
                network,
                training_sets,
                tests,
                protocols[name],
                numbers[name],
                seed,
                point,
                together,
                on_batch=after_batch,
            ):
                accuracies[name].append(each)
                for other in held:
                    on_validation(name, other)
                on_accuracy(name, each)
    start.give_back_memory()
    _check_some_converged(accuracies, protocols, lower)
    return accuracies


def _check_some_converged(
    accuracies: Mapping[str, Sequence[float | None]],
    protocols: Mapping[str, EvaluationProtocol],
    lower: Callable[[], str] | None,
) -> None:
    every = [each for of_kind in accuracies.values() for each in of_kind]
    if any(each is not None for each in every):
        return
    rates = ", ".join(dict.fromkeys(f"{protocol.lr:g}" for protocol in protocols.values()))
    advice = f"lower --lr_net ({rates})" if lower is None else lower()
    which = "the network" if len(every) == 1 else f"all {len(every)} networks"
    raise InputError(f"{which} diverged, with weights or outputs that are not finite: {advice}")


def train_and_test(
    network: EvaluationNetwork,
    training_sets: Callable[[int], TrainingSet],
    tests: Sequence[ImageData],
    protocol: EvaluationProtocol,
    numbers: Sequence[int],
    seed: int,
    point: int = 0,
    together: int = 1,
    on_batch: Callable[[], object] = lambda: None,
) -> Iterator[list[float | None]]:
    """Train a new network for each of `numbers` and yield its top-1 accuracies (fractions) when it is finished.

    There is one for each of `tests`, the images to test on. It is None if the network diverged.

    training_sets: a function from a network's number to its training set. point: distinguishes the evaluations of one
    run (the iteration of the run). The random draws of network `number` depend on (seed, point, number) alone, so an
    evaluation can be interrupted and resumed, and the networks can be trained in any order.
    together: how many networks are trained at the same time (`ensemble`), with the same draws as one by one. Networks
    with dropout are always trained one by one, because their draws would differ. on_batch is called after every batch
    of training and testing, for each network, and may raise.
    With several processes, the networks are shared out among them. All processes must call this function, and each gets
    all accuracies.
    """

    def trained(some: Sequence[int]) -> Iterator[list[float | None]]:
        if not some:
            return
        # To an accelerator one network in an ensemble would only be more operations.
        alone = len(some) == 1 and tests[0].device.type != "cpu"
        if together > 1 and not alone and not has_dropout(network.network):
            yield from network.ensemble.accuracies(
                [derive(seed, "evaluation network", point, number) for number in some],
                [training_sets(number) for number in some],
                tests,
                protocol,
                [generator(seed, "evaluation draws", point, number) for number in some],
                on_batch,
            )
            return
        one, forward, augmenter = network.network, network.forward, augmenter_of(protocol, tests[0])
        device = tests[0].device
        gradients = gradients_of(one, forward, device) if network.graphs else None
        tested = graphed_forward(forward, device) if network.graphs else forward
        for number in some:
            reinitialise(one, derive(seed, "evaluation network", point, number))
            draws = generator(seed, "evaluation draws", point, number)
            with seeded(one, seed, "evaluation dropout", point, number):
                train(one, training_sets(number), protocol, draws, forward, on_batch, augmenter, gradients)
            start.give_back_memory()
            yield [accuracy(one, each, tested, on_batch) for each in tests]

    for some in _rounds(network.network, len(numbers), together):
        first, last = parallel.share(len(some))
        for accuracies in parallel.gather(list(trained(numbers[some.start + first : some.start + last]))):
            yield from accuracies


def trained_here(network: nn.Module, count: int, together: int) -> int:
    """The number of networks out of `count` that `train_and_test` trains in this process."""
    shares = (parallel.share(len(some)) for some in _rounds(network, count, together))
    return sum(last - first for first, last in shares)


def _rounds(network: nn.Module, count: int, together: int) -> Iterator[range]:
    """Split 0 .. count - 1 into rounds of up to `together` networks per process (one, if they have dropout).

    After each round the processes exchange their accuracies.
    """
    size = parallel.world() * (1 if has_dropout(network) else together)
    for begin in range(0, count, size):
        yield range(begin, min(begin + size, count))


def networks_at_once(wanted: int, device: torch.device) -> int:
    """How many networks to train together: `wanted`, or the number that suits the device if `wanted` is 0.

    An accelerator trains all networks at once, because with one network it waits for the CPU to launch many small
    steps (not yet measured). A CPU trains one by one, because training together is slower (5 networks on 160 images of
    32 px: 37 s together, 21 s one by one).
    """
    return wanted or (1 if device.type == "cpu" else _ALL)
