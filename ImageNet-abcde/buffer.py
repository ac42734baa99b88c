"""Train the experts that TM matches on an ImageNet subset: `python ImageNet-abcde/buffer.py --help`.

IMAGENET=PATH sh ImageNet-abcde/scripts/run_buffer.sh   trains 100 experts for 50 epochs on ImageNet-A at 128 px, as
                                                        published

If the command was stopped, or even killed, the same command trains the experts that are missing. If it is started
twice at the same time, the two processes share the experts between them.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from dataclasses import dataclass

from common import recipes
from common.config.options import BufferOptions
from common.config.places import buffers_of
from common.system.command import run_command
from common.system.scripts import installed

with installed():
    from TM import buffer

DEFAULTS = recipes.defaults("ImageNet-abcde/TM")


@dataclass
class Options(BufferOptions):
    """Train expert networks on an ImageNet subset and keep their weights after every epoch."""

    dataset: str = DEFAULTS["dataset"]
    """imagenet-a to imagenet-e, imagenet-imagenette, imagenet-imagewoof, ... (imagenet-SUBSET), or any other dataset"""
    model: str = DEFAULTS["model"]
    """network that is trained here and later matched"""
    buffer_path: str = buffers_of("ImageNet-abcde/TM")
    """folder for the expert trajectories, which are saved in <dataset>[_zca]/<model>"""


def main() -> None:
    """Run the command line of TM/buffer.py with other defaults."""
    buffer.main(Options, "ImageNet-abcde/TM")


if __name__ == "__main__":
    run_command(main, several=True)
