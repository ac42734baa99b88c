"""Gradient matching (DC, DSA) with FreD: `python DC/distill.py --help`.

    loss = sum over classes c of distance(g(A_c(s_c)), g(A_c(x_c)))                       s_c = IDCT(coefficients of c)

g is the gradient of a network's weights by the cross-entropy on images of one class, and the distance the sum of
1 - cosine over the rows of each weight (Zhao, Mopuri and Bilen, ICLR 2021). An iteration takes a new network, matches
it, trains it on the synthetic set, matches it again, and so on. With --method DSA, A_c augments real images x and
synthetic images s of a class alike.

python DC/distill.py                     the built-in digits, ipc 1: 87.8 +- 0.0 % (3 networks; 81.7 before the first
                                         update), 4 minutes on one CPU core (results/demos_digits.csv)
sh DC/scripts/run_DC_FreD.sh             CIFAR-10, ipc 2, as published: 1,000 iterations, for a GPU, not yet measured
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from common import recipes
from common.config.checks import check_least
from common.config.command_line import parse
from common.config.options import ClassMatchingOptions, Sources
from common.matching import gradient
from common.matching.gradient import BATCHNORM_IMAGES, freeze_batchnorm
from common.networks import has_batchnorm, reinitialise
from common.runs.loop import Distillation
from common.runs.setup import check_no_dropout
from common.system import parallel
from common.system.command import run_command
from common.system.devices import precision
from common.system.errors import InputError
from common.training.train import Batches, train_epoch

DEFAULTS = recipes.defaults("DC")
# By ipc: updates per iteration, and epochs of the network between two of them (the authors' get_loops).
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


@dataclass
class Options(ClassMatchingOptions):
    """Distil a dataset by gradient matching (DC, DSA) of FreD coefficients."""

    method: Literal["DC", "DSA"] = "DC"
    """DSA: augment real and synthetic images alike while matching, and images while evaluating"""
    dsa: bool = DEFAULTS["dsa"]
    """follows from --method"""
    epoch_eval_train: int | None = DEFAULTS["epoch_eval_train"]
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


def distill(options: Options, sources: Sources, objective: str = "DC") -> None:
    """Distil as the options say. objective: what the run is filed under. Raises as `Distillation`."""
    check_method(options, sources)
    options = by_method(options)
    outer_loop, inner_loop = loops(options)
    with Distillation(options, sources, objective) as run:
        check_no_dropout(options, run.network)
        network = run.network
        chunk = options.chunk or gradient.default_chunk(run.device, compiled=run.compiler is not None)

        # Several processes share the C classes: here are c of them, m real and n synthetic images of each.
        for iteration in run:
            reinitialise(network, run.draws(iteration).seed("network"))
            optimizer = torch.optim.SGD(network.parameters(), lr=options.lr_net)
            for outer in range(outer_loop):
                draws = run.draws(iteration, outer)
                if has_batchnorm(network):  # statistics of real images of all classes, for all classes
                    some = run.sampler.draw(BATCHNORM_IMAGES, draws.generator("batch statistics"))  # [C, 16]
                    freeze_batchnorm(network, run.train.batch(some.flatten()))
                real = run.real(options.batch_real, draws)  # [c * m, ch, H, W], by class, read in slices
                synthetic = run.synthetic(options.batch_syn, draws)  # [c * n, ch, H, W], differentiable
                augmentation = run.augmentation(draws)  # c parameter sets, each for real and synthetic images
                with run.matching(network, draws):  # precision
                    loss, to_images = gradient.match(
                        network,
                        real,
                        synthetic,
                        run.share.count,
                        augmentation,
                        options.dis_metric,
                        chunk,
                        run.compiler,
                        first_label=run.share.first,
                    )
                run.update(synthetic, to_images, loss)  # back through the inverse DCT, one step of the optimiser
                if outer < outer_loop - 1:
                    train_between(run, network, optimizer, draws.generator("inner loop"), inner_loop, options)


def train_between(
    run: Distillation,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    draws: torch.Generator,
    epochs: int,
    options: Options,
) -> None:
    """Train the network on the synthetic set as it is now, in place; of several processes in the first alone."""
    if parallel.is_main():
        batches = Batches(*run.synset.get(need_copy=True))
        with precision(options.precision, run.device):
            for _ in range(epochs):
                train_epoch(network, batches, optimizer, options.batch_train, options.strategy, draws)
    parallel.copy_from_main_([*network.parameters(), *network.buffers()])
    run.check_network(network)


def check_method(options: Options, sources: Sources) -> None:
    """Raises InputError for flags that contradict --method."""
    dsa = options.method == "DSA"
    if sources["dsa"] == "flag" and options.dsa != dsa:
        raise InputError(f"--dsa {options.dsa} contradicts --method {options.method}: give --method alone")
    if sources["dsa_strategy"] == "flag" and not dsa:
        raise InputError("--dsa_strategy is for --method DSA: DC matches without augmentation")


def by_method(options: Options) -> Options:
    """The options with what --method decides."""
    return dataclasses.replace(options, dsa=options.method == "DSA")


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


def main(kind: type[Options] = Options, objective: str = "DC") -> None:
    """The command line; ImageNet-abcde gives a kind of options with other defaults."""
    distill(*parse(kind, objective), objective)


if __name__ == "__main__":
    run_command(main, several=True)
