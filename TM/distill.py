"""Trajectory matching with FreD: `python TM/distill.py --help`.

sh TM/scripts/run_buffer.sh; sh TM/scripts/run_TM_FreD.sh              CIFAR-10, ipc 1, as published
DATASET=digits sh TM/scripts/run_buffer.sh; DATASET=digits sh TM/scripts/run_TM_FreD.sh     minutes on a CPU
The algorithm is in common/objectives/tm.py.
"""

from common.config.command_line import parse
from common.objectives import tm
from common.system.command import run_command


def main() -> None:
    tm.run(*parse(tm.Options, "TM"))


if __name__ == "__main__":
    run_command(main, several=True)
