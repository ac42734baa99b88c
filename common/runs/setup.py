"""What a distillation is made of: data, synthetic set, networks, from the options alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from common import frequency
from common.config.options import DistillOptions, Sources
from common.datasets import ClassSampler, ImageData
from common.networks import Network, build_network, has_batchnorm, has_dropout
from common.networks.pools import build_pool, principal
from common.synset.synset import SynSet, SynSetArgs
from common.system import parallel
from common.system.devices import can_compile, check_precision, resolve_device
from common.system.errors import InputError
from common.training.train import EvaluationProtocol


@dataclasses.dataclass
class Setting:
    """What a distillation is made of, built from the options alone.

    matched: the network of the objective. evaluated: the networks that evaluations train anew, by name; the
    accuracy of `principal` stands for them where one figure is wanted.
    """

    options: DistillOptions
    sources: Sources
    objective: str
    device: torch.device
    train: ImageData
    test: ImageData
    synset: SynSet
    matched: Network
    evaluated: dict[str, Network]
    principal: str
    compile: bool
    protocol: EvaluationProtocol

    def network(self) -> Network:
        """Another network like the matched one, in training mode, on the run's device."""
        return copy.deepcopy(self.matched).train()

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled, if --compile asks for it and this machine can; else the function."""
        return torch.compile(function) if self.compile else function

    @property
    def compiler(self) -> Callable[..., Any] | None:
        """torch.compile for objectives that compile functions of their own, or None where nothing is compiled.

        A size is compiled when it comes: with sizes left open, older versions fail on derivatives of derivatives.
        """
        return partial(torch.compile, dynamic=False) if self.compile else None

    def synthetic_images(self, batch_syn: int) -> Callable[[torch.Generator], Tensor]:
        """Draws the images of an update, grouped by class and differentiable: batch_syn of each class, or all (0)."""
        synset = self.synset
        if batch_syn == 0:
            return lambda draws: synset.decode()
        rows = torch.arange(len(synset.labels), device=self.device).split(synset.num_per_class)
        sampler, count = ClassSampler(rows), min(batch_syn, synset.num_per_class)
        return lambda draws: synset.get(sampler.draw(count, draws).flatten())[0]

    def check_chunk(self) -> None:
        """Raises InputError for --chunk with a network that takes its images all at once."""
        if self.options.chunk and has_batchnorm(self.matched):
            raise InputError(
                f"{self.options.model} normalises over the batch and takes all images at once: leave out --chunk"
            )

    def check_no_dropout(self) -> None:
        """Raises InputError for a network whose passes differ from one to the next, where several are one in theory."""
        if has_dropout(self.matched):
            raise InputError(
                f"{self.options.model} has dropout, which each pass over the same images would draw anew: "
                "give another --model to match, this one can be among those that --eval_mode tests"
            )


def prepare(options: DistillOptions, sources: Sources, objective: str) -> Setting:
    """Read the data, build the networks, draw the initial synthetic set. Raises InputError for what cannot work."""
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    train, test = options.load()
    options, sources = _fitted(options, sources, train.im_size)
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
    # GPUs round differently from one run to the next, and near ties decide which positions are kept.
    parallel.copy_from_main_([synset.positions, synset.coefficients])
    return Setting(
        options=options,
        sources=sources,
        objective=objective,
        device=device,
        train=train,
        test=test,
        synset=synset,
        matched=network,
        evaluated={name: each.to(device) for name, each in pool.items()},
        principal=principal(pool, options.model),
        compile=options.compile and can_compile(tqdm.write),
        protocol=EvaluationProtocol.of(options),
    )


def _fitted(options: DistillOptions, sources: Sources, im_size: tuple[int, ...]) -> tuple[DistillOptions, Sources]:
    """What the options leave to the size of the images: all pixels of one, and a recipe's step in other units."""
    if options.transform == "identity" and options.msz_per_channel == 0:
        options = dataclasses.replace(options, msz_per_channel=math.prod(im_size))
    # Recipes state lr_freq in units of the DCT, those of plain pixels aside, which have a step of their own.
    if options.transform in ("dft", "dwt") and sources["lr_freq"] not in ("flag", "default"):
        frequency.check_transform(options.transform, im_size)
        lr_freq = frequency.convert_step(options.lr_freq, im_size, "dct", options.transform)
        options = dataclasses.replace(options, lr_freq=lr_freq)
        sources = sources | {"lr_freq": f"{sources['lr_freq']} (converted from the dct's units)"}
    return options, sources
