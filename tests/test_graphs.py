"""CUDA graphs, recorded on a CPU: the numbers are those without, bit for bit, and a step is one replay."""

import pytest
import torch

from common.config.command_line import parse
from common.config.options import DSA_STRATEGY
from common.experts.train import ExpertProtocol, expert_epochs
from common.matching import augment, trajectory
from common.networks import build_network
from common.networks.graphs import WARM_UP, Graphed, can_capture
from common.runs.identity import identity
from common.runs.pieces import Pieces
from common.runs.setup import set_up
from common.system.seeds import generator
from common.training.pool import EvaluationNetwork, train_and_test
from common.training.train import Batches, EvaluationProtocol, gradients_of
from DM.distill import Options as DMOptions
from tests import recorded_graphs
from tests.image_sets import make_data

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
MODELS = ["ConvNetD1W8", "ConvNetD1W8BN"]


@pytest.fixture
def recorded(monkeypatch):
    recorded_graphs.on_cpu(monkeypatch)
    return recorded_graphs.replays


def test_a_function_is_captured_after_its_first_calls(recorded):
    total, calls = torch.zeros(()), []

    def add(x):
        calls.append(1)
        total.add_(x.sum())
        return x * 2, None

    graphed = Graphed(add, CPU)
    for number in range(6):
        doubled, nothing = graphed(torch.full((3,), float(number)))
        assert doubled.tolist() == [2 * number] * 3
        assert nothing is None
    assert total.item() == 3 * sum(range(6)), "each call adds once, the one that is captured too"
    assert (len(calls), len(recorded)) == (WARM_UP + 1, 6 - WARM_UP)
    graphed(torch.ones(2))
    assert len(calls) == WARM_UP + 2, "another shape warms up anew"


@pytest.mark.parametrize("model", MODELS)
def test_experts_are_those_without_graphs(model, recorded):
    """17 images in batches of 8: two shapes. Batch statistics count each step once."""
    protocol = ExpertProtocol(5, 5, 8, 0.05, 0.5, 0.01, False, DSA_STRATEGY, 7)
    network = build_network(model, 3, 3, (4, 6))
    plain = [weights for _, weights in expert_epochs(network, make_data(), protocol, 3)]
    buffers = [each.clone() for each in network.buffers()]
    gradients = gradients_of(network, network, CPU)
    graphed = [weights for _, weights in expert_epochs(network, make_data(), protocol, 3, gradients=gradients)]
    assert torch.equal(torch.stack(plain), torch.stack(graphed))
    assert all(map(torch.equal, buffers, network.buffers()))
    assert len(recorded) == 10 - WARM_UP + 5 - WARM_UP


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("together", [1, 2])
def test_accuracies_are_those_without_graphs(model, together, recorded, monkeypatch):
    draws = generator(0, "images")
    images = Batches(torch.randn(20, 3, 4, 6, generator=draws), torch.arange(20) % 3)
    protocol = EvaluationProtocol(4, 0.05, 8, DSA_STRATEGY)
    network = build_network(model, 3, 3, (4, 6))
    monkeypatch.setattr("common.training.train.test_batch", lambda im_size: 2)
    seen = {}
    for name in (False, True):
        evaluated = EvaluationNetwork(network, graphs=name)
        given = (evaluated, lambda number: images, [make_data()], protocol, range(2), 0)
        seen[name] = list(train_and_test(*given, together=together))
        assert (len(recorded) > 0) == name
    assert seen[False] == seen[True]
    assert None not in seen[True]


def test_a_capture_that_fails_leaves_the_numbers(recorded, monkeypatch, capsys):
    def refuse(self):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(recorded_graphs.Graph, "__enter__", refuse)
    graphed = Graphed(lambda x: (x + 1,), CPU)
    results = [graphed(torch.tensor(float(number)))[0].item() for number in range(6)]
    assert results == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().out.splitlines() == [
        "no CUDA graphs (a capture failed: operation not permitted when stream is capturing): "
        "the run goes on without --cuda_graphs"
    ]
    assert not can_capture(CPU)


def test_a_device_without_graphs_says_so(capsys):
    assert not can_capture(CPU)
    assert capsys.readouterr().out == "no CUDA graphs (cpu has none): the run goes on without --cuda_graphs\n"


def test_networks_with_dropout_are_not_captured():
    """A graph would have to draw from the device's generator."""
    network = build_network("MLP", 1, 10, (8, 8))
    network.features.append(torch.nn.Dropout(0.5))
    assert gradients_of(network, network, CPU) is None
    assert not EvaluationNetwork(network, graphs=True).graphs


@pytest.mark.parametrize(("chunk", "parts"), [(None, 1), (5, 3)])
def test_trajectories_are_those_without_graphs(chunk, parts, recorded):
    """The student's gradient and its pullback, each a graph."""
    draws = generator(0, "set")
    images, labels = torch.randn(12, 3, 4, 6, generator=draws), torch.arange(12) % 3
    network = build_network("ConvNetD1W8", 3, 3, (4, 6))
    start = trajectory.flatten(network.parameters())
    drawn = [augment.sample(DSA_STRATEGY, 12, draws, (4, 6), one_strategy=True) for _ in range(6)]
    given = start, start * 0.9, images, labels, torch.tensor(0.02), [trajectory.Step(None, each) for each in drawn]
    plain = trajectory.match(trajectory.build_student(network), *given, chunk=chunk)
    student = trajectory.build_student(network, graphs=CPU)
    for _ in range(2):
        graphed = trajectory.match(student, *given, chunk=chunk, memory=1 << 30)
        assert all(map(torch.equal, plain, graphed))
    assert len(recorded) == 2 * (2 * 6 * parts - WARM_UP)


def test_a_run_is_the_same_with_and_without(recorded, capsys):
    given = [parse(DMOptions, "DM", ["--model", "ConvNetD1W8", *words]) for words in ([], ["--cuda_graphs"])]
    assert identity(given[0][0]) == identity(given[1][0])
    setup = set_up(*given[1])
    assert Pieces(setup).graphs == CPU
    assert EvaluationNetwork(setup.network, graphs=setup.graphs).graphs
    assert Pieces(set_up(*given[0])).graphs is None
