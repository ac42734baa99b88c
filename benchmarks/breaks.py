"""Where `--compile` breaks a function into several graphs: `python benchmarks/breaks.py`.

What --compile compiles of DM, DC, TM, an expert and an evaluation is traced by torch._dynamo.explain, for a small
network of each kind, on the CPU. A function without breaks is one graph (fullgraph). Nothing is compiled or timed.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from tqdm import tqdm

from common.config.command_line import parse_plain
from common.matching import distribution, gradient, trajectory
from common.networks import build_network
from common.networks.network import Network
from common.system.command import run_command
from common.system.seeds import generator
from common.training import ensemble
from common.training.train import Batches, EvaluationProtocol

CHANNELS, CLASSES, SIDE = 3, 2, 32


@dataclass
class Options:
    """Count the graphs that torch.compile makes of what --compile compiles, and name its breaks."""

    models: str = "ConvNetD3W16,ConvNetD3W16BN,MLP,LeNet,AlexNet"
    """networks, joined by commas; larger ones take many minutes"""


def main() -> None:
    models = parse_plain(Options).models.split(",")
    tqdm.write("| network | " + " | ".join(PIECES) + " |\n| --- |" + " --- |" * len(PIECES))
    for model in models:
        cells = [_told(counts(name, model)) for name in PIECES]
        tqdm.write(f"| {model} | {' | '.join(cells)} |")


def counts(name: str, model: str) -> list[tuple[int, list[str]]]:
    """For each function that a piece compiles: the number of its graphs, and why it was broken."""
    found: list[tuple[int, list[str]]] = []

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        def explained(*args: Any) -> Any:
            torch._dynamo.reset()
            told = torch._dynamo.explain(function)(*args)
            found.append((told.graph_count, [reason.reason for reason in told.break_reasons]))
            return function(*args)

        return explained

    network = build_network(model, CHANNELS, CLASSES, (SIDE, SIDE))
    PIECES[name](network, compiler)
    return found


def _told(found: list[tuple[int, list[str]]]) -> str:
    reasons = dict.fromkeys(reason.splitlines()[0] for _, several in found for reason in several)
    most = max(graphs for graphs, _ in found)
    return f"{most}: {'; '.join(reasons)}" if reasons else str(most)


Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


def _images(count: int) -> torch.Tensor:
    return torch.randn(count, CHANNELS, SIDE, SIDE, generator=generator(0, "images"))


def _dm(network: Network, compiler: Compiler) -> None:
    distribution.match(compiler(network.requires_grad_(False).embed), _images(8), _images(4), CLASSES)


def _dc(network: Network, compiler: Compiler) -> None:
    if any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        gradient.freeze_batchnorm(network, _images(8))
    gradient.match(network, _images(8), _images(4), CLASSES, compile=compiler)


def _tm(network: Network, compiler: Compiler) -> None:
    student = trajectory.build_student(network, compiler)
    start, labels = trajectory.flatten(network.parameters()), torch.arange(4) % CLASSES
    trajectory.match(student, start, start * 0.9, _images(4), labels, torch.tensor(0.01), [trajectory.Step(None, None)])


def _step(network: Network, compiler: Compiler) -> None:
    compiler(network)(_images(4)).sum().backward()


def _test(network: Network, compiler: Compiler) -> None:
    with torch.no_grad():
        compiler(network.eval())(_images(4))


def _together(network: Network, compiler: Compiler) -> None:
    weights, buffers = ensemble.initial(network, [0, 1])
    sets = [Batches(_images(4), torch.arange(4) % CLASSES)] * 2
    stack = ensemble.stacked(network, compiler)
    draws = [generator(0, "draws"), generator(1, "draws")]
    ensemble.train(stack, weights, buffers, sets, EvaluationProtocol(0, 0.01, 4, ""), draws)


PIECES = {
    "DM": _dm,
    "DC": _dc,
    "TM": _tm,
    "expert, evaluation": _step,
    "test": _test,
    "networks together": _together,
}

if __name__ == "__main__":
    run_command(main)
