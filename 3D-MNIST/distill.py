"""FreD on voxels, by distribution matching: `python 3D-MNIST/distill.py --help`.

sh 3D-MNIST/scripts/run_DM_FreD.sh                      ipc 1 as published
The algorithm is in common/objectives/dm.py; the transform takes as many axes as the images have.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.config.command_line import parse
from common.objectives import dm
from common.system.command import run_command


@dataclass
class Options(dm.Options):
    """Distil 3D-MNIST by distribution matching (DM) of FreD coefficients."""

    dataset: str = "3D-MNIST"
    """3D-MNIST: full_dataset_vectors.h5 in <data_path>/3D-MNIST, 16x16x16 voxels in 10 classes"""


def main() -> None:
    dm.run(*parse(Options, "DM"), "DM")


if __name__ == "__main__":
    run_command(main, several=True)
