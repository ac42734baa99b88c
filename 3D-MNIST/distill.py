"""FreD on voxels, by distribution matching: `python 3D-MNIST/distill.py --help`.

The loop is that of DM/distill.py: the transform takes as many axes as the images have.

sh 3D-MNIST/scripts/run_DM_FreD.sh                      ipc 1 as published
"""

from __future__ import annotations

from dataclasses import dataclass

from common.datasets.voxels import NAME
from common.system.command import run_command
from common.system.scripts import installed

with installed():
    from DM import distill as dm


@dataclass
class Options(dm.Options):
    """Distil 3D-MNIST by distribution matching (DM) of FreD coefficients."""

    dataset: str = NAME
    """3D-MNIST: full_dataset_vectors.h5 in <data_path>/3D-MNIST, 16x16x16 voxels in 10 classes"""


def main() -> None:
    """The command line of DM with another default."""
    dm.main(Options)


if __name__ == "__main__":
    run_command(main, several=True)
