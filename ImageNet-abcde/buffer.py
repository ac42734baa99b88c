"""Train the experts that TM matches on an ImageNet subset: `python ImageNet-abcde/buffer.py --help`.

IMAGENET=PATH sh ImageNet-abcde/scripts/run_buffer.sh   ImageNet-A at 128 px, 100 experts of 50 epochs, as published

Stopped, even killed, the same command trains the experts that are missing. Started twice, two processes share them.
"""

from __future__ import annotations

from dataclasses import dataclass

from common import recipes
from common.config.options import BufferOptions
from common.system.command import run_command
from common.system.scripts import installed

with installed():
    from TM import buffer

DEFAULTS = recipes.defaults("ImageNet-abcde/TM")


@dataclass
class Options(BufferOptions):
    """Train expert networks on an ImageNet subset and keep their weights after every epoch."""

    dataset: str = DEFAULTS["dataset"]
    """imagenet-a .. imagenet-e, imagenette, imagewoof, ... (imagenet-<subset>), or any other dataset"""
    model: str = DEFAULTS["model"]
    """network that is trained, and later matched"""
    buffer_path: str = "buffers/ImageNet-abcde"
    """experts lie below it: <dataset>[_zca]/<model>"""


def main() -> None:
    """The command line of TM/buffer.py with other defaults."""
    buffer.main(Options, "ImageNet-abcde/TM")


if __name__ == "__main__":
    run_command(main, several=True)
