"""Distribution matching (DM) with FreD: `python DM/distill.py --help`.

    loss = sum over classes c of || mean_i f(A_c(x_ci)) - mean_j f(A_c(s_cj)) ||^2        s_c = IDCT(coefficients of c)

f embeds images with a network whose weights are random, and new for every update; A_c augments real images x and
synthetic images s of a class alike (Zhao and Bilen, WACV 2023; DSA). Only the kept coefficients are learned.

python DM/distill.py                     the built-in digits, ipc 1: 93.5 +- 0.9 % (3 networks; 85.3 before the first
                                         update), a minute on 2 CPU cores (results/selection_digits.csv)
sh DM/scripts/run_DM_FreD.sh             CIFAR-10, ipc 2, as published: 20,000 updates, for a GPU, not yet measured
DATASET=CIFAR10 sh DM/scripts/run_DM_FreD.sh --compile --Iteration 400 --batch_real 128 --epoch_eval_train 300
                                         ipc 1, 27 minutes on one CPU core: 44.7 +- 0.5 % (3; 36.8) with images that
                                         were re-encoded as JPEG of quality 75 (results/dm_ipc1.csv)
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config.checks import refuse_step_size
from common.config.command_line import parse
from common.config.options import ClassMatchingOptions, Sources
from common.matching import distribution
from common.networks import has_batchnorm, reinitialise
from common.runs.loop import Distillation
from common.runs.setup import check_chunk
from common.system.command import run_command


@dataclass
class Options(ClassMatchingOptions):
    """Distil a dataset by distribution matching (DM) of FreD coefficients."""


def distill(options: Options, sources: Sources, objective: str = "DM") -> None:
    """Distil as the options say. objective: what the run is filed under. Raises as `Distillation`."""
    refuse_step_size(options, sources)
    with Distillation(options, sources, objective) as run:
        check_chunk(options, run.network)
        network = run.share_statistics(run.network.requires_grad_(False))
        embed = run.compiled(network.embed)
        chunk = None  # batch statistics run over all classes at once
        if not has_batchnorm(network):
            chunk = options.chunk or distribution.default_chunk(run.device, options.batch_real, run.train.im_size)

        # Several processes share the C classes: here are c of them, m real and n synthetic images of each.
        for iteration in run:
            draws = run.draws(iteration)
            reinitialise(network, draws.seed("network"))
            real = run.real(options.batch_real, draws)  # [c * m, ch, H, W], by class, read in slices
            synthetic = run.synthetic(options.batch_syn, draws)  # [c * n, ch, H, W], differentiable
            augmentation = run.augmentation(draws)  # c parameter sets, each for real and synthetic images
            with run.matching(network, draws):  # precision, seeded dropout
                loss, gradient = distribution.match(embed, real, synthetic, run.share.count, augmentation, chunk)
            run.update(synthetic, gradient, loss)  # back through the inverse DCT, one step of the optimiser


def main(kind: type[Options] = Options, objective: str = "DM") -> None:
    """The command line; 3D-MNIST and ImageNet-abcde give a kind of options with other defaults."""
    distill(*parse(kind, objective), objective)


if __name__ == "__main__":
    run_command(main, several=True)
