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
from common.synset.base import LearnedSet
from common.synset.packed import PackedArgs, PackedSet, coded_images
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
    synset: LearnedSet
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
    synset = new_set(options, train, device)
    synset.init(train, train.labels, train.class_indices)
    # GPUs do not always round alike, and near ties decide which positions are kept: processes might disagree.
    parallel.copy_from_main_(synset.shared_parts())
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


def new_set(options: DistillOptions, train: ImageData, device: torch.device) -> LearnedSet:
    """The synthetic set that the options describe, before it is initialised. Raises InputError for bad options."""
    common: dict[str, Any] = {
        "channel": train.channels,
        "num_classes": train.num_classes,
        "im_size": train.im_size,
        "device": device,
        "optimizer": options.optimizer_used,
        **{
            key: getattr(options, key)
            for key in ("ipc", "msz_per_channel", "lr_freq", "mom_freq", "selection", "selection_images", "seed")
        },
    }
    if options.storage == "fp32":
        return SynSet(SynSetArgs(**common, transform=options.transform))
    bits = options.bits_per_class or 32 * options.ipc * train.channels * math.prod(train.im_size)
    count = options.n or 0
    if options.storage == "coded" and not count:
        smallest = min(len(rows) for rows in train.class_indices)
        count = min(smallest, coded_images(bits, train.channels, train.im_size))
    return PackedSet(
        PackedArgs(
            **common,
            bits_per_class=bits,
            storage=options.storage,
            colour=options.colour or ("opponent" if options.joint and train.channels == 3 else "rgb"),
            block=options.block,
            kept="joint" if options.joint else "shared",
            num_per_class=count,
        )
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
