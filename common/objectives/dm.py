"""Distribution matching (DM): in random networks, real and synthetic images of a class have the same mean features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common.config.checks import refuse_step_size
from common.config.options import ClassMatchingOptions, Sources
from common.datasets import ClassSampler, Gathered
from common.matching import augment
from common.matching.distribution import match
from common.networks import Network, has_batchnorm, reinitialise
from common.runs.loop import distill
from common.runs.setup import Setting, prepare
from common.runs.sharding import ClassShare
from common.system import parallel
from common.system.devices import precision
from common.system.seeds import derive, generator, seeded

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
    network, mine = dealt_out(setting)
    embed = setting.compiled(network.embed)
    real_sampler = ClassSampler(train)
    synthetic_images = setting.synthetic_images(options.batch_syn)
    # Batch statistics run over all classes at once: such a network cannot be fed in pieces.
    chunk = (
        None if has_batchnorm(network) else options.chunk or default_chunk(device, options.batch_real, train.im_size)
    )

    def step(iteration: int) -> Tensor:
        reinitialise(network, derive(seed, "network", iteration))
        drawn = real_sampler.draw(options.batch_real, generator(seed, "real", iteration))
        images = synthetic_images(generator(seed, "synthetic", iteration))
        augmentation = augment.sample(
            options.strategy, classes, generator(seed, "augmentation", iteration), train.im_size, device=device
        )

        def matched(synthetic: Tensor) -> tuple[Tensor, Tensor]:
            real = Gathered(train, drawn[mine.rows].flatten())
            return match(embed, real, synthetic, mine.count, augmentation[mine.rows], chunk)

        # Other classes, other dropout: processes do not all draw the same.
        numbers = (iteration, mine.first) if mine.first else (iteration,)
        with precision(options.precision, device), seeded(network, seed, "dropout", *numbers):
            loss, gradient = mine.match(images, matched)
        return mine.update(synset, images, loss, gradient)

    distill(setting, step)


def default_chunk(device: torch.device, batch_real: int, im_size: Sequence[int]) -> int:
    """Images per pass: on a CPU the real ones of one class; on a GPU about 4 GB of activations, untried."""
    return batch_real if device.type == "cpu" else max(1, _GPU_PIXELS // math.prod(im_size))


def dealt_out(setting: Setting) -> tuple[Network, ClassShare]:
    """The network to match with, and the classes that this process matches.

    Batch statistics are of all classes. On GPUs the processes put them together; where they cannot, one matches all.
    """
    network, classes = setting.network().requires_grad_(False), setting.train.num_classes
    if parallel.world() == 1 or not has_batchnorm(network):
        return network, ClassShare.of(classes)
    if setting.device.type == "cuda" and parallel.world() <= classes:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network), ClassShare.of(classes)
    reason = "on a CPU" if setting.device.type != "cuda" else f"with more processes than the {classes} classes"
    tqdm.write(
        f"{setting.options.model} normalises over the batch, which is not shared {reason}: "
        f"one of the {parallel.world()} processes matches all classes, and the others wait"
    )
    return network, ClassShare.of(classes, undivided=True)
