"""An accelerator computes what a CPU computes: every step, in float32 and float64, and within its memory.

On the CPU itself the same comparisons hold bit for bit, which shows that they compare something.
"""

import pytest
import torch

from common.config.options import DSA_STRATEGY
from common.matching import augment, distribution, gradient, trajectory
from common.networks import build_network, reinitialise
from common.synset.selection import select
from common.synset.synset import SynSet, SynSetArgs
from common.system.devices import peak_memory, precision
from common.system.seeds import derive, generator
from common.training import ensemble
from common.training.train import Batches, EvaluationProtocol, train

CPU = torch.device("cpu")
CLASSES, REAL, N, SIZE = 3, 6, 4, (16, 16)
KINDS = {torch.float32: 2e-3, torch.float64: 1e-9}  # relative to the norm
WHERE = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.parametrize("where", WHERE),
    pytest.mark.parametrize("kind", KINDS, ids=["fp32", "fp64"]),
]


def images(count, kind, name="images"):
    return torch.randn(count, 3, *SIZE, generator=generator(0, name), dtype=torch.float64).to(kind)


def network(kind, device):
    made = build_network("ConvNetD2W16", 3, CLASSES, SIZE).to(kind)
    reinitialise(made, derive(0, "network"))
    return made.to(device)


def training_set(kind, device):
    return Batches(images(12, kind).to(device), torch.arange(12, device=device) % CLASSES)


def drawn(groups, device, kind, one=False):
    draws = generator(0, "augmentation")
    return augment.sample(DSA_STRATEGY, groups, draws, SIZE, one_strategy=one, device=device, dtype=kind)


def assert_same(compute, where, kind):
    """`compute(device)` gives the same tensors on both devices, computed in `kind` alone."""
    with precision("fp32", torch.device(where)):  # convolutions of a GPU are in tf32 by default
        there = [each.detach().cpu() for each in compute(torch.device(where))]
    here = [each.detach() for each in compute(CPU)]
    assert here
    for mine, theirs in zip(here, there, strict=True):
        assert mine.norm() > 0
        limit = 0 if where == "cpu" else KINDS[kind] * mine.double().norm()
        assert (theirs.double() - mine.double()).norm() <= limit


def test_distribution_matching(where, kind):
    def compute(device):
        embed = network(kind, device).requires_grad_(False).embed
        real, synthetic = images(CLASSES * REAL, kind, "real").to(device), images(CLASSES * N, kind).to(device)
        return distribution.match(embed, real, synthetic, CLASSES, drawn(CLASSES, device, kind), chunk=8)

    assert_same(compute, where, kind)


@pytest.mark.parametrize("chunk", [None, 2 * REAL], ids=["class by class", "two classes at once"])
def test_gradient_matching(where, kind, chunk):
    def compute(device):
        real, synthetic = images(CLASSES * REAL, kind, "real").to(device), images(CLASSES * N, kind).to(device)
        augmentation = drawn(CLASSES, device, kind)
        return gradient.match(network(kind, device), real, synthetic, CLASSES, augmentation, chunk=chunk)

    assert_same(compute, where, kind)


@pytest.mark.parametrize("unroll", ["adjoint", "plain"])
def test_trajectory_matching(where, kind, unroll):
    def compute(device):
        made = network(kind, device)
        start = trajectory.flatten(made.parameters())
        target = start + 0.01 * torch.randn(start.shape, generator=generator(0, "target")).to(device, kind)
        steps = [trajectory.Step(None, drawn(CLASSES * N, device, kind, one=True)) for _ in range(3)]
        labels, size = torch.arange(CLASSES * N, device=device) % CLASSES, torch.tensor(0.05, device=device, dtype=kind)
        given = (trajectory.build_student(made), start, target, images(CLASSES * N, kind).to(device), labels, size)
        return trajectory.match(*given, steps, chunk=5, unroll=unroll)

    assert_same(compute, where, kind)


@pytest.mark.parametrize("strategy", augment.STRATEGIES)
def test_each_augmentation_forward_and_backward(where, kind, strategy):
    def compute(device):
        draws = generator(0, "augmentation")
        params = augment.sample(strategy, CLASSES, draws, SIZE, device=device, dtype=kind)
        given = images(CLASSES * N, kind).to(device).requires_grad_()
        changed = augment.apply(given, params)
        changed.square().sum().backward()
        return changed, given.grad

    assert_same(compute, where, kind)


def test_a_network_that_is_trained_alone(where, kind):
    def compute(device):
        made, data = network(kind, device), training_set(kind, device)
        train(made, data, EvaluationProtocol(3, 0.05, 5, DSA_STRATEGY), generator(0, "draws"))
        return [*made.parameters(), made.eval()(data.images)]

    assert_same(compute, where, kind)


def test_networks_that_are_trained_together(where, kind):
    def compute(device):
        made, data = network(kind, device), training_set(kind, device)
        weights, buffers = ensemble.initial(made, [derive(0, "one"), derive(0, "two")])
        each = [generator(0, "draws", number) for number in range(2)]
        protocol = EvaluationProtocol(3, 0.05, 5, DSA_STRATEGY)
        ensemble.train(ensemble.stacked(made.train()), weights, buffers, [data] * 2, protocol, each)
        return list(weights.values())

    assert_same(compute, where, kind)


@pytest.mark.parametrize("rule", ["variance", "energy"])
def test_which_coefficients_are_kept(where, kind, rule):
    given = images(CLASSES * N, kind).unflatten(0, (CLASSES, N))
    here, there = (select(rule, [[each.to(device)] for each in given], 20, "dct") for device in (CPU, where))
    assert torch.equal(here, there.cpu())


def test_decoding_and_the_way_back(where, kind):
    """A set is float32 whatever the network is."""

    def compute(device):
        synset = SynSet(SynSetArgs(3, CLASSES, SIZE, device, ipc=1, msz_per_channel=64, lr_freq=1.0, mom_freq=0.5))
        labels = torch.arange(CLASSES * N, device=device) % CLASSES
        indices = [torch.nonzero(labels == c).flatten() for c in range(CLASSES)]
        synset.init(images(CLASSES * N, torch.float32).to(device), labels, indices)
        decoded = synset.decode()
        decoded.square().sum().backward()
        return decoded, synset.coefficients.grad

    assert_same(compute, where, torch.float32)


def test_the_memory_of_trajectory_matching_does_not_grow_with_the_steps(where, kind):
    if where == "cpu":
        pytest.skip("a process's peak on a CPU is that of all tests before")
    made, device = build_network("ConvNetD3", 3, CLASSES, SIZE).to(where, kind), torch.device(where)
    start, labels = trajectory.flatten(made.parameters()), torch.arange(60, device=device) % CLASSES
    student, given = trajectory.build_student(made), images(60, kind).to(device)
    peaks = []
    for count in (2, 20):
        torch.cuda.reset_peak_memory_stats(device)
        steps = [trajectory.Step()] * count
        trajectory.match(student, start, start + 1, given, labels, torch.tensor(0.01, device=device), steps, chunk=20)
        peaks.append(peak_memory(device)["cuda"])
    weights = start.nbytes * 18  # of the 18 further steps, which are kept
    assert peaks[1] <= 1.1 * peaks[0] + weights
