"""Whether a run fits into the memory of its device, told before it starts."""

from __future__ import annotations

import sys

import torch
from tqdm import tqdm

from common.config.evaluate_options import EvaluateOptions
from common.config.options import BufferOptions, DistillOptions
from common.costs import costs
from common.costs.estimate import Estimate
from common.costs.forecast import needs_of, peak_of
from common.recipes.shapes import DataShape
from common.system import parallel
from common.system.devices import free_memory, reserved_memory, resident_memory, total_memory
from common.system.errors import InputError
from common.system.text import describe_bytes

Options = DistillOptions | BufferOptions | EvaluateOptions


def check_memory(
    objective: str, options: DistillOptions | BufferOptions, shape: DataShape, device: torch.device, loaded: bool
) -> None:
    """Warn of a run whose estimated peak exceeds the memory that is free on the device.

    loaded: whether the images are in memory already. Where no estimate can be made, nothing is said.
    Raises InputError if it exceeds all memory of the device, unless options.ignore_memory.
    """
    needs = needs_of(objective, options, shape, device)
    told = None if needs is None else too_large(needs, options, shape, device, loaded)
    if told is None:
        return
    sentence, hopeless = told
    if hopeless and not options.ignore_memory:
        raise InputError(f"{sentence}, or give --ignore_memory to start all the same")
    if parallel.is_main():
        tqdm.write(f"warning: {sentence}", file=sys.stderr)


def too_large(
    needs: Estimate, options: Options, shape: DataShape, device: torch.device, loaded: bool
) -> tuple[str, bool] | None:
    """(a sentence, whether the device could not even hold the run alone), None if the memory that is free suffices."""
    # Processes share the memory of a machine; each has a GPU of its own.
    sharing = parallel.launch().local_world if device.type == "cpu" else 1
    needed, free, total = sharing * peak_of(needs, device, loaded), free_memory(device), total_memory(device)
    taken = resident_memory() if device.type == "cpu" else reserved_memory(device)
    hopeless = total is not None and needed > total
    if not hopeless and (free is None or needed - sharing * taken <= free):
        return None
    where = "this machine" if device.type == "cpu" else "the accelerator"
    there = f"{where} has {describe_bytes(total or 0)}" if hopeless else f"{describe_bytes(free or 0)} are free"
    kind = "estimated peak memory" if sharing == 1 else f"estimated peak memory of {sharing} processes"
    return f"the {kind} is {describe_bytes(needed)}, and {there}: lower {_flags(needs, options, shape)}", hopeless


def _flags(needs: Estimate, options: Options, shape: DataShape) -> str:
    """The flags that reduce the largest part of the memory."""
    parts = dict(needs.parts)
    largest = max(parts, key=lambda name: parts[name])
    if largest == "images":
        return "--image_size, or use fewer images"
    if largest == "experts" or isinstance(options, BufferOptions):
        return "--batch_train"
    if largest == "evaluations":
        return "--batch_train" if options.networks_at_once == 1 else "--networks_at_once to 1, or --batch_train"
    if isinstance(options, EvaluateOptions):
        raise ValueError(f"an evaluation has no part {largest}")
    if getattr(options, "unroll", "adjoint") == "plain":
        return "--syn_steps, or give --unroll adjoint"
    real = "--batch_real" if hasattr(options, "batch_real") else "--batch_syn"
    if costs.properties(options.model, shape).batchnorm:
        return real
    return f"--chunk ({options.chunk or 'by device'}) or {real}"
