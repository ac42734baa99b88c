"""Distribution matching (DM): in random networks, real and synthetic images of a class have the same mean features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common import augment
from common.datasets import ClassSampler, Gathered
from common.devices import precision
from common.distill import distill
from common.matching.distribution import match
from common.networks import has_batchnorm, reinitialise
from common.options import ClassMatchingOptions, Sources, refuse_step_size
from common.seeds import derive, generator, seeded
from common.setting import prepare

_GPU_PIXELS = 4096 * 32 * 32


@dataclass
class Options(ClassMatchingOptions):
    """Distil a dataset by distribution matching (DM) of FreD coefficients."""


def run(options: Options, sources: Sources, objective: str = "DM") -> None:
    """Distil as the options say. objective: what the run is filed under."""
    refuse_step_size(options, sources)
    setting = prepare(options, sources, objective)
    setting.check_chunk()
    train, synset, device = setting.train, setting.synset, setting.device
    classes, seed = train.num_classes, options.seed
    network = setting.network().requires_grad_(False)
    embed = setting.compiled(network.embed)
    real_sampler = ClassSampler(train)
    synthetic_images = setting.synthetic_images(options.batch_syn)
    # Batch statistics run over all classes at once: such a network cannot be fed in pieces.
    chunk = (
        None if has_batchnorm(network) else options.chunk or default_chunk(device, options.batch_real, train.im_size)
    )

    def step(iteration: int) -> Tensor:
        reinitialise(network, derive(seed, "network", iteration))
        real = Gathered(train, real_sampler.draw(options.batch_real, generator(seed, "real", iteration)).flatten())
        images = synthetic_images(generator(seed, "synthetic", iteration))
        drawn = augment.sample(
            options.strategy, classes, generator(seed, "augmentation", iteration), train.im_size, device=device
        )
        with precision(options.precision, device), seeded(network, seed, "dropout", iteration):
            loss, gradient = match(embed, real, images, classes, drawn, chunk)
        synset.optim_zero_grad()
        images.backward(gradient)
        synset.optim_step()
        return loss

    distill(setting, step)


def default_chunk(device: torch.device, batch_real: int, im_size: Sequence[int]) -> int:
    """Images per pass: on a CPU the real ones of one class; on a GPU about 4 GB of activations, untried."""
    return batch_real if device.type == "cpu" else max(1, _GPU_PIXELS // math.prod(im_size))
