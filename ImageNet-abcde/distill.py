"""FreD on ImageNet subsets, by any objective: `python ImageNet-abcde/distill.py --objective DM --help`.

The loops are those of DM/distill.py, DC/distill.py and TM/distill.py. What is special here: images of 128 pixels,
deeper networks, and GLaD's evaluation.

IMAGENET=PATH sh ImageNet-abcde/scripts/run_DM_FreD.sh             ImageNet-A, ipc 1, 128 px, as published, for a GPU
IMAGENET=PATH sh ImageNet-abcde/scripts/run_buffer.sh; IMAGENET=PATH sh ImageNet-abcde/scripts/run_TM_FreD.sh
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common import recipes
from common.config.command_line import read_first
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
    """Which objective, the first thing that is read."""

    objective: Literal["DC", "DM", "TM"] = "DM"
    """what real and synthetic images have in common: DC gradients, DM mean features, TM the way networks are led"""


@dataclass
class Defaults(Objective):
    """What has another default here than with the small images."""

    dataset: str = DEFAULTS["dataset"]
    """imagenet-a .. imagenet-e, imagenette, imagewoof, ... (imagenet-<subset>), or any other dataset"""
    model: str = DEFAULTS["model"]
    """network that is matched and evaluated"""
    eval_mode: EvalMode = DEFAULTS["eval_mode"]
    """networks that are tested: M the distillation network, ResNet18, VGG11, AlexNet and ViT (CIFAR: their forms for
    small images), S the distillation network alone, ..."""
    eval_protocol: EvalProtocol = DEFAULTS["eval_protocol"]
    """glad: warm-up, cosine, a step size by architecture (1e-3, VGG11 1e-4), and the moving average of the weights is
    tested; dc: as for the small images"""
    epoch_eval_train: int | None = 1000
    """epochs of training of an evaluation"""
    Iteration: int = 1000
    """updates of the synthetic set (of DC: iterations)"""
    eval_it: int = 100
    """updates between two evaluations (0: only before the first and after the last one)"""


@dataclass
class DC(Defaults, dc.Options):
    """Distil an ImageNet subset by gradient matching (DC) of FreD coefficients."""

    method: Literal["DC", "DSA"] = "DSA"
    """DSA: augment real and synthetic images alike while matching, and images while evaluating"""


@dataclass
class DM(Defaults, dm.Options):
    """Distil an ImageNet subset by distribution matching (DM) of FreD coefficients."""


@dataclass
class TM(Defaults, tm.Options):
    """Distil an ImageNet subset by trajectory matching (TM) of FreD coefficients."""

    buffer_path: str = "buffers/ImageNet-abcde"
    """where ImageNet-abcde/buffer.py left the experts: below it lies <dataset>[_zca]/<model>"""
    Iteration: int = 15000
    """updates of the synthetic set"""
    eval_it: int = 500
    """updates between two evaluations (0: only before the first and after the last update)"""


def main() -> None:
    """The command line of the objective that --objective names, with other defaults."""
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
