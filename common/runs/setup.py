"""Set up a distillation from its options: data, synthetic set and networks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common import frequency
from common.config.options import DistillOptions, Sources
from common.images.image_data import ImageData, content_of
from common.networks import Network, build_network, has_batchnorm, has_dropout
from common.networks.pools import build_pool, principal
from common.synset.synset import SynSet, SynSetArgs
from common.system import parallel
from common.system.devices import can_compile, check_precision, resolve_device
from common.system.errors import InputError
from common.training.train import EvaluationProtocol


@dataclass
class Setup:
    """What a distillation needs, on the run's device. `options` are completed with what depends on the data."""

    options: DistillOptions
    sources: Sources
    device: torch.device
    train: ImageData
    test: ImageData
    synset: SynSet
    network: Network
    """The network to match (--model), in training mode."""
    pool: dict[str, Network]
    """The evaluation networks (--eval_mode) by name; their weights are drawn again for each evaluation."""
    principal: str
    """The name of the evaluation network whose accuracy counts as the accuracy of the run."""
    protocol: EvaluationProtocol
    compile: bool
    content: dict[str, Any]
    """What the dataset holds, as `content_of` tells it."""


def set_up(options: DistillOptions, sources: Sources) -> Setup:
    """Read the data, build the networks, and make the initial synthetic set. Raises InputError for bad options."""
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    train, test = options.load()
    options, sources = _fitted(options, sources, train.im_size)
    content = content_of(train, test)
    network = build_network(options.model, train.channels, train.num_classes, train.im_size).to(device)
    pool = build_pool(
        options.eval_mode, options.model, train.channels, train.num_classes, train.im_size, options.eval_protocol
    )
    train, test = train.to(device), test.to(device)
    synset = SynSet(
        SynSetArgs(
            channel=train.channels,
            num_classes=train.num_classes,
            im_size=train.im_size,
            device=device,
            ipc=options.ipc,
            msz_per_channel=options.msz_per_channel,
            lr_freq=options.lr_freq,
            mom_freq=options.mom_freq,
            transform=options.transform,
            selection=options.selection,
            selection_images=options.selection_images,
            seed=options.seed,
        )
    )
    synset.init(train, train.labels, train.class_indices)
    # GPUs do not always round alike, and near ties decide which positions are kept: processes might disagree.
    parallel.copy_from_main_([synset.positions, synset.coefficients])
    return Setup(
        options=options,
        sources=sources,
        device=device,
        train=train,
        test=test,
        synset=synset,
        network=network.train(),
        pool={name: each.to(device) for name, each in pool.items()},
        principal=principal(pool, options.model),
        protocol=EvaluationProtocol.of(options),
        compile=options.compile and can_compile(),
        content=content,
    )


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


def _fitted(options: DistillOptions, sources: Sources, im_size: tuple[int, ...]) -> tuple[DistillOptions, Sources]:
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
