"""The images that a baseline trains on: `evaluate.py --baseline random|herding|kcenter|full`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.config.evaluate_options import EvaluateOptions
from common.config.sets import bits_of_image
from common.datasets import ImageData, draw_per_class
from common.networks import build_network
from common.system import parallel
from common.system.devices import precision
from common.system.seeds import generator
from common.training.coresets import RULES, random_real, trained_features
from common.training.stored_real import Budget, Choose, store_real
from common.training.train import Batches, EvaluationProtocol, TrainingSet


def real_images(
    options: EvaluateOptions, train: ImageData, ipc: int, model: str, protocol: EvaluationProtocol
) -> tuple[Callable[[int], TrainingSet], dict[str, Any] | None]:
    """A function from a network's number to the real images to train it on, and what they take in files.

    The latter is that of `store_real`, None without --stored_as. Raises InputError where there are too few images, and
    as `store_real`.
    """
    if options.stored_as is not None:
        bits = options.bits_per_class or ipc * bits_of_image(train)
        budget = Budget(bits, headers=options.count_headers is not False)
        choose = _chooser(options, train, model, protocol)
        stored, storage = store_real(train, choose, options.stored_as, budget, options.n)
        return lambda number: stored, storage
    if options.baseline == "random":
        return lambda number: random_real(train, ipc, random_draws(options.seed, number)), None
    if options.baseline == "full":
        return lambda number: train, None
    chosen = _chooser(options, train, model, protocol)(ipc).flatten()
    coreset = Batches(train.batch(chosen), train.labels[chosen])
    return lambda number: coreset, None


def _chooser(options: EvaluateOptions, train: ImageData, model: str, protocol: EvaluationProtocol) -> Choose:
    """The rule of the baseline. What --baseline random draws for its first network is what it draws for all here."""
    if options.baseline == "random":
        return lambda n: draw_per_class(train, n, random_draws(options.seed, 0))
    rule, features = RULES[options.baseline or ""], None
    if parallel.is_main():  # GPUs round differently from run to run, so the first process chooses for all
        network = build_network(model, train.channels, train.num_classes, train.im_size).to(train.device)
        with precision(options.precision, train.device):
            features = trained_features(network, train, protocol, options.coreset_epochs, options.seed)

    def choose(n: int) -> Tensor:
        chosen = None if features is None else rule(features, train.class_indices, n).cpu()
        on_device: Tensor = parallel.broadcast(chosen).to(train.device)
        return on_device

    return choose


def random_draws(seed: int, number: int) -> torch.Generator:
    """The generator by which the random real images of a network are drawn."""
    return generator(seed, "random real images", number)
