"""Gradient matching (DC, DSA) with FreD: `python DC/distill.py --help`.

    loss = sum over classes c of distance(g(A_c(s_c)), g(A_c(x_c)))                       s_c = IDCT(coefficients of c)

x_c are real images of class c, and s_c are its synthetic images. g(images) is the gradient of the cross-entropy on
these images with respect to a network's weights. The distance is the sum of 1 - cosine over the rows of each weight
(Zhao, Mopuri and Bilen, ICLR 2021). Every iteration starts with a new random network. It then alternates between
updating the synthetic set and training the network on this set. A_c augments with --method DSA alone.

python DC/distill.py                     distils the built-in digits at ipc 1 in 4 minutes on one CPU core. Accuracy:
                                         87.8 +- 0.0 % over 3 networks, 81.7 % before the first update
                                         (results/demos_digits.csv)
sh DC/scripts/run_DC_FreD.sh             distils CIFAR-10 at ipc 2 with the published settings: 1,000 iterations. It is
                                         meant for a GPU and has not been measured yet
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from common import recipes
from common.config.command_line import parse
from common.config.loops import loops
from common.config.options import ClassMatchingOptions, Sources
from common.matching import gradient
from common.matching.gradient import BATCHNORM_IMAGES, freeze_batchnorm
from common.networks import has_batchnorm, reinitialise
from common.preview.command import distill_command
from common.runs.loop import Distillation
from common.runs.setup import check_no_dropout
from common.system import parallel
from common.system.command import run_command
from common.system.devices import precision, total_memory
from common.system.errors import InputError
from common.training.train import Batches, train_epoch

DEFAULTS = recipes.defaults("DC")


@dataclass
class Options(ClassMatchingOptions):
    """Distil a dataset into FreD coefficients by gradient matching (DC, DSA)."""

    method: Literal["DC", "DSA"] = "DC"
    """DSA: augment real and synthetic images alike while matching, and the training images of evaluation networks;
    DC: match without augmentation"""
    dsa: bool = DEFAULTS["dsa"]
    """set by --method: True for DSA, False for DC"""
    epoch_eval_train: int | None = DEFAULTS["epoch_eval_train"]
    """epochs for which evaluation networks are trained; one more is run, and the learning rate falls to a tenth halfway
    (default: 1000 if the images are augmented, by DSA or as DC does for MNIST and ConvNetBN, otherwise 300)"""
    dis_metric: Literal["ours", "mse", "cos"] = "ours"
    """distance between two gradients. ours: sum of 1 - cosine over the rows of each weight, as in the paper; mse:
    squared difference; cos: 1 - cosine of the whole gradients"""
    Iteration: int = 1000
    """iterations, each with a new network and outer_loop updates of the synthetic set"""
    eval_it: int = 500
    """iterations between two evaluations (0: only before the first and after the last one)"""
    outer_loop: int = 0
    """updates per iteration (0: the authors' number for this ipc)"""
    inner_loop: int = 0
    """epochs for which the network is trained on the synthetic set between two updates (0: the authors' number for this
    ipc)"""


def distill(options: Options, sources: Sources, objective: str = "DC") -> Distillation:
    """Distil as the options say. Returns the finished run; raises the errors of `Distillation`."""
    check_method(options, sources)
    options = by_method(options)
    outer_loop, inner_loop = loops(options)
    with Distillation(options, sources, objective) as run:
        check_no_dropout(options, run.network)
        network = run.network
        chunk = options.chunk or gradient.default_chunk(
            run.device, options.batch_real, run.compiler is not None, run.train.im_size, total_memory(run.device)
        )

        # Several processes divide the C classes among them. This process has c classes, with m real and n synthetic
        # images of each; an image has ch channels, height H and width W.
        for iteration in run:
            reinitialise(network, run.draws(iteration).seed("network"))
            optimizer = torch.optim.SGD(network.parameters(), lr=options.lr_net)
            for outer in range(outer_loop):
                draws = run.draws(iteration, outer)
                if has_batchnorm(network):  # every class is matched with the statistics of all classes
                    some = run.sampler.draw(BATCHNORM_IMAGES, draws.generator("batch statistics"))  # [C, 16]
                    freeze_batchnorm(network, run.train.batch(some.flatten()))
                real = run.real(options.batch_real, draws)  # [c * m, ch, H, W], by class, made slice by slice
                synthetic = run.synthetic(options.batch_syn, draws)  # [c * n, ch, H, W], differentiable
                augmentation = run.augmentation(draws)  # one set of parameters per class, for real and synthetic images
                with run.matching(network, draws):  # sets the precision
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
                run.update(synthetic, to_images, loss)  # back through the inverse DCT, then one optimiser step
                if outer < outer_loop - 1:
                    train_between(run, network, optimizer, draws.generator("inner loop"), inner_loop, options)
    return run


def train_between(
    run: Distillation,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    draws: torch.Generator,
    epochs: int,
    options: Options,
) -> None:
    """Train the network in place on the current synthetic set. Only rank 0 trains; the other ranks copy its network."""
    if parallel.is_main():
        batches = Batches(*run.synset.get(need_copy=True))
        with precision(options.precision, run.device):
            for _ in range(epochs):
                train_epoch(network, batches, optimizer, options.batch_train, options.strategy, draws)
    parallel.copy_from_main_([*network.parameters(), *network.buffers()])
    run.check_network(network)


def check_method(options: Options, sources: Sources) -> None:
    """Raises InputError if --dsa or --dsa_strategy contradicts --method."""
    dsa = options.method == "DSA"
    if sources["dsa"] == "flag" and options.dsa != dsa:
        raise InputError(f"--dsa {options.dsa} contradicts --method {options.method}: give --method alone")
    if sources["dsa_strategy"] == "flag" and not dsa:
        raise InputError("--dsa_strategy is for --method DSA: DC matches without augmentation")


def by_method(options: Options) -> Options:
    """A copy of the options in which `dsa` follows from `method`."""
    return dataclasses.replace(options, dsa=options.method == "DSA")


def main(kind: type[Options] = Options, objective: str = "DC") -> None:
    """Run the command line. The script in ImageNet-abcde/ gives `kind` other defaults."""
    distill_command(distill, *parse(kind, objective), objective)


if __name__ == "__main__":
    run_command(main, several=True)
