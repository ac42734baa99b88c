"""How long a cell of a table takes and how much memory, told before it is run.

    estimate("TM", options, SHAPES["CIFAR10"], device="cuda")

The updates and passes that a run would make are made once each on the meta device, which keeps shapes alone (`meter`),
and counted as often as the run makes them. Compilation, reduced precision and augmentation, small beside a network,
are left out; memory is that of fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from common.config.options import BufferOptions, DistillOptions
from common.costs import costs
from common.costs.meter import Cost
from common.costs.shapes import SHAPES, DataShape
from common.matching import distribution, gradient, trajectory
from common.networks import has_dropout
from common.networks.pools import pool_names, principal
from common.system.devices import resolve_device
from common.training.pool import networks_at_once
from common.training.train import TEST_BATCH, EvaluationProtocol

__all__ = ["RATES", "SHAPES", "DataShape", "Estimate", "estimate", "seconds"]

# An option that only this objective's scripts have, or in DM's case its kind.
_OWN_OPTION = {"DC": "dis_metric", "DM": "batch_real", "TM": "syn_steps"}

# What libraries hold beside tensors: TM on a CPU core takes this much more than they do (results/README.md, Memory).
LIBRARIES = 300 * 2**20

# Sustained TFLOP/s in fp32 by kind of device, and where the figure comes from.
RATES: dict[str, tuple[float, str]] = {
    "cpu": (0.12, "measured on two cores of an AMD EPYC, eager: dm_cifar10 in results/steps_cpu.json"),
    "cuda": (10.0, "assumed, not measured: 10 TFLOP/s for fp32 on an A100/H100"),
}


@dataclass(frozen=True)
class Estimate:
    """flops: of convolutions and matrix products. memory_bytes: the most that the device holds at a time."""

    distill_flops: float
    evaluation_flops: float
    expert_flops: float
    memory_bytes: int

    @property
    def flops(self) -> float:
        """Of everything."""
        return self.distill_flops + self.evaluation_flops + self.expert_flops


def estimate(
    objective: str,
    options: DistillOptions,
    shape: DataShape,
    buffer: BufferOptions | None = None,
    device: str | None = None,
    loops: tuple[int, int] = (1, 0),
) -> Estimate:
    """What a distillation with these options costs, and with `buffer` the experts that it needs.

    objective: DC, DM or TM, or that of a folder, as ImageNet-abcde/DM. device: where it would run, there or not; None
    for that of the options. loops: updates per iteration, and epochs of the network between two of them (DC's).
    Raises ValueError for options of another objective, InputError for what cannot be built.
    """
    kind, own = objective.rpartition("/")[2], vars(options)
    if _OWN_OPTION.get(kind) not in own or (kind == "DM" and _OWN_OPTION["DC"] in own):
        raise ValueError(f"{type(options).__module__} has no options for the objective {objective}")
    where = resolve_device(options.device) if device is None else torch.device(device)
    cell = costs.Workload(
        options.model,
        shape,
        options.ipc,
        options.msz_per_channel or math.prod(shape.im_size),
        options.transform,
        getattr(options, "batch_syn", 0),
    )
    if kind == "DC":
        chunk = options.chunk or gradient.default_chunk(where, options.compile)
        outer, inner = loops
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
    evaluation = _evaluation(cell, options, where)
    experts = Cost(0, 0) if buffer is None else _experts(shape, buffer)
    values = math.prod(shape.im_size) * shape.channels * (4 if options.zca else shape.value_bytes)
    data = (shape.train_images + shape.test_images) * values
    most = max(distill.bytes, evaluation.bytes, experts.bytes)
    return Estimate(options.Iteration * distill.flops, evaluation.flops, experts.flops, int(LIBRARIES + data + most))


def seconds(estimate: Estimate, tflops: float) -> float:
    """How long it takes at so many TFLOP/s."""
    return estimate.flops / (tflops * 1e12)


def _evaluation(cell: costs.Workload, options: DistillOptions, device: torch.device) -> Cost:
    """All evaluations of a run: before the first update, every eval_it, and after the last one."""
    every, last = options.eval_it, options.Iteration
    points = len({0, last, *(range(0, last, every) if every else ())})
    protocol = EvaluationProtocol.of(options)
    names = pool_names(options.eval_mode, options.model, options.eval_protocol)
    shape, batch = cell.shape, min(options.batch_train, cell.count)
    flops, most = 0.0, 0
    for name in names:
        epochs = protocol.for_network(options.dataset, name).epochs_of_training
        alone = has_dropout(costs.network_of(name, shape))
        together = 1 if alone else min(options.num_eval, networks_at_once(options.networks_at_once, device))
        training = costs.training(name, shape, batch, together)
        testing = costs.inference(name, shape, min(TEST_BATCH, shape.test_images), together)
        each = epochs * cell.count * training.flops + shape.test_images * testing.flops
        waits = options.wait_eval and name != principal(names, options.model)
        flops += (1 if waits else points) * options.num_eval * each
        most = max(most, training.bytes, testing.bytes)
    held = 4 * cell.count * shape.channels * math.prod(shape.im_size)
    return Cost(round(flops), held + most)


def _experts(shape: DataShape, options: BufferOptions) -> Cost:
    """Training and testing of a buffer's experts."""
    epochs = options.train_epochs if options.keep_epochs is None else options.keep_epochs
    tests = len({epochs, *(range(options.test_every, epochs, options.test_every) if options.test_every else ())})
    training = costs.training(options.model, shape, min(options.batch_train, shape.train_images))
    testing = costs.inference(options.model, shape, min(TEST_BATCH, shape.test_images))
    each = epochs * shape.train_images * training.flops + tests * shape.test_images * testing.flops
    return Cost(round(options.num_experts * each), max(training.bytes, testing.bytes))
