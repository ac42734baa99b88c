"""Train the experts whose trajectories TM matches: `python TM/buffer.py --help`.

python TM/buffer.py --num_experts 5 --train_epochs 20   the built-in digits, two minutes on a CPU
sh TM/scripts/run_buffer.sh                             CIFAR-10, 100 experts of 50 epochs, as published

Stopped, even killed, the same command trains the experts that are missing. Started twice, two processes share them.
"""

from common.config.command_line import parse_buffer
from common.config.options import BufferOptions
from common.objectives import buffer
from common.system.command import run_command


def main() -> None:
    buffer.run(parse_buffer(BufferOptions, "TM"))


if __name__ == "__main__":
    run_command(main, several=True)
