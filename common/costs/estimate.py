"""Estimates the FLOPs, time and memory of a distillation before it is run.

    estimate("TM", options, SHAPES["CIFAR10"], device="cuda")

Each kind of update and pass is executed once on the meta device, where tensors have a shape and no data (`meter`), and
multiplied by how often the run executes it. Compilation and reduced precision are not taken into account, nor is
augmentation, whose cost is small compared with that of a network. Memory is that of fp32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch

from common.config.loops import HasLoops, loops
from common.config.options import BufferOptions, DistillOptions
from common.config.sets import new_set
from common.costs import costs
from common.costs.meter import Cost
from common.images.decoded import MAPPED_SHARE
from common.images.image_data import kept_normalised
from common.matching import distribution, gradient, trajectory
from common.networks.pools import pool_names, principal
from common.recipes.shapes import SHAPES, DataShape
from common.system.devices import accelerator, resolve_device, total_memory
from common.training.pool import networks_at_once
from common.training.train import EvaluationProtocol, test_batch

__all__ = ["RATES", "SHAPES", "DataShape", "Estimate", "estimate", "seconds"]

# An option that tells the objectives' options apart: only DC has dis_metric and only TM syn_steps; DM and DC have
# batch_real.
_OWN_OPTION = {"DC": "dis_metric", "DM": "batch_real", "TM": "syn_steps"}

# Memory of libraries, in bytes: on a CPU core TM takes this much more than its tensors (results/README.md, Memory).
LIBRARIES = 300 * 2**20

# Sustained TFLOP/s in fp32 and the source of the figure, by type of device.
RATES: dict[str, tuple[float, str]] = {
    "cpu": (0.12, "measured on two cores of an AMD EPYC, eager: dm_cifar10 in results/steps_cpu.json"),
    "cuda": (10.0, "assumed for fp32 on an A100 or H100, not measured"),
}


@dataclass(frozen=True)
class Estimate:
    """The cost of a run: FLOPs of its convolutions and matrix products, and the peak memory of the device."""

    distill_flops: float
    evaluation_flops: float
    expert_flops: float
    memory_bytes: int
    points: int = 0
    """evaluations of the set, the first and the last among them"""
    parts: tuple[tuple[str, int], ...] = ()
    """what the memory is made of, (what, bytes): the images, and of the others, which come after one another, each"""

    @property
    def flops(self) -> float:
        """FLOPs of distillation, evaluations and experts together."""
        return self.distill_flops + self.evaluation_flops + self.expert_flops


def estimate(
    objective: str,
    options: DistillOptions,
    shape: DataShape,
    buffer: BufferOptions | None = None,
    device: str | torch.device | None = None,
) -> Estimate:
    """Estimate the cost of a distillation with these options, its evaluations and, with `buffer`, its experts.

    objective: DC, DM or TM, or one in a folder, such as ImageNet-abcde/DM. shape: the sizes of the dataset. buffer:
    options of the experts, None to leave the experts out. device: where the run would execute, which need not exist
    here; None takes the device of the options.
    Raises ValueError for options of another objective, and InputError for a network or set that cannot be built.
    """
    kind, own = objective.rpartition("/")[2], vars(options)
    if _OWN_OPTION.get(kind) not in own or (kind == "DM" and _OWN_OPTION["DC"] in own):
        raise ValueError(f"{type(options).__module__} has no options for the objective {objective}")
    where = resolve_device(options.device) if device is None else torch.device(device)
    cell = workload(options, shape)
    if kind == "DC":
        memory = total_memory(where) if device is None else None
        chunk = options.chunk or gradient.default_chunk(
            where, own["batch_real"], options.compile, shape.im_size, memory
        )
        outer, inner = loops(cast("HasLoops", options))
        distill = costs.dc_iteration(
            cell, own["batch_real"], chunk, own["dis_metric"], outer, inner, options.batch_train
        )
    elif kind == "TM":
        one = costs.tm_update(
            cell, own["syn_steps"], options.chunk or trajectory.default_chunk(where, shape.im_size), own["unroll"]
        )
        distill = Cost(own["experts_per_iteration"] * one.flops, one.bytes)
    else:
        chunk = options.chunk or distribution.default_chunk(where, own["batch_real"], shape.im_size)
        distill = costs.dm_update(cell, own["batch_real"], chunk)
    evaluation = _evaluation(cell, options, shape, where)
    experts = Cost(0, 0) if buffer is None else _experts(shape, buffer)
    data = _held(shape, options.zca, where)
    return Estimate(
        options.Iteration * distill.flops,
        evaluation.flops,
        experts.flops,
        LIBRARIES + data + max(distill.bytes, evaluation.bytes, experts.bytes),
        _points(options),
        (("images", data), ("updates", distill.bytes), ("evaluations", evaluation.bytes), ("experts", experts.bytes)),
    )


def estimate_experts(options: BufferOptions, shape: DataShape, device: torch.device) -> Estimate:
    """Estimate the cost of training `num_experts` experts. Raises InputError for a network that cannot be built."""
    experts, data = _experts(shape, options), _held(shape, options.zca, device)
    parts = (("images", data), ("experts", experts.bytes))
    return Estimate(0, 0, experts.flops, LIBRARIES + data + experts.bytes, parts=parts)


def workload(options: DistillOptions, shape: DataShape) -> costs.Workload:
    """What determines the cost of an update with these options. Raises InputError for a set that cannot be built."""
    packed = None
    if options.storage != "fp32":
        made = new_set(options, shape, "meta")
        packed = replace(made.args, num_per_class=made.num_per_class, im_size=made.im_size)
    return costs.Workload(
        options.model,
        shape.uncounted,
        options.ipc,
        options.msz_per_channel or math.prod(shape.im_size),
        options.transform,
        getattr(options, "batch_syn", 0),
        options.optimizer_used,
        packed,
    )


def _held(shape: DataShape, zca: bool, device: torch.device) -> int:
    """The bytes of images in memory: none on a CPU where they are mapped from a file.

    On an accelerator of this machine those that are kept normalised count, too; one that is elsewhere cannot be asked.
    """
    data = shape.data_bytes * (4 // shape.value_bytes if zca else 1)
    mapped = device.type == "cpu" and not zca and data > MAPPED_SHARE * (total_memory(device) or math.inf)
    there = accelerator()
    if not zca and there is not None and there.type == device.type:
        values = shape.channels * math.prod(shape.im_size)
        data += sum(kept_normalised(count * values, device) for count in (shape.train_images, shape.test_images))
    return 0 if mapped else data


def seconds(estimate: Estimate, tflops: float) -> float:
    """The time of a run in seconds at this many TFLOP/s."""
    return estimate.flops / (tflops * 1e12)


def _evaluation(cell: costs.Workload, options: DistillOptions, shape: DataShape, device: torch.device) -> Cost:
    """The cost of all evaluations of a run: before the first update, every eval_it iterations, and at the end."""
    points = _points(options)
    protocol = EvaluationProtocol.of(options)
    names = pool_names(options.eval_mode, options.model, options.eval_protocol)
    flops, most = 0, 0
    for name in names:
        together = min(options.num_eval, networks_at_once(options.networks_at_once, device))
        each = _trained_and_tested(
            name, shape, cell.count, protocol.for_network(options.dataset, name), options.num_eval, together
        )
        waits = options.wait_eval and name != principal(names, options.model)
        flops += (1 if waits else points) * each.flops
        most = max(most, each.bytes)
    return Cost(flops, most)


def estimate_evaluation(
    names: Iterable[str],
    shape: DataShape,
    count: int,
    protocol: EvaluationProtocol,
    dataset: str,
    num_eval: int,
    at_once: int,
    device: torch.device,
) -> Estimate:
    """Estimate the cost of an evaluation of `count` training images by `num_eval` networks of each of these names.

    shape: the sizes of the real images. protocol: before it is completed for a network on `dataset`. at_once: the
    option networks_at_once.
    """
    together = min(num_eval, networks_at_once(at_once, device))
    each = [
        _trained_and_tested(name, shape, count, protocol.for_network(dataset, name), num_eval, together)
        for name in names
    ]
    data, most = _held(shape, False, device), max(cost.bytes for cost in each)
    flops, parts = sum(cost.flops for cost in each), (("images", data), ("evaluations", most))
    return Estimate(0, flops, 0, LIBRARIES + data + most, 1, parts)


def _trained_and_tested(
    name: str, shape: DataShape, count: int, protocol: EvaluationProtocol, networks: int, together: int
) -> Cost:
    """The cost of training networks on `count` images and testing them, at most `together` at a time."""
    alike = shape.uncounted
    if costs.properties(name, alike).dropout:  # such networks are trained one by one
        together = 1
    training = costs.training(name, alike, min(protocol.batch, count), together)
    testing = costs.inference(name, alike, min(test_batch(shape.im_size), shape.test_images), together)
    each = protocol.epochs_of_training * count * training.flops + shape.test_images * testing.flops
    held = 4 * count * shape.channels * math.prod(shape.im_size)
    return Cost(networks * each, held + max(training.bytes, testing.bytes))


def _points(options: DistillOptions) -> int:
    every, last = options.eval_it, options.Iteration
    return len({0, last, *(range(0, last, every) if every else ())})


def _experts(shape: DataShape, options: BufferOptions) -> Cost:
    """The cost of training and testing the experts of a buffer."""
    epochs = options.train_epochs if options.keep_epochs is None else options.keep_epochs
    tests = len({epochs, *(range(options.test_every, epochs, options.test_every) if options.test_every else ())})
    alike = shape.uncounted
    training = costs.training(options.model, alike, min(options.batch_train, shape.train_images))
    testing = costs.inference(options.model, alike, min(test_batch(shape.im_size), shape.test_images))
    each = epochs * shape.train_images * training.flops + tests * shape.test_images * testing.flops
    return Cost(round(options.num_experts * each), max(training.bytes, testing.bytes))
