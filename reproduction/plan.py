"""Where and how cells are run, and on which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.datasets import PREFIXES
from common.system.errors import InputError
from reproduction.scales import Flags, Scale
from reproduction.standins import stand_in
from reproduction.tables import TABLES, Cell, plain

STANDINS = "standins"


@dataclass(frozen=True)
class Plan:
    """Where and how cells are run: what decides neither their figures nor their folders, scale and images aside."""

    scale: Scale = "full"
    output: str = "runs/reproduce"
    data_path: str | None = None
    buffer_path: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    no_download: bool = False
    track: str = "none"
    nproc: int = 1
    resume: str = "auto"
    images: dict[str, str] = field(default_factory=dict)
    """datasets whose images are taken from elsewhere: CIFAR10 -> folder:PATH"""

    @property
    def root(self) -> Path:
        """Everything of this scale."""
        return Path(self.output) / self.scale

    @property
    def standins(self) -> Path:
        """Images that are made for the scale smoke."""
        return self.root / STANDINS

    def buffers(self, cell: Cell) -> Path:
        """Experts of a cell: those of the full scale serve any run, the others only their own scale."""
        path = Path(self.buffer_path or ("buffers" if self.scale == "full" else self.root / "buffers"))
        return path / "ImageNet-abcde" if "/" in cell.objective else path


@dataclass(frozen=True)
class Images:
    """Which images a cell's dataset stands for: its own, others that the user names, or a stand-in."""

    dataset: str
    flags: Flags
    label: str = ""
    """what they are, where they are not the dataset's own"""


def images_of(cell: Cell, plan: Plan, make: bool = False) -> Images:
    """The images of a cell; stand-ins are made on the disk if `make`."""
    if plan.scale == "smoke":
        found = stand_in(cell.dataset, plan.standins, cell.target is not None, make)
        flags = {"dataset": found.dataset, "data_path": found.data_path}
        if found.image_size is not None:
            flags["image_size"] = str(found.image_size)
        return Images(found.dataset, {key: value for key, value in flags.items() if value}, found.description)
    size = {} if cell.image_size is None else {"image_size": str(cell.image_size)}
    place = {} if plan.data_path is None else {"data_path": plan.data_path}
    other = plan.images.get(cell.dataset)
    if other is None:
        return Images(cell.dataset, {"dataset": cell.dataset, **place, **size})
    return Images(other, {"dataset": other, "recipe": cell.dataset, **place, **size}, f"images of {other}")


def parse_images(words: Sequence[str]) -> dict[str, str]:
    """NAME=folder:PATH ... as a dictionary. Raises InputError for a word of another form."""
    images = {}
    datasets = {plain(cell.dataset): cell.dataset for table in TABLES.values() for cell in table.cells}
    for word in words:
        name, _, place = word.partition("=")
        if plain(name) not in datasets or not place.startswith(tuple(PREFIXES)):
            raise InputError(
                f"--images {word} is not of the form NAME=folder:PATH or NAME=hf:owner/name, with NAME one of "
                f"{', '.join(sorted(datasets.values()))}"
            )
        images[datasets[plain(name)]] = place
    return images
