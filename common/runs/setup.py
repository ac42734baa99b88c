"""Set up a distillation from its options: data, synthetic set and networks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common import frequency
from common.config import rule
from common.config.options import DistillOptions, Sources
from common.config.sets import bits_of, new_set
from common.costs.memory import check_memory
from common.images.image_data import ImageData, content_of
from common.networks import Network, build_network, has_batchnorm, has_dropout
from common.networks.graphs import can_capture
from common.networks.pools import build_pool, principal
from common.recipes.shapes import DataShape, known_shape
from common.runs.finished import CONFIG, SUMMARY
from common.runs.identity import folder_of
from common.schemas import door
from common.synset.base import LearnedSet, order
from common.synset.packed import coded_images
from common.system import parallel
from common.system.devices import can_compile, check_precision, resolve_device
from common.system.errors import InputError
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol

_SHARES = (0.5, 0.75, 1.0, 1.5)  # of the usual number of images per class, that --n auto tries
_TRIED_IMAGES = 100_000  # that each of the networks for it is trained on, about 400 steps of 256


@dataclass
class Setup:
    """What a distillation needs, on the run's device. `options` are completed with what depends on the data."""

    options: DistillOptions
    sources: Sources
    device: torch.device
    train: ImageData
    test: ImageData
    validation: ImageData | None
    """Training images that are held back to choose the best set; None for none. `train` is without them."""
    synset: LearnedSet
    network: Network
    """The network to match (--model), in training mode."""
    pool: dict[str, Network]
    """The evaluation networks (--eval_mode) by name; their weights are drawn again for each evaluation."""
    principal: str
    """The name of the evaluation network whose accuracy counts as the accuracy of the run."""
    protocol: EvaluationProtocol
    compile: bool
    graphs: bool
    content: dict[str, Any]
    """What the dataset holds, as `content_of` tells it."""
    tried: TriedCounts | None = None
    """With --n auto, the numbers of images that were tried."""


def set_up(options: DistillOptions, sources: Sources, objective: str | None = None) -> Setup:
    """Read the data, build the networks, and make the initial synthetic set. Raises InputError for bad options.

    objective: names the run folder, in which a run that is resumed finds what --n auto has tried.
    """
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    warns = objective is not None and not options.dry_run and not _seems_finished(options, objective)
    options.check_images()
    known = known_shape(options.dataset, options.image_size)
    if warns and known is not None:
        check_memory(objective or "", options, known, device, loaded=False)
    train, test = options.load()
    whole, (train, validation) = train, options.hold_back(train)
    options, ruled = rule.decide(options, sources, train.channels, train.im_size, train.smallest_class)
    if ruled and parallel.is_main():
        tqdm.write(f"no recipe for {train.name}, by rule (docs/recipes.md): {' '.join(ruled)}")
    options, sources = fitted(options, sources, train.im_size)
    if warns and known is None:
        check_memory(objective or "", options, DataShape.of(whole, test), device, loaded=True)
    content = content_of(whole, test)
    network = build_network(options.model, train.channels, train.num_classes, train.im_size).to(device)
    pool = build_pool(
        options.eval_mode, options.model, train.channels, train.num_classes, train.im_size, options.eval_protocol
    )
    whole, test = whole.to(device), test.to(device)
    train, validation = whole.same_images(train), validation and whole.same_images(validation)
    tried = None
    if options.n == "auto":
        resumes = options.resume != "never"
        before = _tried_before(folder_of(options, objective)) if objective and resumes else None
        tried = parallel.broadcast(before) or try_counts(options, train, network.train())
    synset = new_set(options, train, device, None if tried is None else tried.best)
    synset.init(train, train.labels, train.class_indices)
    # GPUs do not always round alike, and near ties decide which positions are kept: processes might disagree.
    parallel.copy_from_main_(synset.shared_parts())
    return Setup(
        options=options,
        sources=sources,
        device=device,
        train=train,
        test=test,
        validation=validation,
        synset=synset,
        network=network.train(),
        pool={name: each.to(device) for name, each in pool.items()},
        principal=principal(pool, options.model),
        protocol=EvaluationProtocol.of(options),
        compile=options.compile and can_compile(),
        graphs=options.cuda_graphs and can_capture(device),
        content=content,
        tried=tried,
    )


def _seems_finished(options: DistillOptions, objective: str) -> bool:
    """Whether the run folder has a summary, so that nothing is left to compute unless its files are damaged."""
    return options.resume != "never" and (folder_of(options, objective) / SUMMARY).exists()


@dataclass(frozen=True)
class TriedCounts:
    """Numbers of images per class that were tried for --n auto, and the accuracies of networks trained on them."""

    accuracies: dict[int, float]
    """fractions of the training images that no set holds"""

    @property
    def best(self) -> int:
        """The number with the best accuracy, of equal ones the smallest."""
        return min(self.accuracies, key=lambda count: (-self.accuracies[count], count))

    def as_metadata(self) -> dict[str, float]:
        """The accuracies by the number of images, for JSON."""
        return {str(count): each for count, each in self.accuracies.items()}

    def __str__(self) -> str:
        told = ", ".join(f"{count}: {100 * each:.2f} %" for count, each in self.accuracies.items())
        return f"--n auto: {self.best} images per class, of {told} of the training images that were held back"


def try_counts(options: DistillOptions, train: ImageData, network: Network) -> TriedCounts:
    """Train a network on the initial coded set of several sizes, and test it on training images that are in none.

    As many images of each class are held back, a fifth of the smallest: they come after those that sets are drawn from,
    so no more than the other four fifths are tried. All networks begin with the same weights and see as many images.
    Raises InputError if a class has one image, or if none of the numbers of images suits the budget.
    """
    smallest = train.smallest_class
    if smallest < 2:
        raise InputError("--n auto holds back images of every class, and one class has a single image: give --n 1")
    most = smallest - max(1, smallest // 5)
    usual = coded_images(bits_of(options, train), train.channels, train.im_size)
    counts = sorted({max(1, min(most, round(usual * share))) for share in _SHARES})
    orders = [order(options.seed, c, len(rows))[most:smallest] for c, rows in enumerate(train.class_indices)]
    held = torch.cat([rows[some] for rows, some in zip(train.class_indices, orders, strict=True)])
    test = train.subset(held)
    accuracies: dict[int, float] = {}
    for count in counts:
        synset = new_set(options, train, train.device, count)
        try:
            synset.init(train, train.labels, train.class_indices)
        except InputError:  # the budget is too small for so many images
            if count == counts[-1] and not accuracies:
                raise
            continue
        batches = Batches(*synset.stored().get(need_copy=True))
        protocol = EvaluationProtocol.of(options)
        epochs = max(1, round(_TRIED_IMAGES / len(batches.labels)))
        found = evaluate_pool(
            {options.model: EvaluationNetwork(network)}, lambda number, each=batches: each, test,  # type: ignore[misc]
            dataclasses.replace(protocol, epochs=epochs), 1, options.seed, dataset=options.dataset,
            precision=options.precision, title=f"n {count}", leave=False,
        )[options.model][0]  # fmt: skip
        accuracies[count] = found or 0.0
    return TriedCounts(parallel.broadcast(accuracies))


def _tried_before(folder: Path) -> TriedCounts | None:
    """What --n auto tried when the run in this folder was begun; None if none was. Raises InputError as `door.read`."""
    from common.schemas.run import REMEDY, Tried

    if not (folder / CONFIG).exists():
        return None
    told = door.read(folder / CONFIG, Tried, REMEDY).get("tried_n")
    return told and TriedCounts({int(count): float(accuracy) for count, accuracy in told.items()})


def check_chunk(options: DistillOptions, network: nn.Module) -> None:
    """Raises InputError for --chunk with a BatchNorm network, which needs all images in one pass."""
    if options.chunk and has_batchnorm(network):
        raise InputError(f"{options.model} normalises over the batch and takes all images at once: leave out --chunk")


def check_no_dropout(options: DistillOptions, network: nn.Module) -> None:
    """Raises InputError for a network with dropout, whose repeated passes over the same images would differ."""
    if has_dropout(network):
        raise InputError(
            f"{options.model} has dropout, which each pass over the same images would draw anew: "
            "give another --model to match, this one can be among those that --eval_mode tests"
        )


def fitted(options: DistillOptions, sources: Sources, im_size: tuple[int, ...]) -> tuple[DistillOptions, Sources]:
    """Complete the options that depend on the image size: k of plain pixels, and the unit of a recipe's lr_freq."""
    if options.transform == "identity" and options.msz_per_channel == 0:
        options = dataclasses.replace(options, msz_per_channel=math.prod(im_size))
    # Recipes give lr_freq in units of the DCT. Only plain pixels have an lr_freq of their own in the recipes.
    if options.transform in ("dft", "dwt") and sources["lr_freq"] not in ("flag", "default"):
        frequency.check_transform(options.transform, im_size)
        lr_freq = frequency.convert_step(options.lr_freq, im_size, "dct", options.transform)
        options = dataclasses.replace(options, lr_freq=lr_freq)
        sources = sources | {"lr_freq": f"{sources['lr_freq']} (converted from the dct's units)"}
    return options, sources
