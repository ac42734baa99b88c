"""Evaluate a synthetic-set file or a baseline: the one implementation behind every folder's evaluate.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.augment import parse_strategy
from common.datasets import ImageData, check_dataset, load_dataset
from common.datasets.zca import fingerprint, whiten, whitening_of
from common.devices import can_compile, check_precision, describe_hardware, precision, resolve_device
from common.errors import InputError, run_command
from common.evaluate import Batches, EvaluationProtocol, TrainingSet, evaluate, in_percent, point_of, random_real
from common.files import write_json
from common.options import (
    DataOptions,
    DistillOptions,
    EvaluateOptions,
    check_least,
    find_recipe,
    parse_plain,
    with_recipe,
)
from common.pools import build_pool, principal
from common.run import code_version
from common.seeds import generator
from common.synset_file import load_synset

_NEEDED = ("network", "dataset", "image_size", "mean", "std", "class_names", "evaluation")


def main(objective: str, **defaults: Any) -> None:
    """`python DM/evaluate.py --synset FILE`: print the accuracy, and the one stored in the file beside it.

    objective: whose recipes say how a baseline is trained; a file says it itself. defaults: options of the objective's
    distillation that have another default than in `DistillOptions`, and bear upon evaluations.
    """
    run_command(lambda: show(parse_plain(EvaluateOptions), objective, defaults))


def show(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> None:
    """Evaluate and print; with --output also write the result as JSON."""
    result = evaluate_file(options, objective, defaults)
    stored = result["stored"]
    for name, figures in result.get("networks", {result["network"]: result}).items():
        print(f"{in_percent(figures)} ({figures['n']} x {name})")
    if stored:
        print(
            f"{in_percent(stored)} is stored in the file ({stored['n']} x {stored.get('network', result['network'])})"
        )
    if options.output:
        write_json(Path(options.output), result)


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is trained on (by network number), and how."""

    training_sets: Callable[[int], TrainingSet]
    test: ImageData
    dataset: str
    network: str
    protocol: EvaluationProtocol
    stored: dict[str, Any] | None = None


def evaluate_file(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """{"network", "mean", "std", "n", "accuracies", "networks" (of a pool), "stored", ...}.

    Raises InputError for what cannot work.
    """
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    if (options.synset is None) == (options.baseline is None):
        raise InputError("give either --synset FILE or --baseline random|full")
    for key in ("num_eval", "ipc"):
        check_least(options, key, 1)
    if options.synset is None:
        subject = _baseline(options, objective, defaults, device)
    else:
        subject = _stored_set(options, options.synset, device)
    test, protocol = subject.test, subject.protocol
    pool = build_pool(
        options.eval_mode or "SS", subject.network, test.channels, test.num_classes, test.im_size, protocol.kind
    )
    compiles = options.compile and can_compile(tqdm.write)
    accuracies: dict[str, list[float]] = {}
    for name, network in pool.items():
        network.to(device)
        own = protocol.for_network(subject.dataset, name)
        total = options.num_eval * own.epochs_of_training
        bar = tqdm(total=total, desc=name, unit="epoch", dynamic_ncols=True)
        with bar, precision(options.precision, device):
            accuracies[name] = list(
                evaluate(
                    network,
                    subject.training_sets,
                    test,
                    own,
                    range(options.num_eval),
                    options.seed,
                    forward=torch.compile(network) if compiles else network,
                    on_epoch=bar.update,
                )
            )
    standing = principal(pool, subject.network)
    return {
        **point_of(accuracies, standing),
        "options": dataclasses.asdict(options),
        "evaluation": protocol.for_network(subject.dataset, standing).as_metadata(),
        "stored": subject.stored,
        "version": code_version(),
        "hardware": describe_hardware(device),
    }


def _stored_set(options: EvaluateOptions, file: str, device: torch.device) -> _Subject:
    if any(value is not None for value in (options.ipc, options.recipe, options.cifar100_stats)):
        raise InputError("--ipc, --recipe and --cifar100_stats are for baselines: a synthetic set has its own")
    synset, metadata = load_synset(file, device)
    lacks = [key for key in _NEEDED if key not in metadata]
    if lacks:
        raise InputError(f"{file} lacks {', '.join(lacks)}: it was saved without what an evaluation needs")
    zca = metadata.get("zca")  # absent from files older than the option
    if options.zca is not None and options.zca != (zca is not None):
        raise InputError(f"{file} was made {'without' if zca is None else 'with'} ZCA whitening: leave out --zca")
    protocol = EvaluationProtocol(**metadata["evaluation"])
    if "step_size" in metadata and (options.eval_protocol or protocol.kind) == "dc":
        # The step size that trajectory matching learned belongs to the set.
        protocol = dataclasses.replace(protocol, lr=metadata["step_size"])
    dataset = options.dataset or metadata["dataset"]
    check_dataset(dataset, options.subset)
    # Absent from files older than the options, as is zca.
    antialias = metadata.get("antialias", DataOptions.antialias) if options.antialias is None else options.antialias
    train, test = load_dataset(
        dataset,
        options.data_path,
        download=not options.no_download,
        image_size=options.image_size or metadata["image_size"],
        resize=options.resize or metadata.get("resize", DataOptions.resize),
        antialias=antialias,
        skip_corrupt=options.skip_corrupt,
        mean=metadata["mean"] if zca is None else None,
        std=metadata["std"] if zca is None else None,
        workers=options.workers,
    )
    if (test.channels, *test.im_size) != (synset.channel, *synset.im_size):
        raise InputError(
            f"the test images are {(test.channels, *test.im_size)}, "
            f"the synthetic ones {(synset.channel, *synset.im_size)}: give the --dataset it was made from"
        )
    if list(test.class_names) != metadata["class_names"]:
        raise InputError(f"{file} was made for other classes than those of {test.name}: give its own --dataset")
    if zca is not None:
        if fingerprint(train.images, zca["eps"]) != zca["fingerprint"]:
            raise InputError(
                f"{file} was whitened by other training images than those of {train.name}: "
                "give the --dataset it was made from"
            )
        test = whiten(test, whitening_of(train, zca["eps"]))
    batches = Batches(*synset.get(need_copy=True))
    network = options.model or metadata["network"]
    protocol = _override(protocol, options)
    return _Subject(
        lambda number: batches, test.to(device), metadata["dataset"], network, protocol, metadata.get("accuracy")
    )


def _baseline(options: EvaluateOptions, objective: str, defaults: dict[str, Any], device: torch.device) -> _Subject:
    """Trained as the objective's recipe for this dataset and ipc trains, so that the two can be compared."""
    dataset, ipc = options.dataset or DataOptions.dataset, options.ipc or DistillOptions.ipc
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

    def training_set(number: int) -> TrainingSet:
        if options.baseline == "full":
            return train
        return random_real(train, ipc, generator(options.seed, "random real images", number))

    protocol = _override(EvaluationProtocol.of(like), options)
    return _Subject(training_set, test, data.dataset, options.model or like.model, protocol)


def _override(protocol: EvaluationProtocol, options: EvaluateOptions) -> EvaluationProtocol:
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
