"""Evaluate a synthetic-set file or a baseline: the one implementation behind every folder's evaluate.py."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import recipes
from common.config.checks import check_least
from common.config.command_line import find_recipe, parse_plain, with_recipe
from common.config.options import DataOptions, DistillOptions, EvaluateOptions
from common.datasets import ImageData, check_dataset, is_resizable, load_dataset
from common.images.pixels import Resize, ResizeMode
from common.images.zca import whiten, whitening_fingerprint, whitening_of
from common.matching.augment import parse_strategy
from common.networks import Network, build_network
from common.networks.pools import build_pool, principal
from common.synset.open import open_synset
from common.synset.synset import SynSet
from common.system import parallel
from common.system.command import run_command
from common.system.devices import can_compile, check_precision, describe_hardware, precision, resolve_device
from common.system.errors import InputError
from common.system.files import write_csv, write_json
from common.system.seeds import generator
from common.system.text import in_percent, point_of
from common.system.version import code_version
from common.training import coresets
from common.training.evaluate import evaluate, networks_at_once, random_real, trained_here
from common.training.train import Batches, EvaluationProtocol, TrainingSet


def main(objective: str, **defaults: Any) -> None:
    """`python DM/evaluate.py --synset FILE`: print the accuracy, and the one stored in the file beside it.

    objective: whose recipes say how a baseline is trained; a file says it itself. defaults: of options, where the
    folder has others than `recipes.defaults` says.
    """
    run_command(lambda: show(parse_plain(EvaluateOptions), objective, defaults), several=True)


def show(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> None:
    """Evaluate and print; with --output also write the result as JSON, and a CSV row for every network."""
    result = evaluate_file(options, objective, defaults)
    stored = result["stored"]
    for name, figures in result.get("networks", {result["network"]: result}).items():
        print(f"{in_percent(figures)} ({figures['n']} x {name})")
    if stored:
        print(
            f"{in_percent(stored)} is stored in the file ({stored['n']} x {stored.get('network', result['network'])})"
        )
    if options.output and parallel.is_main():
        write_json(Path(options.output), result)
        write_csv(Path(options.output).with_suffix(".csv"), rows(result))


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for every network of an evaluation: its name, number and seed, accuracy in %, seconds of training."""
    return [
        {"network": name, "number": number, "seed": result["options"]["seed"], "accuracy": 100 * each, "seconds": took}
        for name, figures in result.get("networks", {result["network"]: result}).items()
        for number, (each, took) in enumerate(zip(figures["accuracies"], result["seconds"][name], strict=True))
    ]


# A synthetic set and its metadata.
Opened = tuple[SynSet, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is trained on (by network number), and how."""

    training_sets: Callable[[int], TrainingSet]
    test: ImageData
    dataset: str
    network: str
    protocol: EvaluationProtocol
    resize: Resize  # how the images became squares, where they were resized
    stored: dict[str, Any] | None = None


def evaluate_file(
    options: EvaluateOptions, objective: str, defaults: dict[str, Any], opened: Opened | None = None
) -> dict[str, Any]:
    """{"network", "mean", "std", "n", "accuracies", "networks" (of a pool), "stored", ...}.

    opened: the set that options.synset names, where it has been read already.
    Raises InputError for what cannot work.
    """
    device = resolve_device(options.device)
    subject = find_subject(options, objective, defaults, device, opened)
    test, protocol = subject.test, subject.protocol
    pool = _networks(options, subject)
    compiles = options.compile and can_compile(tqdm.write)
    together = networks_at_once(options.networks_at_once, device)
    accuracies: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for name, network in pool.items():
        network.to(device)
        own = protocol.for_network(subject.dataset, name)
        total = trained_here(network, options.num_eval, together) * own.epochs_of_training
        bar = tqdm(total=total, desc=name, unit="epoch", dynamic_ncols=True, disable=not parallel.is_main())
        accuracies[name], finished = [], [time.monotonic()]
        with bar, precision(options.precision, device):
            for accuracy in evaluate(
                network,
                subject.training_sets,
                test,
                own,
                range(options.num_eval),
                options.seed,
                forward=torch.compile(network) if compiles else network,
                on_epoch=bar.update,
                together=together,
                compiler=torch.compile if compiles else None,
            ):
                accuracies[name].append(accuracy)
                finished.append(time.monotonic())
        seconds[name] = _seconds_each(finished, together * parallel.world())
    standing = principal(pool, subject.network)
    return {
        **point_of(accuracies, standing),
        "seconds": seconds,
        "options": dataclasses.asdict(options),
        "evaluation": protocol.for_network(subject.dataset, standing).as_metadata(),
        "stored": subject.stored,
        "version": code_version(),
        "hardware": describe_hardware(device),
    }


def _networks(options: EvaluateOptions, subject: Subject) -> dict[str, Network]:
    """The networks to train, by name: those of --models, or of --eval_mode, or the subject's own."""
    channels, classes, im_size = subject.test.channels, subject.test.num_classes, subject.test.im_size
    if options.models is None:
        mode = options.eval_mode or "SS"
        return build_pool(mode, subject.network, channels, classes, im_size, subject.protocol.kind)
    if options.eval_mode is not None or options.model is not None:
        raise InputError("--models names the networks: leave out --eval_mode and --model")
    names = dict.fromkeys(name.strip() for name in options.models.split(","))
    return {name: build_network(name, channels, classes, im_size) for name in names}


def _seconds_each(finished: list[float], together: int) -> list[float]:
    """Of networks that ended at these times, the first the start, the seconds each took: its share of its group's."""
    count = len(finished) - 1
    took = []
    for start in range(0, count, together):
        end = min(start + together, count)
        took += [round((finished[end] - finished[start]) / (end - start), 3)] * (end - start)
    return took


def find_subject(
    options: EvaluateOptions,
    objective: str,
    defaults: dict[str, Any],
    device: torch.device,
    opened: Opened | None = None,
) -> Subject:
    """What the options name, a file or a baseline, with its test images on the device; InputError for neither."""
    check_precision(options.precision, device)
    if (options.synset is None) == (options.baseline is None):
        raise InputError("give either --synset FILE or --baseline random|herding|kcenter|full")
    for key, least in (("num_eval", 1), ("ipc", 1), ("networks_at_once", 0), ("coreset_epochs", 0)):
        check_least(options, key, least)
    if options.synset is None:
        return _baseline(options, objective, defaults, device)
    return _stored_set(options, options.synset, device, opened)


def _stored_set(options: EvaluateOptions, file: str, device: torch.device, opened: Opened | None) -> Subject:
    if any(value is not None for value in (options.ipc, options.recipe, options.cifar100_stats)):
        raise InputError("--ipc, --recipe and --cifar100_stats are for baselines: a synthetic set has its own")
    with parallel.main_first():  # it may have to be fetched
        synset, metadata = opened or open_synset(file, device, zca=options.zca)
    zca = metadata.get("zca")  # absent from files older than the option
    if options.zca is not None and options.zca != (zca is not None):
        raise InputError(f"{file} was made {'without' if zca is None else 'with'} ZCA whitening: leave out --zca")
    known = _known(options, file, synset, metadata)
    with parallel.main_first():
        train, test = load_dataset(
            known.dataset,
            options.data_path,
            download=not options.no_download,
            image_size=known.image_size,
            resize=known.resize,
            antialias=known.antialias,
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
    names = metadata.get("class_names")
    if test.num_classes != synset.num_classes or names not in (None, list(test.class_names)):
        raise InputError(f"{file} was made for other classes than those of {test.name}: give its own --dataset")
    if zca is not None:
        if zca["fingerprint"] not in (None, whitening_fingerprint(train.images, zca["eps"])):
            raise InputError(
                f"{file} was whitened by other training images than those of {train.name}: "
                "give the --dataset it was made from"
            )
        with parallel.main_first():
            whitening = whitening_of(train, zca["eps"], parallel.is_main())
        test = whiten(test, whitening, parallel.is_main())
    batches = Batches(*synset.get(need_copy=True))
    resized = Resize(test.im_size[0], known.resize, known.antialias)
    made_from = metadata.get("dataset") or known.dataset
    return Subject(
        lambda number: batches,
        test.to(device),
        made_from,
        known.network,
        override(known.protocol, options),
        resized,
        metadata.get("accuracy"),
    )


@dataclasses.dataclass(frozen=True)
class _Known:
    """What an evaluation has to know of a set beside its images."""

    dataset: str
    network: str
    protocol: EvaluationProtocol
    image_size: int | None
    resize: ResizeMode
    antialias: bool


def _known(options: EvaluateOptions, file: str, synset: SynSet, metadata: dict[str, Any]) -> _Known:
    """What a file says and, where that is unknown (null, or absent), the flags; InputError with the flags to give."""
    dataset, network = options.dataset or metadata.get("dataset"), options.model or metadata.get("network")
    evaluation = dict(metadata.get("evaluation") or {})
    kind = options.eval_protocol or evaluation.get("kind", "dc")
    if "step_size" in metadata and kind == "dc":
        # The step size that trajectory matching learned belongs to the set.
        evaluation["lr"] = metadata["step_size"]
    if kind == "glad" and "lr" not in evaluation:
        evaluation |= {"kind": kind, "lr": None}  # its step sizes follow from the networks
    flags = {
        "--epoch_eval_train": ("epochs", options.epoch_eval_train),
        "--lr_net": ("lr", options.lr_net),
        "--batch_train": ("batch", options.batch_train),
        "--dsa_strategy": ("strategy", options.dsa_strategy),
    }
    for key, value in flags.values():
        if value is not None:
            evaluation.setdefault(key, value)
    # Absent from files older than the options, as is zca.
    stated = {"resize": DataOptions.resize, "antialias": DataOptions.antialias, **metadata}
    resize = options.resize or stated["resize"]
    antialias = stated["antialias"] if options.antialias is None else options.antialias
    resizable = dataset is not None and is_resizable(dataset)
    unknown = {
        "--dataset": dataset is None,
        "--model": network is None,
        **{flag: key not in evaluation for flag, (key, _) in flags.items()},
        "--resize": resizable and resize is None,
        "--antialias": resizable and antialias is None,
    }
    if dataset is None or network is None or any(unknown.values()):
        # Of a set that was converted.
        hint = " (python -m common.pretrained convert takes most from a recipe)" if "source" in metadata else ""
        *most, last = [flag for flag, lacks in unknown.items() if lacks]
        flags_to_give = f"{', '.join(most)}{' and ' * bool(most)}{last}"
        raise InputError(f"{file} does not say all that an evaluation needs: give {flags_to_give}{hint}")
    check_dataset(dataset, options.subset)
    image_size = options.image_size or metadata.get("image_size")
    if image_size is None and resizable and metadata.get("dataset") is None:
        image_size = synset.im_size[0]
    return _Known(
        dataset,
        network,
        EvaluationProtocol(**evaluation),
        image_size,
        resize or DataOptions.resize,
        DataOptions.antialias if antialias is None else antialias,
    )


def _baseline(options: EvaluateOptions, objective: str, defaults: dict[str, Any], device: torch.device) -> Subject:
    """Trained as the objective's recipe for this dataset and ipc trains, so that the two can be compared."""
    defaults = recipes.defaults(objective) | defaults
    dataset = options.dataset or defaults.get("dataset", DataOptions.dataset)
    ipc = options.ipc or DistillOptions.ipc
    recipe = find_recipe(objective, dataset, ipc, options.recipe)
    asked: dict[str, Any] = {"image_size": options.image_size, "resize": options.resize, "antialias": options.antialias}
    resizing = {key: recipe.values.get(key) if value is None else value for key, value in asked.items()}
    data = DataOptions(
        dataset=dataset,
        subset=options.subset,
        data_path=options.data_path,
        no_download=options.no_download,
        **{key: value for key, value in resizing.items() if value is not None},
        skip_corrupt=options.skip_corrupt,
        recipe=options.recipe,
        zca=bool(options.zca),
        cifar100_stats=options.cifar100_stats or DataOptions.cifar100_stats,
        workers=options.workers,
    )
    train, test = (part.to(device) for part in data.load())
    stated = {key: value for key, value in defaults.items() if key not in recipe.values}
    like = dataclasses.replace(with_recipe(DistillOptions, recipe), **stated)

    protocol = override(EvaluationProtocol.of(like), options)
    model = options.model or like.model
    rule = coresets.RULES.get(options.baseline or "")
    if rule is not None:
        chosen = None
        if parallel.is_main():  # GPUs round differently from run to run: one network chooses for all processes
            network = build_network(model, train.channels, train.num_classes, train.im_size).to(device)
            with precision(options.precision, device):
                features = coresets.trained_features(network, train, protocol, options.coreset_epochs, options.seed)
            chosen = rule(features, train.class_indices, ipc).flatten().cpu()
        chosen = parallel.broadcast(chosen).to(device)
        coreset = Batches(train.batch(chosen), train.labels[chosen])

    def training_set(number: int) -> TrainingSet:
        if rule is not None:
            return coreset
        if options.baseline == "full":
            return train
        return random_real(train, ipc, generator(options.seed, "random real images", number))

    resized = Resize(test.im_size[0], data.resize, data.antialias)
    return Subject(training_set, test, data.dataset, model, protocol, resized)


def override(protocol: EvaluationProtocol, options: EvaluateOptions) -> EvaluationProtocol:
    """The protocol with what flags say instead."""
    kind = options.eval_protocol or protocol.kind
    if kind != protocol.kind:  # each has step sizes of its own
        protocol = dataclasses.replace(protocol, kind=kind, lr=None if kind == "glad" else DistillOptions.lr_net)
    asked: dict[str, Any] = {
        "epochs": options.epoch_eval_train,
        "lr": options.lr_net,
        "batch": options.batch_train,
        "strategy": options.dsa_strategy,
    }
    protocol = dataclasses.replace(protocol, **{key: value for key, value in asked.items() if value is not None})
    epochs, lr = protocol.epochs, protocol.lr
    if not ((epochs is None or epochs >= 0) and (lr is None or lr > 0) and protocol.batch >= 1):
        raise InputError(f"--epoch_eval_train, --lr_net and --batch_train must be positive: {protocol}")
    parse_strategy(protocol.strategy)
    return protocol
