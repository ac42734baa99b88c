"""Make a synthetic-set file of images that others made: `python -m common.pretrained import PATH --dataset NAME`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from common.config.options import DataOptions, ImageSize, NoDownload
from common.datasets import ImageData
from common.disk.paths import expanded
from common.images.image_data import content_of, same_classes
from common.images.pixel_values import PIXELS
from common.images.pixels import ResizeMode
from common.pretrained.convert import Provenance, from_authors
from common.pretrained.found import Found, read_folder, read_tensors
from common.report.description import describe_files
from common.synset import hub
from common.synset.authors import AuthorsSet, checked_set
from common.synset.file import save_synset
from common.system.errors import InputError
from common.system.text import counted, shortened
from common.terminal.next_step import to_show


@dataclass
class Import(Provenance):
    """Make a synthetic-set file of images that others made, which evaluate.py takes. Their pixels stay as they are.

    The set counts the bytes of the files as they are on the disk. Its classes are those of the dataset, matched by the
    letters and digits of their names, each with as many images as the others.
    """

    file: Annotated[str, tyro.conf.Positional] = field(kw_only=True)
    """a folder of PATH/CLASS/FILE (or PATH/train/CLASS/FILE) in PNG, JPEG, WebP, ..., or a .npz or .pt with
    images and labels, as export writes them"""
    output: str = field(kw_only=True)
    """the .safetensors file to write"""
    objective: str | None = "DM"
    """objective whose recipe says how networks are trained: DM, DC, TM, ImageNet-abcde/TM and so on"""
    ipc: Annotated[int | None, tyro.conf.Suppress] = None
    data_path: str | None = None
    """folder where datasets are stored or downloaded; for imagenet-SUBSET, the folder with train/ and val/
    (default: data; for imagenet-SUBSET, $IMAGENET if set)"""
    no_download: NoDownload = False
    image_size: ImageSize = None
    """side to which the dataset's images are resized, in pixels
    (default: 128 for imagenet-SUBSET; the others are not resized)"""
    resize: ResizeMode = DataOptions.resize
    """crop or squash the dataset's images, see distill.py --help"""
    antialias: bool = DataOptions.antialias
    """antialias the dataset's images when downscaling"""

    def run(self) -> None:
        """Import. Raises InputError for images that cannot be a set of the dataset, and for files that are damaged."""
        if not self.output.endswith(hub.SUFFIX):
            raise InputError(f"--output {self.output} is to be a {hub.SUFFIX} file")
        if self.dataset is None:
            raise InputError("images alone do not say which dataset they stand for: give --dataset")
        data = DataOptions(
            dataset=self.dataset,
            subset=self.subset,
            data_path=self.data_path,
            no_download=self.no_download,
            image_size=self.image_size,
            resize=self.resize,
            antialias=self.antialias,
            zca=self.zca,
        )
        train, test = data.load()
        path = expanded(self.file)
        found = read_folder(path, train, self.pixels) if path.is_dir() else read_tensors(path, self.pixels)
        synset, metadata = from_authors(
            as_set_of(train, found, path), dataclasses.replace(self, pixels="normalised"), as_pixels=True
        )
        del metadata["source"]  # it is that of the authors' files, and of guesses what they hold
        whitening = train.whitening
        metadata |= {
            "mean": None if whitening else list(train.mean),
            "std": None if whitening else list(train.std),
            "zca": None if whitening is None else whitening.as_metadata(),
            "class_names": list(train.class_names),
            "content": content_of(train, test),
            **{key: getattr(data, key) for key in ("image_size", "resize", "antialias")},
            "files": {
                "kind": found.kind,
                "name": path.name,
                "bytes": found.bytes,
                "bits_per_class": -(-8 * found.bytes // train.num_classes),
            },
        }
        save_synset(synset, Path(self.output), metadata)
        of_each = f"{synset.num_classes} classes of {counted(synset.num_per_class, 'image')}"
        print(f"{of_each} {describe_files(metadata['files'])}")
        lacks_lr = "lr" not in (metadata["evaluation"] or {})
        unknown = "; unknown in it: step size of the networks (--lr_net)" if lacks_lr else ""
        print(f"{self.output} written{unknown}\n{to_show(self.output)}")


def as_set_of(train: ImageData, found: Found, path: Path) -> AuthorsSet:
    """The images, normalised or whitened as `train` is, with the numbers of its classes.

    Raises InputError for other classes, sizes or channels than those of `train`, for classes of unequal size, and for
    numbers that are not what they are said to be.
    """
    labels = _labels(train, found, path)
    shape = (train.channels, *train.im_size)
    if tuple(found.images.shape[1:]) != shape:
        raise InputError(
            f"{path} has images of the shape {tuple(found.images.shape[1:])}, and those of {train.name} are {shape}: "
            "resize them, or give the --dataset that they stand for"
        )
    result = checked_set(_normalised(train, found, path), labels, "pair", None, (path,), None, None)
    if result.num_classes != train.num_classes:
        raise InputError(
            f"{path} has {result.num_classes} classes, and {train.name} has {train.num_classes}: "
            "give images of every class, or the --dataset that they stand for"
        )
    return result


def _labels(train: ImageData, found: Found, path: Path) -> Tensor:
    if found.class_names is None:
        return found.labels
    same = same_classes(found.class_names, train.class_names)
    if same is None:
        raise InputError(
            f"{path} has the classes {shortened(found.class_names)}, and those of {train.name} are "
            f"{shortened(train.class_names)}: name its folders like them, letters and digits count, or give the "
            "--dataset that they stand for"
        )
    if ((found.labels < 0) | (found.labels >= len(found.class_names))).any():
        raise InputError(f"{path} has labels that are none of the {len(found.class_names)} classes that it names")
    number = torch.tensor([train.class_names.index(same[name]) for name in found.class_names])
    return number[found.labels]


def _normalised(train: ImageData, found: Found, path: Path) -> Tensor:
    images, values = found.images, found.values
    if values == "whitened" and train.whitening is None:
        raise InputError(f"{path} holds ZCA-whitened images: give --zca")
    if found.statistics not in ([], [list(train.mean), list(train.std)]):
        raise InputError(
            f"{path} is normalised by another mean and std than {train.name}: export it as pixels, with --values unit"
        )
    if values in ("normalised", "whitened"):
        return images.float()
    if values not in PIXELS:
        low, high = images.aminmax()
        raise InputError(
            f"{path} does not say what its numbers, {float(low):.3g} to {float(high):.3g}, are: give --pixels"
        )
    if images.dtype == torch.uint8:
        return train.normalise(images)
    black, white = PIXELS[values]
    return train.normalise((images.float() - black) / (white - black))
