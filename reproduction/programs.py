"""The scripts of each objective. Objectives have the same names as in recipes and run folders."""

from __future__ import annotations

from typing import NamedTuple

from common.config.options import DistillOptions
from common.datasets.voxels import NAME as VOXELS_DATASET
from common.system.scripts import VOXELS, buffer_script, distill_script, load_script
from DC import distill as dc
from DM import distill as dm
from TM import distill as tm

_IMAGENET_ABCDE = load_script("ImageNet-abcde/distill.py")


class Program(NamedTuple):
    """The scripts and options that distil by an objective."""

    script: str
    """path of the distillation script, relative to the root of the repository"""
    flags: tuple[str, ...]
    """flags that choose the objective, if the script has several"""
    options: type[DistillOptions]
    buffer: str | None = None
    """script that trains the experts, if the objective needs any"""


OPTIONS: dict[str, type[DistillOptions]] = {
    "DC": dc.Options,
    "DM": dm.Options,
    "TM": tm.Options,
    "ImageNet-abcde/DC": _IMAGENET_ABCDE.DC,
    "ImageNet-abcde/DM": _IMAGENET_ABCDE.DM,
    "ImageNet-abcde/TM": _IMAGENET_ABCDE.TM,
}


def program(objective: str, dataset: str) -> Program:
    """The program that distils a dataset by an objective. 3D-MNIST has a script of its own."""
    script, *flags = distill_script(objective)
    needs_experts = objective.rpartition("/")[2] == "TM"
    return Program(
        VOXELS if dataset == VOXELS_DATASET else script,
        tuple(flags),
        OPTIONS[objective],
        buffer_script(objective) if needs_experts else None,
    )
