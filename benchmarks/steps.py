"""Measures speed and memory of the parts of a distillation: `python benchmarks/steps.py --help`, or `make bench`.

Images are random numbers in the shape of the dataset, because speed does not depend on what images show. measure.py
describes how time and memory are measured. The update of TM has its own benchmark, trajectory.py.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from measure import Versions, check_report, in_turns, peak, report
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from common.config.command_line import parse_plain
from common.config.options import DSA_STRATEGY
from common.datasets import ImageData
from common.matching import augment, distribution, gradient
from common.networks import build_network, reinitialise
from common.synset.selection import select
from common.synset.synset import SynSet, SynSetArgs
from common.system.command import run_command
from common.system.devices import can_compile, resolve_device
from common.system.errors import InputError
from common.system.seeds import derive, generator
from common.training import ensemble
from common.training.train import Batches, EvaluationProtocol, train, train_epoch


@dataclass
class Options:
    """Measure the time and memory of the parts of a distillation."""

    only: str = ""
    """run only the benchmarks whose name contains this text"""
    repeats: int = 5
    """timed runs of each version, after one run to warm up; 0 measures memory only"""
    memory: bool = True
    """measure peak memory too, of each version in a separate process"""
    compiled: bool = True
    """measure compiled versions too, for which a CPU core compiles for minutes"""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:N, mps or xpu"""
    output: str | None = None
    """also write the results to this JSON file"""


def main() -> None:
    options = parse_plain(Options)
    check_report(options.output)
    device = resolve_device(options.device)
    chosen = {name: prepare for name, prepare in BENCHMARKS.items() if options.only in name}
    if not chosen:
        raise InputError(f"no benchmark's name contains '{options.only}': there are {', '.join(BENCHMARKS)}")
    compiles = options.compiled and can_compile()
    results: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for name, prepare in chosen.items() if options.memory else ():
        tqdm.write(f"{name}: memory")
        weights = results[name]["peak_mib"] = {}
        for version in prepare(device, compiles):
            weights[version] = peak(_version, name, version, device, device=device)
            tqdm.write(f"  {version:<44} {weights[version]:9.0f} MiB at most")
    for name, prepare in chosen.items() if options.repeats else ():
        tqdm.write(f"{name}: {prepare.__doc__}")
        results[name]["seconds"] = in_turns(prepare(device, compiles), options.repeats, device)
    report(options.output, results, device)


def _version(name: str, version: str, device: torch.device) -> Callable[[], object]:
    compiles = version.endswith(", compiled") and can_compile()  # so that the compiler is in memory before its use
    return BENCHMARKS[name](device, compiles)[version]


# -- selection -------------------------------------------------------------------------------------------------


def variance_32(device: torch.device, compiles: bool) -> Versions:
    """Variance selection: 10 classes x 16 images of 3x32x32, k 64. It must take at most 50 ms."""
    return {"variance": _selection("variance", (10, 16, 3, 32, 32), 64, device)}


def variance_128(device: torch.device, compiles: bool) -> Versions:
    """Variance selection: 10 classes x 8 images of 3x128x128, k 2048. It must take at most 1 s."""
    return {"variance": _selection("variance", (10, 8, 3, 128, 128), 2048, device)}


def variance_256(device: torch.device, compiles: bool) -> Versions:
    """Variance selection: 10 classes x 8 images of 3x256x256, k 8192. It must take at most 5 s and 2 GB."""
    return {"variance": _selection("variance", (10, 8, 3, 256, 256), 8192, device)}


def energy_cifar10(device: torch.device, compiles: bool) -> Versions:
    """Energy selection over all 50,000 images of 3x32x32. It must take at most 10 s."""
    images = torch.randint(0, 256, (10, 5000, 3, 32, 32), dtype=torch.uint8, device=device)
    return {"energy": lambda: select("energy", [(c.float() for c in rows.split(300)) for rows in images], 64, "dct")}


def _selection(rule: str, shape: tuple[int, ...], k: int, device: torch.device) -> Callable[[], object]:
    images = torch.randn(shape, device=device)
    return lambda: select(rule, [[rows] for rows in images], k, "dct")


# -- one update ------------------------------------------------------------------------------------------------

CLASSES, REAL = 10, 256
CLASSES_ON_CPU = 2  # of an update, whose time is proportional to its classes: ten would take minutes


def dm_cifar10(device: torch.device, compiles: bool) -> Versions:
    """An update of DM, published for CIFAR-10, on a CPU 2 classes of it: 256 real and 32 synthetic images each, DSA."""
    synset, real, network = _cifar10(64, device)
    network.requires_grad_(False)
    chunk = REAL if device.type == "cpu" else 4096

    def loop() -> None:
        """Compute the update as the authors do: class by class, eager, with one backward pass at the end."""
        drawn = _begin(synset, network, DSA_STRATEGY)
        loss = real.new_zeros(())
        for c in range(synset.num_classes):
            here, there = (augment.apply(images, drawn[c : c + 1]) for images in _of_class(c, synset, real))
            loss = loss + (network.embed(there).mean(dim=0).detach() - network.embed(here).mean(dim=0)).square().sum()
        loss.backward()
        synset.optim_step()

    def chunked(embed: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def update() -> None:
            drawn = _begin(synset, network, DSA_STRATEGY)
            decoded = synset.decode()
            _, to_images = distribution.match(embed, real, decoded, synset.num_classes, drawn, chunk)
            decoded.backward(to_images)
            synset.optim_step()

        return update

    versions: Versions = {
        "plain eager loop over classes": loop,
        f"chunks of {chunk}, eager": chunked(network.embed),
    }
    if compiles:
        versions[f"chunks of {chunk}, compiled"] = chunked(torch.compile(network.embed))
    return versions


def dc_cifar10(device: torch.device, compiles: bool) -> Versions:
    """An update of DC, published for CIFAR-10, on a CPU 2 classes of it: 256 real and 64 synthetic images each."""
    synset, real, network = _cifar10(32, device)

    def loop() -> None:
        """Compute the update as the authors do: class by class, eager, with one backward pass at the end."""
        _begin(synset, network, "")
        loss = real.new_zeros(())
        for c in range(synset.num_classes):
            here, there = (_gradients(network, images, c) for images in _of_class(c, synset, real))
            target = {name: g.detach() for name, g in there.items()}
            loss = loss + gradient.row_cosine(here, target)
        loss.backward()
        synset.optim_step()

    def matched(chunk: int | None, compile: Callable[..., Any] | None = None) -> Callable[[], None]:
        def update() -> None:
            _begin(synset, network, "")
            decoded = synset.decode()
            _, to_images = gradient.match(network, real, decoded, synset.num_classes, chunk=chunk, compile=compile)
            decoded.backward(to_images)
            synset.optim_step()

        return update

    versions: Versions = {
        "plain eager loop over classes": loop,
        "class by class": matched(None),
        "pieces of 32": matched(32),
    }
    if device.type != "cpu":
        versions |= {f"{k} classes at once": matched(k * REAL) for k in (2, 5, 10)}
    if compiles:
        versions["class by class, compiled"] = matched(None, lambda pass_: torch.compile(pass_, dynamic=False))
    return versions


def _gradients(network: nn.Module, images: Tensor, c: int) -> dict[str, Tensor]:
    """Gradients of the mean cross-entropy of images of class c, by parameter name, with their autograd graph."""
    named = dict(network.named_parameters())
    loss = F.cross_entropy(network(images), torch.full((len(images),), c, device=images.device))
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), create_graph=True), strict=True))


def _cifar10(k: int, device: torch.device) -> tuple[SynSet, Tensor, Any]:
    """A synthetic set at ipc 2 with k coefficients per channel, 256 real images per class, and a ConvNetD3."""
    classes = CLASSES_ON_CPU if device.type == "cpu" else CLASSES
    args = SynSetArgs(3, classes, (32, 32), device, ipc=2, msz_per_channel=k, lr_freq=1.0, mom_freq=0.5)
    count = 2 * 32 * 32 // k
    images = torch.randn(classes * count, 3, 32, 32, device=device)
    labels = torch.arange(classes, device=device).repeat_interleave(count)
    synset = SynSet(args)
    synset.init(images, labels, list(torch.arange(classes * count, device=device).split(count)))
    real = torch.randn(classes * REAL, 3, 32, 32, device=device)
    return synset, real, build_network("ConvNetD3", 3, classes, (32, 32)).to(device)


def _of_class(c: int, synset: SynSet, real: Tensor) -> tuple[Tensor, Tensor]:
    """The n synthetic images and the 256 real images of class c, [n, 3, 32, 32] and [256, 3, 32, 32]."""
    n = synset.num_per_class
    return synset.get(range(c * n, (c + 1) * n))[0], real[c * REAL : (c + 1) * REAL]


def _begin(synset: SynSet, network: nn.Module, strategy: str) -> augment.DSAParams:
    """Start an update: reinitialise the network, reset the gradient and draw one augmentation per class."""
    reinitialise(network, derive(0, "network"))
    synset.optim_zero_grad()
    return augment.sample(
        strategy, synset.num_classes, generator(0, "augmentation"), (32, 32), device=synset.coefficients.device
    )


# -- experts ---------------------------------------------------------------------------------------------------

EXPERT_IMAGES = 512


def expert_epoch(device: torch.device, compiles: bool) -> Versions:
    """Two steps of an expert's epoch on CIFAR-10: ConvNetD3, 512 of 50,000 images, batches of 256, DSA."""
    images = torch.randint(0, 256, (EXPERT_IMAGES, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(EXPERT_IMAGES) % CLASSES
    half = (0.5,) * 3
    data = ImageData(images, labels, half, half, tuple(map(str, range(CLASSES))), "random").to(device)
    network = build_network("ConvNetD3", 3, CLASSES, (32, 32)).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(data.batch(slice(None)).cpu(), labels), batch_size=256, shuffle=True)

    def by_loader() -> None:
        """Read normalised float images one by one through a DataLoader, as the authors do."""
        draws = generator(0, "experts")
        network.train()
        for some, wanted in loader:
            some, wanted = some.to(device), wanted.to(device)
            drawn = augment.sample(DSA_STRATEGY, len(some), draws, (32, 32), one_strategy=True, device=device)
            loss = F.cross_entropy(network(augment.apply(some, drawn)), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def batched(forward: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: train_epoch(network, data, optimizer, 256, DSA_STRATEGY, generator(0, "experts"), forward)

    versions: Versions = {"images one by one through a DataLoader": by_loader, "batches of a tensor": batched(network)}
    if compiles:
        versions["batches of a tensor, compiled"] = batched(torch.compile(network))
    return versions


def evaluation_cifar10(device: torch.device, compiles: bool) -> Versions:
    """Training of 5 networks for an epoch on 160 synthetic images: CIFAR-10 at ipc 1, ConvNetD3, DSA."""
    draws = generator(0, "images")
    images = torch.randn(160, 3, 32, 32, generator=draws).to(device)
    data = Batches(images, torch.arange(160, device=device) % CLASSES)
    network = build_network("ConvNetD3", 3, CLASSES, (32, 32)).to(device)
    protocol = EvaluationProtocol(0, 0.01, 256, DSA_STRATEGY)
    numbers = range(5)

    def one_by_one(forward: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for number in numbers:
                reinitialise(network, derive(0, "network", number))
                train(network, data, protocol, generator(0, "draws", number), forward)

        return run

    def together(compile: Callable[..., Any] | None) -> Callable[[], None]:
        stack = ensemble.stacked(network.train(), compile)

        def run() -> None:
            weights, buffers = ensemble.initial(network, [derive(0, "network", number) for number in numbers])
            each = [generator(0, "draws", number) for number in numbers]
            ensemble.train(stack, weights, buffers, [data] * len(numbers), protocol, each)

        return run

    versions: Versions = {"one by one": one_by_one(network), "together": together(None)}
    if compiles:
        versions |= {"one by one, compiled": one_by_one(torch.compile(network))}
        versions |= {"together, compiled": together(torch.compile)}
    return versions


BENCHMARKS: dict[str, Callable[[torch.device, bool], Versions]] = {
    "variance_32": variance_32,
    "variance_128": variance_128,
    "variance_256": variance_256,
    "energy_cifar10": energy_cifar10,
    "dm_cifar10": dm_cifar10,
    "dc_cifar10": dc_cifar10,
    "expert_epoch": expert_epoch,
    "evaluation_cifar10": evaluation_cifar10,
}

if __name__ == "__main__":
    run_command(main)
