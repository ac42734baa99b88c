"""What an evaluation of a set is compared with: networks trained on real images by the same protocol, and kept.

random        as many real images as the set's budget pays for, drawn anew for each network
full          all real images, for as many epochs as an expert is trained
unaugmented   the set, and random real images, without any augmentation

What is trained on real images alone is kept in the cache folder, one network after the other, under the content of the
dataset and everything that the accuracies depend on, so it is trained once.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from common.config.command_line import find_recipe
from common.config.evaluate_options import EvaluateOptions
from common.config.options import BufferOptions
from common.images import disk_cache
from common.images.image_data import ImageData, content_of
from common.networks.architecture import architecture_of
from common.system import parallel
from common.system.errors import InputError
from common.system.seeds import generator
from common.system.text import counted, describe_seconds, mean_and_std
from common.training.coresets import random_real
from common.training.evaluation_setup import EvaluationSetup
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.real_images import random_draws
from common.training.train import (
    EvaluationProtocol,
    TrainingSet,
    accuracy,
    augmenter_of,
    batches_of_test,
    test_batch,
    train_epoch,
)

_FORMAT = 1  # of what is kept: raised when the same training would give other accuracies
_TIMED = 3  # steps that an estimate is made of

Figures = dict[str, Any]
"""`mean_and_std` of the networks of a kind, with their "accuracies", "seconds", and how many were "kept" before."""


@dataclass(frozen=True)
class _Reference:
    """Images to train on, and how. kept_by: what identifies the images, None for those that are not kept."""

    sets: Callable[[int], TrainingSet]
    protocol: EvaluationProtocol
    kept_by: str | None


def measure(
    options: EvaluateOptions, setup: EvaluationSetup, pool: Mapping[str, EvaluationNetwork]
) -> dict[str, dict[str, Figures]]:
    """Train the references that --references names; reference -> network -> its figures.

    The names of the result are "random", "full", "random_unaugmented" and "unaugmented" (the set itself).
    Raises InputError as `evaluate_pool`, but not for networks that diverge.
    """
    if setup.train is None:
        return {}
    train = setup.train()
    content = content_of(train.to("cpu"), setup.test.to("cpu"))["fingerprint"]
    return {
        what: {
            name: _figures(options, setup, name, network, what, each, content, train) for name, network in pool.items()
        }
        for what, each in _wanted(options, setup, train).items()
    }


def _wanted(options: EvaluateOptions, setup: EvaluationSetup, train: ImageData) -> dict[str, _Reference]:
    protocol, ipc, found = setup.protocol, setup.ipc or 0, dict[str, _Reference]()
    recipe = find_recipe("TM", setup.dataset, ipc).values

    def random(number: int) -> TrainingSet:
        return random_real(train, ipc, random_draws(options.seed, number))

    if "random" in options.references_asked:
        found["random"] = _Reference(random, protocol, f"random {ipc}")
    if "full" in options.references_asked:
        epochs = options.full_epochs or recipe.get("train_epochs", BufferOptions.train_epochs)
        # Kind dc trains for one epoch more than its number.
        full = replace(protocol, epochs=epochs - 1 if protocol.kind == "dc" else epochs)
        found["full"] = _Reference(lambda number: train, full, "full")
    if "unaugmented" in options.references_asked:
        # The rule for epochs that are not given would train for fewer of them without an augmentation.
        epochs_of_set = protocol.for_network(setup.dataset, setup.network).epochs
        plain = replace(protocol, strategy="", augmentation="none", epochs=epochs_of_set)
        found["random_unaugmented"] = _Reference(random, plain, f"random {ipc}")
        found["unaugmented"] = _Reference(setup.training_sets, plain, None)
    return found


def _figures(
    options: EvaluateOptions,
    setup: EvaluationSetup,
    name: str,
    network: EvaluationNetwork,
    what: str,
    reference: _Reference,
    content: str,
    train: ImageData,
) -> Figures:
    """Train what is missing of the networks of one reference, and keep each as it is finished."""
    protocol, test = reference.protocol.for_network(setup.dataset, name), setup.test
    file = None
    if reference.kept_by is not None:
        normalised = [*test.mean, *test.std, test.whitening.fingerprint if test.whitening else ""]
        built = architecture_of(network.network, test.channels, test.im_size)
        told = [reference.kept_by, name, built["hash"], json.dumps(protocol.as_metadata(), sort_keys=True)]
        names = [_FORMAT, *told, options.seed, options.precision, test.device.type, *normalised]
        file = disk_cache.named_file("reference", names)
    stored = disk_cache.read(file, content) if file is not None and parallel.is_main() else None
    trained: list[tuple[float | None, float]] = parallel.broadcast([] if stored is None else stored[1]["networks"])
    there = min(len(trained), options.num_eval)
    if there < options.num_eval:
        if what == "full" and parallel.is_main():
            tqdm.write(_estimate(network, train, test, protocol, options.num_eval - there, name))
        last = time.monotonic()

        def keep(_: str, found: float | None) -> None:
            nonlocal last
            trained.append((found, round(time.monotonic() - last, 3)))
            last = time.monotonic()
            if file is not None and parallel.is_main():
                disk_cache.write(file, content, {}, {"networks": trained})

        try:
            evaluate_pool(
                {name: network}, reference.sets, test, protocol, options.num_eval, options.seed, dataset=setup.dataset,
                together=options.networks_at_once, precision=options.precision,
                finished={name: [each for each, _ in trained]}, on_accuracy=keep, title=f"{what}, {name}",
            )  # fmt: skip
        except InputError:
            if len(trained) < options.num_eval or any(each is not None for each, _ in trained):
                raise  # it was not because all of them diverged, which "diverged" says
    accuracies, seconds = zip(*trained[: options.num_eval], strict=True)
    return {
        **mean_and_std(accuracies),
        "accuracies": list(accuracies),
        "seconds": round(sum(seconds), 3),
        "kept": there,
        "epochs": protocol.epochs_of_training,
        "images_per_class": setup.ipc if what.startswith("random") else None,
    }


def _estimate(
    network: EvaluationNetwork,
    train: ImageData,
    test: ImageData,
    protocol: EvaluationProtocol,
    count: int,
    name: str,
) -> str:
    """How long it takes to train on all images, from a few steps on a copy of the network, as a line for people."""
    trial, draws = copy.deepcopy(network.network), generator(0, "estimate")
    optimizer = torch.optim.SGD(trial.parameters(), lr=1e-6)
    took, some = [], min(len(train), _TIMED * protocol.batch)
    for images in (2, some):  # the first step also makes what later ones find; batch statistics take two images
        part = train.subset(torch.arange(images))
        begun = time.monotonic()
        train_epoch(
            trial, part, optimizer, protocol.batch, protocol.strategy, draws, dc_strategy=protocol.dc_strategy,
            augmenter=augmenter_of(protocol, test),
        )  # fmt: skip
        next(trial.parameters()).detach().sum().item()  # waits for the device
        took.append((time.monotonic() - begun) / math.ceil(images / protocol.batch))
    images = min(len(test), test_batch(test.im_size))
    part = test.subset(torch.arange(images))
    begun = time.monotonic()
    accuracy(trial, part)
    testing = (time.monotonic() - begun) * batches_of_test(len(test), test.im_size)
    seconds = count * (protocol.batches(len(train)) * took[-1] + testing)
    epochs, of = counted(protocol.epochs_of_training, "epoch"), counted(len(train), "image")
    return f"full: {epochs} of {of} for {count} x {name} take about {describe_seconds(seconds)}"
