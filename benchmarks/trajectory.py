"""Compares the plain unroll of trajectory matching with the adjoint method: `python benchmarks/trajectory.py --help`.

For one update, it measures the time of the loss and gradients, and the peak memory (see measure.py). The plain unroll
takes about 3 MB per image and step at 32 px, and 45 MB at 128 px with ConvNetD5. --plain_most limits this memory.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measure import apart, check_report, in_turns, peak, report
from tqdm import tqdm

from common.config.command_line import parse_plain
from common.config.options import DSA_STRATEGY
from common.matching import augment
from common.matching.trajectory import Step, Unroll, build_student, flatten, match
from common.networks import build_network, reinitialise
from common.system.command import run_command
from common.system.devices import can_compile, resolve_device
from common.system.seeds import derive, generator

CLASSES = 10


@dataclass
class Options:
    """Measure the time and memory of the gradient through the training steps of a student network."""

    syn_steps: tuple[int, ...] = (2, 10, 50)
    """the numbers of training steps T to measure"""
    images: int = 160
    """synthetic images; every step uses all of them (160 is CIFAR-10 at ipc 1)"""
    image_size: int = 32
    """side of the images in pixels"""
    model: str = "ConvNetD3"
    """name of the student network"""
    chunk: int = 32
    """most images per pass, in the versions that work in chunks"""
    plain_most: int = 10
    """largest T for which the plain unroll is measured too (0: never)"""
    whole: bool = True
    """measure the adjoint method without chunks too"""
    repeats: int = 5
    """timed runs of each version, after one run to warm up; 0 measures memory only"""
    memory: bool = True
    """measure the peak memory of each version too"""
    compiled: bool = True
    """measure the compiled version too, for which a CPU core compiles for minutes"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu"""
    output: str | None = None
    """also write the results to this JSON file"""


@dataclass(frozen=True)
class Version:
    """One of the compared ways to compute an update."""

    unroll: Unroll
    in_chunks: bool = False
    compiled: bool = False


VERSIONS = {
    "plain unroll": Version("plain"),
    "adjoint": Version("adjoint"),
    "adjoint in chunks": Version("adjoint", in_chunks=True),
    "adjoint in chunks, compiled": Version("adjoint", in_chunks=True, compiled=True),
}


def main() -> None:
    options = parse_plain(Options)
    check_report(options.output)
    device = resolve_device(options.device)
    compiles = options.compiled and apart(can_compile)
    names = [
        name
        for name, version in VERSIONS.items()
        if (compiles or not version.compiled) and (options.whole or version.in_chunks or version.unroll == "plain")
    ]
    cases = {
        count: [name for name in names if VERSIONS[name].unroll == "adjoint" or count <= options.plain_most]
        for count in options.syn_steps
    }
    results: dict[str, dict[str, Any]] = {f"T = {count}": {} for count in cases}
    side = options.image_size
    tqdm.write(f"{options.model}, {options.images} images of 3x{side}x{side}, chunks of {options.chunk}")
    for count, here in cases.items() if options.memory else ():
        tqdm.write(f"T = {count}: memory")
        weights = results[f"T = {count}"]["peak_mib"] = {}
        for name in here:
            weights[name] = peak(update, VERSIONS[name], count, options, device=device)
            tqdm.write(f"  {name:<44} {weights[name]:9.0f} MiB at most")
    for count, here in cases.items() if options.repeats else ():
        tqdm.write(f"T = {count}: time")
        updates = {name: update(VERSIONS[name], count, options) for name in here}
        results[f"T = {count}"]["seconds"] = in_turns(updates, options.repeats, device)
    report(options.output, results, device)


def update(version: Version, count: int, options: Options) -> Callable[[], object]:
    """A function that computes the loss and gradients of `count` steps on all images.

    Each step has its own DSA strategy.
    """
    device = resolve_device(options.device)
    im_size = (options.image_size, options.image_size)
    network = build_network(options.model, 3, CLASSES, im_size).to(device)
    reinitialise(network, derive(0, "network"))
    start = flatten(network.parameters())
    target = start + 0.01 * torch.randn(start.shape, generator=generator(0, "target")).to(device)
    images = torch.randn(options.images, 3, *im_size, generator=generator(0, "images")).to(device)
    labels = torch.arange(options.images, device=device) % CLASSES
    draws = generator(0, "augmentation")
    drawn = [
        augment.sample(DSA_STRATEGY, options.images, draws, im_size, one_strategy=True, device=device)
        for _ in range(count)
    ]
    steps = [Step(None, augmentation) for augmentation in drawn]
    student = build_student(network, torch.compile if version.compiled else None)
    chunk = options.chunk if version.in_chunks else None
    step_size = torch.tensor(0.01, device=device)
    return lambda: match(student, start, target, images, labels, step_size, steps, chunk=chunk, unroll=version.unroll)


if __name__ == "__main__":
    run_command(main)
