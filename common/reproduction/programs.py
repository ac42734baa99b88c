"""The scripts behind an objective, by the name that its recipes and run folders have."""

from __future__ import annotations

from typing import NamedTuple

from common.datasets.voxels import NAME as VOXELS
from common.objectives import dc, dm, imagenet_abcde, tm
from common.options import DistillOptions


class Program(NamedTuple):
    """What distils by an objective."""

    script: str
    """relative to the repository's root"""
    flags: tuple[str, ...]
    """what chooses the objective, where the script has several"""
    options: type[DistillOptions]
    buffer: str | None = None
    """script that trains the experts, where the objective needs some"""


PROGRAMS: dict[str, Program] = {
    "DC": Program("DC/distill.py", (), dc.Options),
    "DM": Program("DM/distill.py", (), dm.Options),
    "TM": Program("TM/distill.py", (), tm.Options, "TM/buffer.py"),
    "ImageNet-abcde/DC": Program("ImageNet-abcde/distill.py", ("--objective", "DC"), imagenet_abcde.DC),
    "ImageNet-abcde/DM": Program("ImageNet-abcde/distill.py", ("--objective", "DM"), imagenet_abcde.DM),
    "ImageNet-abcde/TM": Program(
        "ImageNet-abcde/distill.py", ("--objective", "TM"), imagenet_abcde.TM, "ImageNet-abcde/buffer.py"
    ),
}


def program(objective: str, dataset: str) -> Program:
    """What distils a dataset by an objective; voxels have a script of their own."""
    found = PROGRAMS[objective]
    return found._replace(script="3D-MNIST/distill.py") if dataset == VOXELS else found
