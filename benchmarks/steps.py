"""Speed of the pieces: `python benchmarks/steps.py --help`, or `make bench`.

Images are random in the dataset's shape, for speed does not depend on what they show. Where two versions are compared
they run in turns, so that a busy machine slows both alike; read the ratio of the medians, not the seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import augment
from common.devices import can_compile, describe_hardware, resolve_device
from common.errors import run_command
from common.files import write_json
from common.matching.distribution import match
from common.networks import build_network, reinitialise
from common.options import DSA_STRATEGY, parse_plain
from common.run import code_version
from common.seeds import derive, generator
from common.selection import select
from common.synset import SynSet, SynSetArgs


@dataclass
class Options:
    """Time the pieces of a distillation."""

    only: str = ""
    """run the benchmarks whose name contains this"""
    repeats: int = 5
    """times that each version runs, after one run to warm up"""
    device: str = "auto"
    """auto (a CUDA GPU if there is one), cpu, cuda, cuda:N"""
    output: str | None = None
    """write the figures to this JSON file too"""


def main() -> None:
    options = parse_plain(Options)
    device = resolve_device(options.device)
    results: dict[str, Any] = {}
    for name, prepare in BENCHMARKS.items():
        if options.only in name:
            tqdm.write(f"{name}: {prepare.__doc__}")
            results[name] = in_turns(prepare(device), options.repeats, device)
    if options.output:
        content = {"results": results, "version": code_version(), "hardware": describe_hardware(device)}
        write_json(Path(options.output), content)


def in_turns(versions: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Any]:
    """Median seconds of each version, and the ratio of each to the first; printed as they come."""
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for turn in tqdm(range(repeats + 1), desc="  turns", leave=False):
        for name, version in versions.items():
            begun = time.perf_counter()
            version()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.4f} to {max(seconds[name]):.4f}"
        tqdm.write(f"  {name:<44} {median:9.4f} s  ({spread} s, {repeats} runs)  first / this = {first / median:.2f}")
    return {
        name: {"median_s": medians[name], "runs_s": seconds[name], "speedup": first / medians[name]} for name in medians
    }


# -- selection -------------------------------------------------------------------------------------------------


def variance_32(device: torch.device) -> dict[str, Callable[[], object]]:
    """variance selection, 10 classes x 16 images of 3x32x32, k 64 (bound: 50 ms)"""
    return {"variance": _selection("variance", (10, 16, 3, 32, 32), 64, device)}


def variance_128(device: torch.device) -> dict[str, Callable[[], object]]:
    """variance selection, 10 classes x 8 images of 3x128x128, k 2048 (bound: 1 s)"""
    return {"variance": _selection("variance", (10, 8, 3, 128, 128), 2048, device)}


def energy_cifar10(device: torch.device) -> dict[str, Callable[[], object]]:
    """energy selection over all 50,000 images of 3x32x32 (bound: 10 s)"""
    images = torch.randint(0, 256, (10, 5000, 3, 32, 32), dtype=torch.uint8, device=device)
    return {"energy": lambda: select("energy", [(c.float() for c in rows.split(300)) for rows in images], 64, "dct")}


def _selection(rule: str, shape: tuple[int, ...], k: int, device: torch.device) -> Callable[[], object]:
    images = torch.randn(shape, device=device)
    return lambda: select(rule, [[rows] for rows in images], k, "dct")


# -- one update ------------------------------------------------------------------------------------------------

CLASSES, REAL, SYNTHETIC = 10, 256, 32


def dm_cifar10(device: torch.device) -> dict[str, Callable[[], object]]:
    """one DM update as published for CIFAR-10 (ConvNetD3, 256 real and 32 synthetic images a class, DSA)"""
    args = SynSetArgs(3, CLASSES, (32, 32), device, ipc=2, msz_per_channel=64, lr_freq=1e6, mom_freq=0.5)
    images = torch.randn(CLASSES * SYNTHETIC, 3, 32, 32, device=device)
    labels = torch.arange(CLASSES, device=device).repeat_interleave(SYNTHETIC)
    synset = SynSet(args)
    synset.init(images, labels, [torch.where(labels == c)[0] for c in range(CLASSES)])
    real = torch.randn(CLASSES * REAL, 3, 32, 32, device=device)
    network = build_network("ConvNetD3", 3, CLASSES, (32, 32)).to(device).requires_grad_(False)
    compiled = torch.compile(network.embed) if can_compile(tqdm.write) else network.embed
    chunk = 4096 if device.type == "cuda" else REAL

    def loop() -> None:
        """The same mathematics as the authors write it: class by class, eager, one backward at the end."""
        drawn = _begin(synset, network, device)
        loss = real.new_zeros(())
        for c in range(CLASSES):
            params = drawn[c : c + 1]
            there = network.embed(augment.apply(real[c * REAL : (c + 1) * REAL], params)).mean(dim=0).detach()
            here = synset.get(range(c * SYNTHETIC, (c + 1) * SYNTHETIC))[0]
            loss = loss + (there - network.embed(augment.apply(here, params)).mean(dim=0)).square().sum()
        loss.backward()
        synset.optim_step()

    def chunked(embed: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def update() -> None:
            drawn = _begin(synset, network, device)
            decoded = synset.decode()
            _, gradient = match(embed, real, decoded, CLASSES, drawn, chunk)
            decoded.backward(gradient)
            synset.optim_step()

        return update

    return {
        "plain eager loop over classes": loop,
        f"chunks of {chunk}, eager": chunked(network.embed),
        f"chunks of {chunk}, compiled": chunked(compiled),
    }


def _begin(synset: SynSet, network: nn.Module, device: torch.device) -> augment.DSAParams:
    """What every update starts with: a fresh network, an augmentation per class, no gradient."""
    reinitialise(network, derive(0, "network"))
    synset.optim_zero_grad()
    return augment.sample(DSA_STRATEGY, CLASSES, generator(0, "augmentation"), (32, 32), device=device)


BENCHMARKS: dict[str, Callable[[torch.device], dict[str, Callable[[], object]]]] = {
    "variance_32": variance_32,
    "variance_128": variance_128,
    "energy_cifar10": energy_cifar10,
    "dm_cifar10": dm_cifar10,
}

if __name__ == "__main__":
    run_command(main)
