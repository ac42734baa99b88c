"""FreD on ImageNet subsets, by any objective: `python ImageNet-abcde/distill.py --objective DM --help`.

The loops are those of DM/distill.py, DC/distill.py and TM/distill.py. This script differs in its defaults: images of
128 pixels, deeper networks, and the evaluation protocol of GLaD.

IMAGENET=PATH sh ImageNet-abcde/scripts/run_DM_FreD.sh             distils ImageNet-A at ipc 1 and 128 px with the
                                                                   published settings; meant for a GPU
IMAGENET=PATH sh ImageNet-abcde/scripts/run_buffer.sh; IMAGENET=PATH sh ImageNet-abcde/scripts/run_TM_FreD.sh
                                                                   trains experts, then distils by TM
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from dataclasses import dataclass
from typing import Literal

from common import recipes
from common.config.command_line import read_first
from common.config.options import EVALUATION_EPOCHS
from common.config.places import buffers_of
from common.networks.pools import EvalMode, EvalProtocol
from common.system.command import run_command
from common.system.scripts import installed

with installed():
    from DC import distill as dc
    from DM import distill as dm
    from TM import distill as tm

DEFAULTS = recipes.defaults("ImageNet-abcde/DM")


@dataclass
class Objective:
    """The objective. It is read before all other options, because it decides what they are."""

    objective: Literal["DC", "DM", "TM"] = "DM"
    """what is matched between real and synthetic images. DC: gradients; DM: mean features; TM: training trajectories"""


@dataclass
class Defaults(Objective):
    """The options whose defaults differ from those for small images."""

    dataset: str = DEFAULTS["dataset"]
    """imagenet-a to imagenet-e, imagenet-imagenette, imagenet-imagewoof, ... (imagenet-SUBSET), or any other dataset"""
    model: str = DEFAULTS["model"]
    """network that is matched and evaluated"""
    eval_mode: EvalMode = DEFAULTS["eval_mode"]
    """networks that are tested. M: the distillation network, ResNet18, VGG11, AlexNet and ViT; CIFAR: the distillation
    network and the variants of the others for small images; S: the distillation network alone; ..."""
    eval_protocol: EvalProtocol = DEFAULTS["eval_protocol"]
    """glad: the learning rate depends on the architecture (1e-3, for VGG11 1e-4), warms up and falls by a cosine, and
    the moving average of the weights is tested; dc: as for small images"""
    epoch_eval_train: int | None = EVALUATION_EPOCHS
    """epochs for which evaluation networks are trained"""
    Iteration: int = 1000
    """updates of the synthetic set (DC: iterations, of one or more updates each)"""
    eval_it: int = 100
    """updates between two evaluations (0: only before the first and after the last one)"""


@dataclass
class DC(Defaults, dc.Options):
    """Distil an ImageNet subset into FreD coefficients by gradient matching (DC)."""

    method: Literal["DC", "DSA"] = "DSA"
    """DSA: augment real and synthetic images alike while matching, and the training images of evaluation networks;
    DC: match without augmentation"""


@dataclass
class DM(Defaults, dm.Options):
    """Distil an ImageNet subset into FreD coefficients by distribution matching (DM)."""


@dataclass
class TM(Defaults, tm.Options):
    """Distil an ImageNet subset into FreD coefficients by trajectory matching (TM)."""

    buffer_path: str = buffers_of("ImageNet-abcde/TM")
    """folder of the expert trajectories from ImageNet-abcde/buffer.py, which are in <dataset>[_zca]/<model>"""
    Iteration: int = tm.Options.Iteration
    """updates of the synthetic set"""
    eval_it: int = tm.Options.eval_it
    """updates between two evaluations (0: only before the first and after the last update)"""


def main() -> None:
    """Run the command line of the objective that --objective names, with other defaults."""
    chosen = read_first(Objective).objective
    name = f"ImageNet-abcde/{chosen}"
    if chosen == "DC":
        dc.main(DC, name)
    elif chosen == "DM":
        dm.main(DM, name)
    else:
        tm.main(TM, name)


if __name__ == "__main__":
    run_command(main, several=True)
