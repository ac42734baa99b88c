"""FreD on voxels, by distribution matching: `python 3D-MNIST/distill.py --help`.

The loop is that of DM/distill.py. The transform runs along all three axes of the volumes.

sh 3D-MNIST/scripts/run_DM_FreD.sh                      distils at ipc 1 with the published settings
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from dataclasses import dataclass

from common.datasets.voxels import NAME
from common.system.command import run_command
from common.system.scripts import installed

with installed():
    from DM import distill as dm


@dataclass
class Options(dm.Options):
    """Distil 3D-MNIST into FreD coefficients by distribution matching (DM)."""

    dataset: str = NAME
    """3D-MNIST: volumes of 16x16x16 voxels in 10 classes, read from <data_path>/3D-MNIST/full_dataset_vectors.h5"""


def main() -> None:
    """Run the command line of DM/distill.py with 3D-MNIST as the default dataset."""
    dm.main(Options)


if __name__ == "__main__":
    run_command(main, several=True)
