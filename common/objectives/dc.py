"""Gradient matching (DC, DSA): real and synthetic images of a class give a network's weights the same gradient."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.config.checks import check_least
from common.config.options import ClassMatchingOptions, Sources
from common.datasets import ClassSampler, Gathered
from common.matching import augment
from common.matching.gradient import freeze_batchnorm, match
from common.networks import has_batchnorm, reinitialise
from common.runs.loop import distill
from common.runs.setup import prepare
from common.runs.sharding import ClassShare
from common.system import parallel
from common.system.devices import precision
from common.system.errors import InputError
from common.system.seeds import derive, generator
from common.training.train import Batches, train_epoch

# By ipc: updates of an iteration, and epochs of the network between two of them (the authors' get_loops).
LOOPS = {
    1: (1, 1),
    2: (1, 1),
    10: (10, 50),
    11: (10, 50),
    20: (20, 25),
    30: (30, 20),
    40: (40, 15),
    50: (50, 10),
    51: (50, 10),
}
BATCHNORM_IMAGES = 16  # a class, whose statistics the network is matched with


@dataclass
class Options(ClassMatchingOptions):
    """Distil a dataset by gradient matching (DC, DSA) of FreD coefficients."""

    method: Literal["DC", "DSA"] = "DC"
    """DSA: augment real and synthetic images alike while matching, and images while evaluating"""
    dsa: bool = False
    """follows from --method"""
    epoch_eval_train: int | None = None
    """epochs of training of an evaluation; one more is run, and the step size falls to a tenth halfway
    (default: 1000 where images are augmented, by DSA or as DC does for MNIST and ConvNetBN, else 300)"""
    dis_metric: Literal["ours", "mse", "cos"] = "ours"
    """distance of gradients: cosine by rows of each weight (the paper's), squared difference, cosine of the whole"""
    Iteration: int = 1000
    """iterations, each with a new network and outer_loop updates of the synthetic set"""
    eval_it: int = 500
    """iterations between two evaluations (0: only before the first and after the last one)"""
    outer_loop: int = 0
    """updates per iteration (0: the authors' number for this ipc)"""
    inner_loop: int = 0
    """epochs of the network on the synthetic set between two updates (0: the authors' number for this ipc)"""


def run(options: Options, sources: Sources, objective: str = "DC") -> None:
    """Distil as the options say. objective: what the run is filed under."""
    options = by_method(options, sources)
    outer_loop, inner_loop = loops(options)
    setting = prepare(options, sources, objective)
    setting.check_no_dropout()
    train, synset, device = setting.train, setting.synset, setting.device
    classes, seed = train.num_classes, options.seed
    network = setting.network()
    chunk = options.chunk or default_chunk(device, setting.compile)
    real_sampler = ClassSampler(train)
    synthetic_images = setting.synthetic_images(options.batch_syn)
    mine = ClassShare.of(classes)

    def step(iteration: int) -> Tensor:
        reinitialise(network, derive(seed, "network", iteration))
        optimizer = torch.optim.SGD(network.parameters(), lr=options.lr_net)
        losses = []
        for outer in range(outer_loop):
            losses.append(update(iteration, outer))
            if outer < outer_loop - 1:
                if parallel.is_main():
                    batches = Batches(*synset.get(need_copy=True))
                    draws = generator(seed, "inner loop", iteration, outer)
                    with precision(options.precision, device):
                        for _ in range(inner_loop):
                            train_epoch(network, batches, optimizer, options.batch_train, options.strategy, draws)
                parallel.copy_from_main_([*network.parameters(), *network.buffers()])
        return torch.stack(losses).mean()

    def update(iteration: int, outer: int) -> Tensor:
        if has_batchnorm(network):
            some = real_sampler.draw(BATCHNORM_IMAGES, generator(seed, "batch statistics", iteration, outer))
            freeze_batchnorm(network, train.batch(some.flatten()))
        drawn = real_sampler.draw(options.batch_real, generator(seed, "real", iteration, outer))
        images = synthetic_images(generator(seed, "synthetic", iteration, outer))
        augmentation = augment.sample(
            options.strategy, classes, generator(seed, "augmentation", iteration, outer), train.im_size, device=device
        )

        def matched(synthetic: Tensor) -> tuple[Tensor, Tensor]:
            return match(
                network,
                Gathered(train, drawn[mine.rows].flatten()),
                synthetic,
                mine.count,
                augmentation[mine.rows],
                options.dis_metric,
                chunk,
                setting.compiler,
                mine.first,
            )

        with precision(options.precision, device):
            loss, gradient = mine.match(images, matched)
        return mine.update(synset, images, loss, gradient)

    distill(setting, step)


def default_chunk(device: torch.device, compiled: bool) -> int | None:
    """Images per pass; None: class by class.

    Measured on a CPU: small pieces stay in the cache (32: a quarter faster than whole classes), unless compiled.
    """
    return 32 if device.type == "cpu" and not compiled else None


def by_method(options: Options, sources: Sources) -> Options:
    """What --method decides. Raises InputError for flags that contradict it."""
    dsa = options.method == "DSA"
    if sources["dsa"] == "flag" and options.dsa != dsa:
        raise InputError(f"--dsa {options.dsa} contradicts --method {options.method}: give --method alone")
    if sources["dsa_strategy"] == "flag" and not dsa:
        raise InputError("--dsa_strategy is for --method DSA: DC matches without augmentation")
    return dataclasses.replace(options, dsa=dsa)


def loops(options: Options) -> tuple[int, int]:
    """(outer, inner) loop of --outer_loop and --inner_loop, or the authors' for this ipc. Raises InputError."""
    for key in ("outer_loop", "inner_loop"):
        check_least(options, key, 0)
    if options.ipc not in LOOPS and not (options.outer_loop and options.inner_loop):
        known = ", ".join(map(str, LOOPS))
        raise InputError(
            f"DC has loops for ipc {known}, not {options.ipc}: give --outer_loop and --inner_loop, "
            "the updates per iteration and the epochs of the network between them"
        )
    outer, inner = LOOPS.get(options.ipc, (0, 0))
    return options.outer_loop or outer, options.inner_loop or inner
