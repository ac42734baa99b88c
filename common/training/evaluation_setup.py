"""Prepares an evaluation from its options: the images to train on, the test images and the training protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common import recipes
from common.config.checks import check_least
from common.config.command_line import find_recipe, with_recipe
from common.config.evaluate_options import EvaluateOptions
from common.config.options import DataOptions, DistillOptions
from common.config.sets import bits_of_image
from common.datasets import ImageData, check_dataset, folder, has_image_files, is_resizable, load_dataset
from common.images.image_data import content_of, different_content, same_classes, with_classes
from common.images.pixel_values import as_normalised
from common.images.pixels import Decoding, Resize, ResizeMode
from common.images.zca import whiten, whitening_fingerprint, whitening_of
from common.matching.augment import parse_strategy
from common.matching.transforms import check_augmentation
from common.networks.architecture import check_architecture
from common.report.verdict import Cell
from common.synset.base import LearnedSet
from common.synset.file import StoredSet
from common.synset.open import open_synset
from common.system import parallel
from common.system.devices import check_precision
from common.system.errors import InputError
from common.system.text import shortened, told_apart
from common.training.real_images import real_images
from common.training.train import Batches, EvaluationProtocol, TrainingSet


@dataclasses.dataclass(frozen=True)
class EvaluationSetup:
    """The training sets, the test images and the protocol of an evaluation."""

    # Network number -> the images that the network is trained on.
    training_sets: Callable[[int], TrainingSet]
    test: ImageData
    dataset: str
    network: str
    protocol: EvaluationProtocol
    resize: Resize
    """how the images are resized to squares; unused for datasets that are not resized"""
    stored: dict[str, Any] | None = None
    """the accuracy stored in the synthetic-set file, in the format of `point_of`; None for a baseline"""
    storage: dict[str, Any] | None = None
    """what the images of a baseline take in files, see `store_real`; None without --stored_as"""
    files: dict[str, Any] | None = None
    """what the images of an imported set take in files, see `describe_files`; None for other sets"""
    soft_labels: str | None = None
    """the kind of the soft labels that networks are trained with, "probabilities" or "logits"; None without them"""
    ipc: int | None = None
    """the budget in float32 images per class; None if it is no whole number of them"""
    train: Callable[[], ImageData] | None = None
    """gives the real training images on the device, for --references; None without that option"""
    cell: Cell | None = None
    """the cell of published tables that the set belongs to; None for a baseline, and for sets of another kind"""
    architecture: tuple[str, Any] | None = None
    """the name of the network that the set was made for, and what its file says of it, see `architecture_of`"""

    def check_networks(self, networks: Mapping[str, nn.Module], file: str | None) -> None:
        """Raise InputError if one of the networks has the name that the set's file knows, but is another network."""
        if file is not None and self.architecture is not None and self.architecture[0] in networks:
            name, stored = self.architecture
            image = (self.test.channels, *self.test.im_size)
            check_architecture(networks[name], name, stored, file, image)


def prepare_evaluation(
    options: EvaluateOptions,
    objective: str,
    defaults: dict[str, Any],
    device: torch.device,
    stored: StoredSet | None = None,
) -> EvaluationSetup:
    """Prepare the evaluation of a synthetic-set file or a baseline, with the test images on the device.

    objective: the objective whose recipes say how a baseline is trained. defaults: values for options that the recipe
    does not set. stored: the content of the file options.synset, if the caller has read the file already.
    Raises InputError for options that cannot work.
    """
    check_precision(options.precision, device)
    if (options.synset is None) == (options.baseline is None):
        raise InputError("give either --synset FILE or --baseline random|herding|kcenter|full")
    for key, least in (("num_eval", 1), ("ipc", 1), ("networks_at_once", 0), ("coreset_epochs", 0)):
        check_least(options, key, least)
    if options.synset is None:
        return _of_baseline(options, objective, defaults, device)
    return _of_file(options, options.synset, device, stored)


@contextmanager
def said_by(file: str | None) -> Iterator[None]:
    """Inside, an InputError about a value names the synthetic-set file that may say it; None: there is no file."""
    try:
        yield
    except InputError as error:
        if file is None or file in str(error):
            raise
        raise InputError(f"{error} (this is what {file} says, unless a flag gives it)") from error


def _of_file(options: EvaluateOptions, file: str, device: torch.device, stored: StoredSet | None) -> EvaluationSetup:
    if any(value is not None for value in (options.ipc, options.recipe, options.cifar100_stats)):
        raise InputError("--ipc, --recipe and --cifar100_stats are for baselines: a synthetic set has its own")
    with parallel.main_first():  # the set may have to be downloaded
        synset, metadata = stored or open_synset(
            file, device, zca=options.zca, pixels=options.pixels, soft_labels=options.soft_labels
        )
    zca = metadata.get("zca")  # files older than the option lack the key
    if options.zca is not None and options.zca != (zca is not None):
        raise InputError(f"{file} was made {'without' if zca is None else 'with'} ZCA whitening: leave out --zca")
    with said_by(file):
        settings = _settings(options, file, synset, metadata)
        protocol = override(settings.protocol, options)
    listed_names = folder.class_names(settings.dataset)
    if listed_names is not None:  # told apart before any image is decoded
        with folder.said_first(settings.dataset):
            _same_classes(file, metadata.get("class_names"), synset.num_classes, listed_names, settings.dataset)
    with parallel.main_first():
        train, test = load_dataset(
            settings.dataset,
            options.data_path,
            download=not options.no_download,
            image_size=settings.image_size,
            resize=settings.resize,
            antialias=settings.antialias,
            decoding=settings.decoding,
            skip_corrupt=options.skip_corrupt,
            mean=metadata.get("mean") if zca is None else None,
            std=metadata.get("std") if zca is None else None,
            workers=options.workers,
            progress=parallel.is_main(),
        )
    if (test.channels, *test.im_size) != (synset.channel, *synset.im_size):
        raise InputError(
            f"the test images are {(test.channels, *test.im_size)}, "
            f"the synthetic ones {(synset.channel, *synset.im_size)}: give the --dataset it was made from"
        )
    listed = test.class_names
    train, test = _with_classes_of(file, metadata.get("class_names"), synset.num_classes, train, test)
    if zca is not None and zca["fingerprint"] not in (None, whitening_fingerprint(train.images, float(zca["eps"]))):
        raise InputError(
            f"{file} was whitened by other training images than those of {train.name}"
            f"{_other_order(listed, test.class_names)}: give the --dataset it was made from"
        )
    _check_content(options, file, metadata, train, test)
    if zca is not None:
        with parallel.main_first():
            whitening = whitening_of(train, float(zca["eps"]), parallel.is_main())
        test = whiten(test, whitening, parallel.is_main())
    budget = _budget(options, synset, metadata.get("storage"), test)

    def real() -> ImageData:
        return (train if zca is None else whiten(train, whitening, parallel.is_main())).to(device)

    images, labels = synset.get(need_copy=True)
    if "source" in metadata and stored is None:  # whoever has read it has normalised it
        images = as_normalised(images, options.pixels, test, file)
    soft = synset.soft_labels
    batches = Batches(images, labels, None if soft is None else soft.probabilities())
    resized = Resize(test.im_size[0], settings.resize, settings.antialias)
    made_from = metadata.get("dataset") or settings.dataset
    return EvaluationSetup(
        lambda number: batches,
        test.to(device),
        made_from,
        settings.network,
        protocol,
        resized,
        metadata.get("accuracy"),
        files=metadata.get("files"),
        soft_labels=None if soft is None else soft.kind,
        ipc=budget,
        train=None if options.references is None else real,
        cell=_cell(options, synset, metadata),
        architecture=(str(metadata.get("network")), metadata.get("architecture")),
    )


def _budget(
    options: EvaluateOptions, synset: LearnedSet, storage: dict[str, Any] | None, test: ImageData
) -> int | None:
    """The budget of a set in float32 images per class. Raises InputError for --references without a whole number."""
    if storage is None:
        return synset.ipc
    ipc, rest = divmod(storage["bits_per_class"], bits_of_image(test))
    if ipc and not rest:
        return int(ipc)
    if {"random", "unaugmented"} & set(options.references_asked):
        raise InputError(
            f"the set takes {storage['bits_per_class']:,} bits per class, which is no whole number of images of "
            f"{bits_of_image(test):,} bits: leave random out of --references"
        )
    return None


def _cell(options: EvaluateOptions, synset: LearnedSet, metadata: dict[str, Any]) -> Cell | None:
    """The cell that a set of float32 coefficients of the DCT belongs to, evaluated on the dataset it was made from."""
    objective, dataset = metadata.get("objective"), metadata.get("dataset")
    if not objective or not dataset or options.dataset not in (None, dataset):
        return None
    if synset.transform != "dct" or "storage" in metadata or metadata.get("zca"):
        return None
    return Cell(objective, dataset, synset.ipc, synset.im_size[0])


def _other_order(here: Sequence[str], there: Sequence[str]) -> str:
    """That the images may be the same in another order, if the classes of the dataset here come in another; else ""."""
    same = same_classes(here, there) or {}
    if not same or [same[name] for name in here] == list(there):
        return ""
    return (
        f", or by the same in another order (the classes come as {shortened(here, 10)}, in the file as "
        f"{shortened(there, 10)}, and folders sort by their names)"
    )


def _with_classes_of(
    file: str, names: list[str] | None, count: int, train: ImageData, test: ImageData
) -> tuple[ImageData, ImageData]:
    """The images with the classes of a set, called and ordered as in its file; a line says so where they differ.

    Raises InputError if they have other classes.
    """
    same = _same_classes(file, names, count, test.class_names, test.name)
    if names is None or names == list(test.class_names):
        return train, test
    renamed = [f"{here} is {there}" for here, there in same.items() if here != there]
    how = f"by letters and digits: {shortened(renamed)}" if renamed else "in the order of the file"
    if parallel.is_main():
        tqdm.write(f"the classes of {test.name} are those of {file}, {how}")
    return with_classes(train, same, names), with_classes(test, same, names)


def _same_classes(file: str, names: list[str] | None, count: int, there: Sequence[str], dataset: str) -> dict[str, str]:
    """The name in a set's file of each class that is there. Raises InputError if they are other classes.

    names: those of the file, which may say only their number.
    """
    if names is None:
        same = {name: name for name in there} if len(there) == count else None
    else:
        same = same_classes(there, names)
    if same is None:
        here = told_apart(there, names or [])
        told = f"{count} classes" if names is None else f"the classes {shortened(told_apart(names, there))}"
        raise InputError(
            f"{file} was made for {told}, and those of {dataset} are {shortened(here)}: give its own --dataset"
        )
    return same


def _check_content(
    options: EvaluateOptions, file: str, metadata: dict[str, Any], train: ImageData, test: ImageData
) -> None:
    """Raises InputError where a dataset no longer holds the images that the set was made from.

    With a flag that chooses other images, one line says so instead. One line also tells of files of older versions,
    which do not say what the dataset held; of sets that came from the authors' files ("source") nobody expects it.
    """
    there = metadata.get("content")
    if there is None:
        if "source" not in metadata and parallel.is_main():
            tqdm.write(
                f"{file} does not say which images it was made from: those of {test.name} are taken to be the same"
            )
        return
    told = different_content(there, content_of(train, test))
    chosen = (options.dataset, options.image_size, options.resize, options.antialias, options.decoding)
    if told and any(value is not None for value in chosen):
        tqdm.write(f"{file} was made from other images than these ({told})")
    elif told:
        raise InputError(
            f"{file} was made from other images than those that {test.name} holds now ({told}): restore them, "
            f"or give --dataset {test.name} to test on these"
        )


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What an evaluation needs to know about a synthetic set besides its images."""

    dataset: str
    network: str
    protocol: EvaluationProtocol
    image_size: int | None
    resize: ResizeMode
    antialias: bool
    decoding: Decoding | None


def _settings(options: EvaluateOptions, file: str, synset: LearnedSet, metadata: dict[str, Any]) -> _Settings:
    """Take each setting from the file's metadata, or from the flags where the metadata has null or no value.

    Raises InputError that names the flags to give if a setting is in neither.
    """
    dataset, network = options.dataset or metadata.get("dataset"), options.model or metadata.get("network")
    evaluation = dict(metadata.get("evaluation") or {})
    kind = options.eval_protocol or evaluation.get("kind", "dc")
    if "step_size" in metadata and kind == "dc":
        # The learned step size of trajectory matching is the learning rate for this set.
        evaluation["lr"] = metadata["step_size"]
    if kind == "glad" and "lr" not in evaluation:
        evaluation |= {"kind": kind, "lr": None}  # with GLaD's protocol the learning rate depends on the network
    flags = {
        "--epoch_eval_train": ("epochs", options.epoch_eval_train),
        "--lr_net": ("lr", options.lr_net),
        "--batch_train": ("batch", options.batch_train),
        "--dsa_strategy": ("strategy", options.dsa_strategy),
    }
    if options.augmentation != "dsa":  # which a strategy has no part in, so that none is asked for
        evaluation["strategy"] = ""
    for key, value in flags.values():
        if value is not None:
            evaluation.setdefault(key, value)
    # Files older than these options lack the keys.
    resizing = {"resize": DataOptions.resize, "antialias": DataOptions.antialias, **metadata}
    resize = options.resize or resizing["resize"]
    antialias = resizing["antialias"] if options.antialias is None else options.antialias
    resizable = dataset is not None and is_resizable(dataset)
    unknown = {
        "--dataset": dataset is None,
        "--model": network is None,
        **{flag: key not in evaluation for flag, (key, _) in flags.items()},
        "--resize": resizable and resize is None,
        "--antialias": resizable and antialias is None,
    }
    if dataset is None or network is None or any(unknown.values()):
        # Only converted sets have a "source".
        hint = " (python -m common.pretrained convert takes most from a recipe)" if "source" in metadata else ""
        *most, last = [flag for flag, lacks in unknown.items() if lacks]
        flags_to_give = f"{', '.join(most)}{' and ' * bool(most)}{last}"
        raise InputError(f"{file} does not say all that an evaluation needs: give {flags_to_give}{hint}")
    check_dataset(dataset, options.subset)
    if options.image_size is None and metadata.get("image_size") not in (None, synset.im_size[0]):
        raise InputError(
            f"{file} says that images were resized to {metadata['image_size']} pixels, and its own have "
            f"{synset.im_size[0]}: it is damaged, copy it again"
        )
    image_size = options.image_size or metadata.get("image_size")
    if image_size is None and resizable and metadata.get("dataset") is None:
        image_size = synset.im_size[0]
    return _Settings(
        dataset,
        network,
        EvaluationProtocol(**evaluation),
        image_size,
        resize or DataOptions.resize,
        DataOptions.antialias if antialias is None else antialias,
        options.decoding or (metadata.get("decoding") if has_image_files(dataset) else None),
    )


def _of_baseline(
    options: EvaluateOptions, objective: str, defaults: dict[str, Any], device: torch.device
) -> EvaluationSetup:
    """Prepare a baseline, trained by the objective's recipe for this dataset and ipc so that the two compare."""
    for flag, value in (("--pixels", options.pixels), ("--soft_labels", options.soft_labels)):
        if value is not None:
            raise InputError(f"{flag} says what a file of synthetic images holds: leave it out with --baseline")
    defaults = recipes.defaults(objective) | defaults
    dataset = options.dataset or defaults.get("dataset", DataOptions.dataset)
    ipc = options.ipc or DistillOptions.ipc
    # How large images are does not depend on ipc, but which ipc is nearest to a number of bits depends on their size.
    by_bits = options.bits_per_class is not None
    recipe = find_recipe(objective, dataset, recipes.EVERY_IPC if by_bits else ipc, options.recipe)
    asked: dict[str, Any] = {"image_size": options.image_size, "resize": options.resize, "antialias": options.antialias}
    resizing = {key: recipe.values.get(key) if value is None else value for key, value in asked.items()}
    data = DataOptions(
        dataset=dataset,
        subset=options.subset,
        data_path=options.data_path,
        no_download=options.no_download,
        **{key: value for key, value in resizing.items() if value is not None},
        decoding=options.decoding,
        skip_corrupt=options.skip_corrupt,
        recipe=options.recipe,
        zca=bool(options.zca),
        cifar100_stats=options.cifar100_stats or DataOptions.cifar100_stats,
        workers=options.workers,
    )
    train, test = (part.to(device) for part in data.load())
    if options.bits_per_class is not None:
        ipc = recipes.nearest(objective, options.recipe or dataset, options.bits_per_class / bits_of_image(train))
        recipe = find_recipe(objective, dataset, ipc, options.recipe)
    unsaid = {key: value for key, value in defaults.items() if key not in recipe.values}
    like = dataclasses.replace(with_recipe(DistillOptions, recipe), **unsaid)
    check_augmentation(options.augmentation, train)  # before a network is trained to choose images
    protocol = override(EvaluationProtocol.of(like), options)
    model = options.model or like.model
    # Which images a rule chooses is the same whatever augments them afterwards.
    choosing = override(EvaluationProtocol.of(like), dataclasses.replace(options, augmentation="dsa"))
    training_sets, storage = real_images(options, train, ipc, model, choosing)
    resized = Resize(test.im_size[0], data.resize, data.antialias)
    real = None if options.references is None else (lambda: train)
    return EvaluationSetup(
        training_sets, test, data.dataset, model, protocol, resized, storage=storage, ipc=ipc, train=real
    )


def override(protocol: EvaluationProtocol, options: EvaluateOptions) -> EvaluationProtocol:
    """The protocol with its values replaced by the flags that are given. Raises InputError for values out of range."""
    kind = options.eval_protocol or protocol.kind
    if kind != protocol.kind:  # each kind has its own learning rates
        protocol = dataclasses.replace(protocol, kind=kind, lr=None if kind == "glad" else DistillOptions.lr_net)
    asked: dict[str, Any] = {
        "epochs": options.epoch_eval_train,
        "lr": options.lr_net,
        "batch": options.batch_train,
        "strategy": options.dsa_strategy,
    }
    protocol = dataclasses.replace(protocol, **{key: value for key, value in asked.items() if value is not None})
    epochs, lr = protocol.epochs, protocol.lr
    wrong = {
        f"--epoch_eval_train {epochs} is too small: give at least 0": epochs is not None and epochs < 0,
        f"--lr_net {lr} must be positive": lr is not None and not lr > 0,
        f"--batch_train {protocol.batch} is too small: give at least 1": protocol.batch < 1,
    }
    for told in (each for each, is_wrong in wrong.items() if is_wrong):
        raise InputError(told)
    parse_strategy(protocol.strategy)
    if options.augmentation != "dsa":
        return dataclasses.replace(protocol, strategy="", augmentation=options.augmentation)
    return protocol
