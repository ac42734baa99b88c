"""FreD on ImageNet subsets, by any objective: `python ImageNet-abcde/distill.py --objective DM --help`.

IMAGENET=PATH sh ImageNet-abcde/scripts/run_DM_FreD.sh             ImageNet-A, ipc 1, 128 px, as published
IMAGENET=PATH sh ImageNet-abcde/scripts/run_buffer.sh; IMAGENET=PATH sh ImageNet-abcde/scripts/run_TM_FreD.sh
The algorithms are in common/objectives/; what is special here are the images and GLaD's evaluation (imagenet_abcde.py).
"""

from __future__ import annotations

from common.config.command_line import parse, read_first
from common.objectives import dc, dm, tm
from common.objectives.imagenet_abcde import DC, DM, TM, Objective
from common.system.command import run_command


def main() -> None:
    chosen = read_first(Objective).objective
    name = f"ImageNet-abcde/{chosen}"
    if chosen == "DC":
        dc.run(*parse(DC, name), name)
    elif chosen == "DM":
        dm.run(*parse(DM, name), name)
    else:
        tm.run(*parse(TM, name), name)


if __name__ == "__main__":
    run_command(main, several=True)
