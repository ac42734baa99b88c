"""Trajectory matching, unrolled plainly and by the adjoint method: `python benchmarks/trajectory.py --help`.

Time of one update's loss and gradients, and its peak memory (see measure.py). The unroll in plain takes about 3 MB an
image and step at 32 px, 45 MB at 128 px with ConvNetD5: mind --plain_most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measure import apart, in_turns, peak, report
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
    """Time and weigh the gradient through a student's steps."""

    syn_steps: tuple[int, ...] = (2, 10, 50)
    """numbers of steps T"""
    images: int = 160
    """synthetic images, all of them in every step (160 is CIFAR-10 at ipc 1)"""
    image_size: int = 32
    """side of the images in pixels"""
    model: str = "ConvNetD3"
    """the network"""
    chunk: int = 32
    """images a pass takes at most, in the versions in chunks"""
    plain_most: int = 10
    """largest T that is unrolled plainly, too (0: none)"""
    whole: bool = True
    """also the adjoint without chunks"""
    repeats: int = 5
    """times that each version runs, after one run to warm up; 0 to weigh only"""
    memory: bool = True
    """weigh each version, too"""
    device: str = "auto"
    """auto (a CUDA GPU if there is one), cpu, cuda, cuda:N"""
    output: str | None = None
    """write the figures to this JSON file too"""


@dataclass(frozen=True)
class Version:
    """One way to compute an update."""

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
    device = resolve_device(options.device)
    compiles = apart(can_compile)
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
    """Loss and gradients of `count` steps on all images, each step with a DSA strategy of its own."""
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
