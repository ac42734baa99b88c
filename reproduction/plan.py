"""The plan of a reproduction: where and how cells are run, and on which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.config.places import BUFFERS, buffers_of
from common.datasets import PREFIXES
from common.system.errors import InputError
from reproduction.scales import Flags, Scale
from reproduction.standins import stand_in
from reproduction.tables import TABLES, Cell, plain

STANDINS = "standins"


@dataclass(frozen=True)
class Plan:
    """Where and how cells are run. Only `scale` and `images` change what the results mean."""

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
    seeds: str | None = None
    """distil once with each of these seeds, e.g. "0-4"; None for one set"""
    images: dict[str, str] = field(default_factory=dict)
    """datasets whose images are read from elsewhere, e.g. {"CIFAR10": "folder:PATH"}"""

    @property
    def root(self) -> Path:
        """The folder of everything that belongs to this scale."""
        return Path(self.output) / self.scale

    @property
    def standins(self) -> Path:
        """The folder of the images that stand in for every dataset with `--scale smoke`."""
        return self.root / STANDINS

    def buffers(self, cell: Cell) -> Path:
        """The buffer path of a cell. By default, scales below full keep their experts apart, in their own folder."""
        usual = Path("" if self.scale == "full" else self.root, BUFFERS)
        return Path(buffers_of(cell.objective, self.buffer_path or usual))


@dataclass(frozen=True)
class Images:
    """The images on which a cell is run: those of its dataset, other images that the user names, or stand-ins."""

    dataset: str
    flags: Flags
    label: str = ""
    """what the images are; "" for those of the dataset itself"""


def images_of(cell: Cell, plan: Plan, make: bool = False) -> Images:
    """The images of a cell. make: create stand-in images on the disk if the scale needs them."""
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
    """Parse words such as NAME=folder:PATH into a dictionary. Raises InputError for any other word."""
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
