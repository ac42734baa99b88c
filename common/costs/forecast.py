"""What a run takes on this machine, before it begins: time and peak memory, measured in half a second and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tqdm import tqdm

from common.config.options import BufferOptions, DistillOptions
from common.costs.estimate import LIBRARIES, Estimate, estimate, estimate_experts
from common.costs.speed import Speed, measure, measure_set
from common.images.image_data import ImageData
from common.recipes.shapes import DataShape
from common.synset.base import LearnedSet
from common.system import parallel, start
from common.system.devices import Precision, resident_memory
from common.system.text import counted, describe_bytes, describe_seconds

# What is loaded only when a set is written and drawn, in bytes.
_LATER = 120 * 2**20
# Peak memory on a CPU beside that of the tensors in use, where freed memory is kept: it lies between the blocks in use,
# and convolutions have workspaces. Measured with DM at 32, 64 and 128 px (results/memory_cpu.csv).
_KEPT = 2.0
_BUSY = 1.5  # times as long: below, other programs are not worth a word

# Of writing a set, its pictures and the page after an evaluation, on a core of an AMD EPYC at 32 px; more for packed
# sets, whose payload is measured.
WRITING = 1.5


@dataclass(frozen=True)
class Forecast:
    """The time that is left of a run, in seconds, and the peak memory of each of its processes, in bytes.

    The time is that of a machine with nothing else to do.
    """

    updates: float
    evaluations: float
    experts: float
    memory: int
    speed: Speed

    @property
    def seconds(self) -> float:
        """The time of everything that is left."""
        return self.updates + self.evaluations + self.experts

    def __str__(self) -> str:
        return f"about {describe_seconds(self.seconds)}{self.busy}, {describe_bytes(self.memory)} of memory at its peak"

    @property
    def busy(self) -> str:
        """In words, how much longer it takes while the machine is as busy as now; "" if it is idle."""
        return f" ({self.speed.busy:.1f} times as long while other programs run)" if self.speed.busy > _BUSY else ""


def needs_of(
    objective: str, options: DistillOptions | BufferOptions, shape: DataShape, device: torch.device
) -> Estimate | None:
    """The estimate for these options, None where none can be made, as for an objective of one's own.

    Options that cannot work have none, either: what is wrong with them is said when they are used.
    """
    try:
        if isinstance(options, BufferOptions):
            return estimate_experts(options, shape, device)
        return estimate(objective, options, shape, device=device)
    except Exception:  # whatever a network or objective of one's own raises: a run does not need its estimate
        return None


def peak_of(needs: Estimate, device: torch.device, loaded: bool) -> int:
    """The peak memory in bytes of a run in this process; on a CPU with the libraries that it has loaded here.

    loaded: whether the images are in memory already.
    """
    if device.type != "cpu":
        return needs.memory_bytes
    images = dict(needs.parts)["images"]
    tensors = needs.memory_bytes - LIBRARIES - images
    beside = resident_memory() - (images if loaded else 0)
    return images + round(tensors * (_KEPT if start.keeps_memory else 1)) + max(LIBRARIES, beside + _LATER)


def forecast(
    options: DistillOptions, needs: Estimate, shape: DataShape, device: torch.device, synset: LearnedSet | None = None,
    begun: int = 0, seconds: float = 0.3,
) -> Forecast:  # fmt: skip
    """The forecast of a distillation of which `begun` iterations are made.

    needs: its estimate. synset: the set itself, of which a packed one is measured, too; None if the images are not
    loaded yet. seconds: of measuring.
    """
    memory = peak_of(needs, device, synset is not None)  # before anything else is measured
    count = math.inf if synset is None else len(synset.labels)
    speed = measure(
        options.model, shape, int(min(options.batch_train, count)), device, options.strategy, options.precision, seconds
    )
    decoding, storing = (0.0, 0.0) if synset is None else measure_set(synset)
    left = 1 - begun / max(1, options.Iteration)
    points = needs.points * left + (1 - left)  # of a run that has begun the last one is always to come
    rate = speed.flops * parallel.world()
    return Forecast(
        left * needs.distill_flops / rate + (options.Iteration - begun) * decoding,
        points * (needs.evaluation_flops / max(1, needs.points) / rate + storing + WRITING),
        0.0,
        memory,
        speed,
    )


def forecast_experts(
    options: BufferOptions, needs: Estimate, shape: DataShape, device: torch.device, missing: int,
    loaded: bool = True, seconds: float = 0.3,
) -> Forecast:  # fmt: skip
    """The forecast of training this many `missing` experts of a buffer.

    needs: the estimate of all of them. loaded: whether the images are in memory. seconds: of measuring.
    """
    memory, batch = peak_of(needs, device, loaded), min(options.batch_train, shape.train_images)
    speed = measure(options.model, shape, batch, device, options.strategy, options.precision, seconds)
    # A process trains whole experts.
    rounds = math.ceil(missing / parallel.world())
    experts = rounds * needs.expert_flops / options.num_experts / speed.flops
    return Forecast(0.0, 0.0, experts, memory, speed)


def forecast_evaluation(
    model: str, needs: Estimate, shape: DataShape, device: torch.device, batch: int, strategy: str, kind: Precision
) -> Forecast:
    """The forecast of one evaluation, of networks as fast as `model` in FLOPs. kind: the precision of the networks."""
    memory = peak_of(needs, device, loaded=True)
    speed = measure(model, shape, batch, device, strategy, kind, 1.0)
    return Forecast(0.0, needs.evaluation_flops / speed.flops / parallel.world(), 0.0, memory, speed)


def say_forecast_experts(
    options: BufferOptions, train: ImageData, test: ImageData, missing: int, folder: object
) -> None:
    """Print one line about the `missing` experts that are about to be trained for a folder; nothing if there are none.

    Nothing is printed, either, where no estimate can be made.
    """
    shape = DataShape.of(train, test)
    needs = needs_of("TM", options, shape, train.device) if missing and parallel.is_main() else None
    if needs is not None:
        told = forecast_experts(options, needs, shape, train.device, missing)
        tqdm.write(f"estimate: {told}; {counted(missing, 'expert')} to train for {folder}")


def say_forecast(
    objective: str, options: DistillOptions, train: ImageData, test: ImageData, synset: LearnedSet, begun: int
) -> None:
    """Print one line about a run that is about to start or to go on; nothing where no estimate can be made.

    begun: iterations that have been made.
    """
    shape = DataShape.of(train, test)
    needs = needs_of(objective, options, shape, train.device) if parallel.is_main() else None
    if needs is None:
        return
    told = forecast(options, needs, shape, train.device, synset, begun)
    tqdm.write(
        f"estimate: {told}; {counted(len(synset.labels), 'synthetic image')}, {synset.num_per_class} per class, in "
        f"{budget_of(options)}"
    )


def budget_of(options: DistillOptions) -> str:
    """The budget of a set in words: "the budget of 1 image per class", "98,304 bits per class"."""
    if options.bits_per_class is not None:
        return f"{options.bits_per_class:,} bits per class"
    return f"the budget of {counted(options.ipc, 'image')} per class"
