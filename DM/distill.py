r"""Distribution matching (DM) with FreD: `python DM/distill.py --help`.

    loss = sum over classes c of || mean_i f(A_c(x_ci)) - mean_j f(A_c(s_cj)) ||^2        s_c = IDCT(coefficients of c)

x_ci are real images of class c, and s_cj are its synthetic images. f embeds images with a network whose random weights
are drawn again for every update. A_c augments the real and the synthetic images of class c with the same parameters
(Zhao and Bilen, WACV 2023; DSA). Only the kept coefficients are learned.

python DM/distill.py                     distils the built-in digits at ipc 1 in a minute on 2 CPU cores. Accuracy:
                                         93.5 +- 0.9 % over 3 networks, 85.3 % before the first update
                                         (results/selection_digits.csv)
sh DM/scripts/run_DM_FreD.sh             distils CIFAR-10 at ipc 2 with the published settings: 20,000 updates. It is
                                         meant for a GPU and has not been measured yet
DATASET=CIFAR10 sh DM/scripts/run_DM_FreD.sh --compile --Iteration 400 --batch_real 128 --epoch_eval_train 300 \
  --eval_it 0 --num_eval 3               took 27 minutes on one CPU core at ipc 1. Accuracy: 44.7 +- 0.5 % over 3
                                         networks, 36.8 % before the first update. The images had been re-encoded as
                                         JPEG of quality 75 (results/dm_ipc1.csv)
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from dataclasses import dataclass

from common.config.checks import refuse_step_size
from common.config.command_line import parse
from common.config.options import ClassMatchingOptions, Sources
from common.matching import distribution
from common.networks import has_batchnorm, reinitialise
from common.preview.command import distill_command
from common.runs.loop import Distillation
from common.runs.setup import check_chunk
from common.system.command import run_command


@dataclass
class Options(ClassMatchingOptions):
    """Distil a dataset into FreD coefficients by distribution matching (DM)."""


def distill(options: Options, sources: Sources, objective: str = "DM") -> Distillation:
    """Distil as the options say. Returns the finished run; raises the errors of `Distillation`."""
    refuse_step_size(options, sources)
    with Distillation(options, sources, objective) as run:
        check_chunk(options, run.network)
        network = run.share_statistics(run.network.requires_grad_(False))
        embed = run.compiled(network.embed)
        chunk = None  # BatchNorm needs the images of all classes in one pass
        if not has_batchnorm(network):
            chunk = options.chunk or distribution.default_chunk(run.device, options.batch_real, run.train.im_size)

        # Several processes divide the C classes among them. This process has c classes, with m real and n synthetic
        # images of each; an image has ch channels, height H and width W.
        for iteration in run:
            draws = run.draws(iteration)
            reinitialise(network, draws.seed("network"))
            real = run.real(options.batch_real, draws)  # [c * m, ch, H, W], by class, made slice by slice
            synthetic = run.synthetic(options.batch_syn, draws)  # [c * n, ch, H, W], differentiable
            augmentation = run.augmentation(draws)  # one set of parameters per class, for real and synthetic images
            with run.matching(network, draws):  # sets the precision and seeds the dropout
                loss, gradient = distribution.match(embed, real, synthetic, run.share.count, augmentation, chunk)
            run.update(synthetic, gradient, loss)  # back through the inverse DCT, then one optimiser step
    return run


def main(kind: type[Options] = Options, objective: str = "DM") -> None:
    """Run the command line. The scripts in 3D-MNIST/ and ImageNet-abcde/ give `kind` other defaults."""
    distill_command(distill, *parse(kind, objective), objective)


if __name__ == "__main__":
    run_command(main, several=True)
