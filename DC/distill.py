"""Gradient matching with FreD: `python DC/distill.py --help`.

python DC/distill.py                                    the built-in digits, a few minutes on a CPU
sh DC/scripts/run_DC_FreD.sh                            CIFAR-10, ipc 2, as published
The algorithm is in common/objectives/dc.py.
"""

from common.config.command_line import parse
from common.objectives import dc
from common.system.command import run_command


def main() -> None:
    dc.run(*parse(dc.Options, "DC"))


if __name__ == "__main__":
    run_command(main, several=True)
