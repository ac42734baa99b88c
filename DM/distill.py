"""Distribution matching with FreD: `python DM/distill.py --help`.

python DM/distill.py                                    the built-in digits, a minute on a CPU
sh DM/scripts/run_DM_FreD.sh                            CIFAR-10, ipc 2, as published
The algorithm is in common/objectives/dm.py.
"""

from common.config.command_line import parse
from common.objectives import dm
from common.system.command import run_command


def main() -> None:
    dm.run(*parse(dm.Options, "DM"))


if __name__ == "__main__":
    run_command(main, several=True)
