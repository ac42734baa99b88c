"""Write a synthetic set in forms that others read: `python -m common.pretrained export FILE --to KIND:PATH`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from common.config.checks import check_least, check_positive
from common.config.evaluate_options import EvaluateOptions
from common.config.options import Device, NetworksAtOnce, Seed
from common.config.places import dataset_folder
from common.disk.paths import expanded
from common.images.pixel_values import normalised_by
from common.pretrained import forms
from common.pretrained.forms import Content, Split
from common.report.show import shown
from common.synset import hub
from common.synset.authors import AuthorsSet, is_authors
from common.synset.base import LearnedSet
from common.synset.file import StoredSet, load_synset
from common.synset.open import as_pixels
from common.system.devices import resolve_device
from common.system.errors import InputError
from common.system.files import check_not_read
from common.system.text import counted, in_percent
from common.training.evaluate_command import evaluate_file
from common.training.evaluation_setup import EvaluationSetup, prepare_evaluation

_METADATA = ("objective", "network", "accuracy", "version")


@dataclass
class Export:
    """Write a set's images as PNG files, for torch, numpy or datasets, and show what that costs in accuracy."""

    file: Annotated[str, tyro.conf.Positional]
    """a .safetensors file of this project, or hf://owner/name"""
    to: str
    """folder:PATH   PNG files PATH/CLASS/0000.png, as torchvision's ImageFolder reads them, beside PATH/about.json;
    pt:PATH       a file for torch.load: a dictionary with images, labels, class_names, mean, std, values and about;
    npz:PATH      the same for numpy.load, without pickle;
    hf:PATH       a folder of Parquet files that the library datasets loads (the extra hub)"""
    values: Literal["unit", "normalised"] | None = None
    """pt and npz: unit are pixels, limited to 0..1; normalised are the numbers that networks are trained on
    (default: unit; ZCA-whitened sets: normalised). PNG files hold pixels in 8 bits"""
    with_test: bool = False
    """also write the dataset's test images: as PATH/train and PATH/test, as test_images and test_labels,
    or as a second split (which --dataset hf:PATH needs)"""
    check: bool = True
    """train networks on what was written and on the file's own images, and print both accuracies;
    for this the dataset has to be in --data_path, for nothing is downloaded"""
    num_eval: int = 2
    """networks to train for each of the two accuracies"""
    epoch_eval_train: int | None = None
    """epochs for training each network (default: from the file)"""
    lr_net: float | None = None
    """learning rate of the networks (default: from the file)"""
    networks_at_once: NetworksAtOnce = 0
    dataset: str | None = None
    """dataset of the test images, e.g. folder:PATH (default: the one named in the file)"""
    data_path: str | None = None
    """folder where datasets are stored; for imagenet-SUBSET, the folder with train/ and val/
    (default: data; for imagenet-SUBSET, $IMAGENET if set)"""
    seed: Seed = 0
    device: Device = "auto"

    def run(self) -> None:
        """Export. Raises InputError for a set that the form cannot hold, and for options that cannot work."""
        check_least(self, "num_eval", 1)
        check_least(self, "epoch_eval_train", 0)
        check_positive(self, "lr_net")
        kind, path = _destination(self.to)
        file = hub.fetch(self.file) if self.file.startswith(hub.PREFIX) else Path(self.file)
        if is_authors(file):
            raise InputError(f"{file} does not say what its numbers mean: convert it first, {_CONVERT}")
        check_not_read("--to", [path], [file])
        stored = load_synset(file, resolve_device(self.device))
        values = _values(self.values, kind, self.file, *stored)
        setup = self._setup(stored)
        train, told = _split(*stored, values, kind)
        content = Content(
            values, train, self._test(setup, values, kind), *_names(stored, setup), _about(file, *stored, told)
        )
        size = forms.write(kind, path, content)
        beside = "" if content.test is None else f" and {counted(len(content.test.labels), 'test image')}"
        print(f"{path} written: {counted(len(train.labels), 'image')}{beside}, {counted(size, 'byte')}")
        for line in (told, *content.remarks, *forms.remarks(kind, content)):
            if line:
                print(line)
        if self.check:
            self._compare(stored, content)

    def _options(self) -> EvaluateOptions:
        return EvaluateOptions(
            synset=self.file,
            dataset=self.dataset,
            data_path=self.data_path,
            no_download=True,
            num_eval=self.num_eval,
            epoch_eval_train=self.epoch_eval_train,
            lr_net=self.lr_net,
            networks_at_once=self.networks_at_once,
            seed=self.seed,
            device=self.device,
        )

    def _setup(self, stored: StoredSet) -> EvaluationSetup | None:
        """The test images, where something needs them and they are there; InputError where nothing goes without."""
        if not self.with_test and stored[1].get("class_names") is not None:
            return None
        try:
            return prepare_evaluation(self._options(), "", {}, torch.device("cpu"), stored)
        except InputError:
            if self.with_test:
                raise
            return None

    def _test(self, setup: EvaluationSetup | None, values: str, kind: str) -> Split | None:
        if setup is None or not self.with_test:
            return None
        data = setup.test
        if values in ("normalised", "whitened"):
            return Split(data.batch(slice(None)), data.labels)
        data.check_all()
        pixels = data.images.float() / 255 if data.images.dtype == torch.uint8 else data.images
        return Split(_in_8_bits(pixels) if kind in forms.PICTURES else pixels, data.labels)

    def _compare(self, stored: StoredSet, content: Content) -> None:
        """Print the accuracies of the exported images and of the file's own, networks and protocol being the same."""
        if content.values not in forms.PIXELS:
            print("the numbers are those of the file, so nothing is lost")
            return
        synset, metadata = stored
        images = normalised_by(
            content.train.images.float(), forms.PIXELS[content.values], (metadata["mean"], metadata["std"]), self.file
        )
        exported = as_pixels(AuthorsSet(images, content.train.labels, "pair", None, (Path(self.file),)), synset.device)
        try:
            figures = {
                f"as exported, {forms.VALUES[content.values]}": evaluate_file(
                    self._options(), "", {}, (exported, metadata)
                ),
                "as in the file": evaluate_file(self._options(), "", {}, stored),
            }
        except InputError as error:
            print(f"not compared with the file's own images: {error}")
            return
        for name, result in figures.items():
            print(f"{in_percent(result)} ({result['n']} x {result['network']}) {name}")
        if known := figures["as in the file"]["stored"]:
            print(f"{in_percent(known)} is stored in the file ({counted(known['n'], 'network')})")


_CONVERT = "python -m common.pretrained convert FILE --output set.safetensors --dataset NAME"


def _destination(to: str) -> tuple[str, Path]:
    """The form and the path that --to names. Raises InputError for another form or a path that cannot be that."""
    kind, colon, path = to.partition(":")
    if kind not in forms.KINDS or not colon or not path:
        raise InputError(f"--to {to} names no form: give {', '.join(f'{each}:PATH' for each in forms.KINDS)}")
    place = expanded(path)
    forms.check_place(kind, place)
    return kind, place


def _values(asked: str | None, kind: str, file: str, synset: LearnedSet, metadata: dict[str, Any]) -> str:
    """A key of `forms.VALUES`: what the numbers of an export are. Raises InputError for what the form cannot hold."""
    pictures = kind in forms.PICTURES
    if pictures and len(synset.im_size) != 2:
        raise InputError(f"{file} holds volumes, and a PNG file a picture: give --to pt:PATH or npz:PATH")
    if pictures and synset.channel not in (1, 3):
        raise InputError(
            f"{file} has images of {synset.channel} channels, and a PNG file has 1 or 3: give --to pt:PATH or npz:PATH"
        )
    if pictures and asked == "normalised":
        raise InputError("--values normalised are no pixels, which PNG files hold: give --to pt:PATH or npz:PATH")
    if metadata.get("zca"):
        if pictures or asked == "unit":
            raise InputError(
                f"{file} is ZCA-whitened, and networks are trained on whitened numbers, which are no pixels: "
                "give --to pt:PATH or npz:PATH, without --values unit"
            )
        return "whitened"
    if asked == "normalised":
        return "normalised"
    if metadata.get("mean") is None or metadata.get("std") is None:
        raise InputError(
            f"{file} does not say by which mean and std its images are normalised, so they cannot become pixels: "
            f"{_CONVERT} says so, and --to pt:PATH --values normalised does without"
        )
    return "bytes" if pictures else "unit"


def _split(synset: LearnedSet, metadata: dict[str, Any], values: str, kind: str) -> tuple[Split, str]:
    """Images and labels as they are exported, on the CPU, and a remark about what was clipped."""
    images, labels = (each.cpu() for each in synset.get(need_copy=True))
    if values in ("normalised", "whitened"):
        return Split(images, labels), ""
    pixels, told = shown(images, metadata)
    return Split(_in_8_bits(pixels) if values == "bytes" else pixels, labels), told


def _in_8_bits(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8)


def _names(stored: StoredSet, setup: EvaluationSetup | None) -> tuple[list[str], list[str]]:
    """The names of the classes in the order of the labels, and remarks about them."""
    synset, metadata = stored
    if metadata.get("class_names") is not None:
        return list(metadata["class_names"]), []
    if setup is not None:
        return list(setup.test.class_names), []
    width = len(str(synset.num_classes - 1))
    told = "neither the file nor a dataset in --data_path names the classes: they are called by their numbers"
    return [f"{label:0{width}}" for label in range(synset.num_classes)], [told]


def _about(file: Path, synset: LearnedSet, metadata: dict[str, Any], told: str) -> dict[str, Any]:
    """What is known of a set, as JSON values, without any path of this machine."""
    evaluation = metadata.get("evaluation")
    if evaluation is not None and "step_size" in metadata:
        evaluation = {**evaluation, "lr": metadata["step_size"]}  # learned with the set
    dataset = metadata.get("dataset")
    return {
        "source": file.name,
        "dataset": dataset and dataset_folder(dataset),
        "images_per_class": synset.num_per_class,
        "channels": synset.channel,
        "im_size": list(synset.im_size),
        "mean": metadata.get("mean"),
        "std": metadata.get("std"),
        "zca": metadata.get("zca"),
        "clipped": told or None,
        "evaluation": evaluation,
        **{key: metadata.get(key) for key in _METADATA},
    }
