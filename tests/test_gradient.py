"""Gradient matching against a plain double backward, class by class, and what it promises beside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.matching import augment
from common.matching.gradient import DISTANCES, default_chunk, freeze_batchnorm, match
from common.networks import build_network
from common.synset.synset import SynSet
from common.system.errors import InputError
from tests.image_sets import Recorded
from tests.synsets import args, real_images

CLASSES, REAL, SYNTHETIC = 4, 6, 4
CHUNKS = [None, 1, 3, 5, 6, 12, 18, 100]  # pieces of both, of the real class alone, whole classes, two, three, all


def setting(model="ConvNetD2W8", im_size=(8, 8), dtype=torch.float64):
    draws = torch.Generator().manual_seed(2)
    shapes = [(CLASSES * each, 3, *im_size) for each in (REAL, SYNTHETIC)]
    real, synthetic = (torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype) for shape in shapes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(model, 3, CLASSES, im_size).to(dtype)
    return network, real, synthetic


def drawn(strategy="color_crop_cutout_flip_scale_rotate", seed=5):
    return augment.sample(strategy, CLASSES, torch.Generator().manual_seed(seed), (8, 8))


def between(a, b, distance):
    """The distance of two lists of gradients, as the authors write it."""
    if distance == "ours":
        total = 0
        for x, y in zip(a, b, strict=True):
            if x.ndim > 1:
                x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
                total = total + (1 - (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-6)).sum()
        return total
    x, y = (torch.cat([each.reshape(-1) for each in gradients]) for gradients in (a, b))
    if distance == "mse":
        return ((x - y) ** 2).sum()
    return 1 - (x * y).sum() / (x.norm() * y.norm() + 1e-6)


def class_by_class(network, real, synthetic, params, distance="ours"):
    """The authors' loop: one class at a time, summed. Returns the loss and its gradient for the images."""
    weights = list(network.parameters())
    images = synthetic.detach().requires_grad_()
    loss = torch.zeros((), dtype=real.dtype)
    for c in range(CLASSES):
        sides = []
        for rows, each in ((real, REAL), (images, SYNTHETIC)):
            x = rows[c * each : (c + 1) * each]
            x = x if params is None else augment.apply(x, params[c : c + 1])
            cross_entropy = F.cross_entropy(network(x), torch.full((each,), c))
            sides.append(torch.autograd.grad(cross_entropy, weights, create_graph=True))
        loss = loss + between(sides[1], [g.detach() for g in sides[0]], distance)
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def assert_same(found, expected, tolerance=1e-8):
    for x, y in zip(found, expected, strict=True):
        assert not x.requires_grad
        assert (x - y).norm() <= tolerance * y.norm()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_cut_equals_the_double_backward(chunk, distance):
    network, real, synthetic = setting()
    found = match(network, real, synthetic, CLASSES, drawn(), distance, chunk)
    assert_same(found, class_by_class(network, real, synthetic, drawn(), distance))
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("chunk", [None, 3, 12])
@pytest.mark.parametrize(
    "model", ["ConvNetD2W8GN", "ConvNetD2W8LN", "ConvNetD2W8NN", "ConvNetD1W8ASwishINMP", "ConvNetD2W8BN", "MLP"]
)
def test_every_network(model, chunk):
    network, real, synthetic = setting(model)
    freeze_batchnorm(network, real)
    found = match(network, real, synthetic, CLASSES, None, "ours", chunk)
    assert_same(found, class_by_class(network, real, synthetic, None))


@pytest.mark.parametrize("chunk", [None, 3, 12])
@pytest.mark.parametrize("strategy", [*augment.STRATEGIES, "none"])
def test_every_augmentation(strategy, chunk):
    network, real, synthetic = setting()
    params = drawn(strategy)
    found = match(network, real, synthetic, CLASSES, params, "ours", chunk)
    assert_same(found, class_by_class(network, real, synthetic, params))


@pytest.mark.parametrize("chunk", [None, 3, 12])
def test_volumes(chunk):
    """A convolution's weights of any dimension are one row an output."""
    _, real, synthetic = setting(im_size=(4, 4))
    real, synthetic = (x.unflatten(0, (-1, 2)).transpose(1, 2).repeat_interleave(2, dim=0) for x in (real, synthetic))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 4, (1, 3, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES)).double()
    found = match(network, real, synthetic, CLASSES, None, "ours", chunk)
    assert_same(found, class_by_class(network, real, synthetic, None))


@pytest.mark.parametrize("chunk", [None, 3, 12])
def test_the_gradient_reaches_the_coefficients(chunk):
    a = args()
    synset = SynSet(a)
    synset.init(*real_images(a))
    network, real, _ = setting()
    images = synset.decode().double()
    assert len(images) == CLASSES * SYNTHETIC
    _, expected = class_by_class(network, real, images, drawn())
    (expected,) = torch.autograd.grad(images, synset.coefficients, expected, retain_graph=True)
    images.backward(match(network, real, images, CLASSES, drawn(), "ours", chunk)[1])
    # The coefficients are float32 whatever the images are: compare above their own rounding.
    assert (synset.coefficients.grad - expected).norm() <= 1e-7 * expected.norm()


@pytest.mark.parametrize("chunk", [None, 4, 6, 13])
def test_real_images_may_be_gathered_as_they_are_read(chunk):
    network, real, synthetic = setting()
    recorded = Recorded(real)
    found = match(network, recorded, synthetic, CLASSES, drawn(), chunk=chunk)
    expected = match(network, real, synthetic, CLASSES, drawn(), chunk=chunk)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert sum(recorded.asked) == len(real)
    assert max(recorded.asked) <= max(chunk or 0, REAL)


@pytest.mark.parametrize("chunk", [None, 3, 12])
def test_bit_for_bit_the_same_again_whatever_the_caller_records(chunk):
    network, real, synthetic = setting(dtype=torch.float32)
    first = match(network, real, synthetic, CLASSES, drawn(), chunk=chunk)
    synthetic.requires_grad_()
    network.requires_grad_(False)
    again = match(network, real, synthetic, CLASSES, drawn(), chunk=chunk)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert synthetic.requires_grad
    assert synthetic.grad is None


def test_equal_sets_have_no_loss_but_that_of_the_epsilon():
    network, real, _ = setting()
    assert match(network, real, real, CLASSES, drawn(), "mse")[0] < 1e-20
    expected = 0.0
    for c in range(CLASSES):
        x = augment.apply(real[c * REAL : (c + 1) * REAL], drawn()[c : c + 1])
        cross_entropy = F.cross_entropy(network(x), torch.full((REAL,), c))
        for g in torch.autograd.grad(cross_entropy, list(network.parameters())):
            if g.ndim > 1:
                expected += (1e-6 / (g.flatten(1).square().sum(dim=1) + 1e-6)).sum()
    loss, _ = match(network, real, real, CLASSES, drawn())
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("chunk", [None, 3, 12])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_dead_network_gives_numbers(distance, chunk):
    network, real, synthetic = setting("ConvNetD2W8NN")
    with torch.no_grad():
        network.features[0].bias.fill_(-100.0)  # no unit of the first layer ever fires
        network.features[3].bias.fill_(-1.0)
    loss, gradient = match(network, real, synthetic, CLASSES, None, distance, chunk)
    assert loss.isfinite()
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("chunk", [3, 12])
def test_compiled_passes_are_the_same_and_are_not_compiled_anew(chunk):
    """By the eager backend: what is traced is checked here, and not what a compiler makes of it."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    def compile(function):
        return torch.compile(function, backend=backend, dynamic=False)

    network, real, synthetic = setting("ConvNetD1W8")
    for seed in (5, 6):
        with torch.no_grad():
            network.classifier.bias.add_(0.1)  # what training does to it
        found = match(network, real, synthetic, CLASSES, drawn(seed=seed), "ours", chunk, compile)
        assert_same(found, class_by_class(network, real, synthetic, drawn(seed=seed)))
        if seed == 5:
            count = len(graphs)
    assert 2 <= count == len(graphs)
    torch.compiler.reset()


def test_frozen_statistics_are_those_of_one_forward():
    network, real, synthetic = setting("ConvNetD1W8BN")
    with torch.no_grad():
        inputs = network.features[0](real)
    freeze_batchnorm(network, real)
    norm = network.features[1]
    assert network.training
    assert not norm.training
    torch.testing.assert_close(norm.running_mean, 0.1 * inputs.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * inputs.var(dim=(0, 2, 3)))
    before = norm.running_mean.clone()
    match(network, real, synthetic, CLASSES)
    assert torch.equal(norm.running_mean, before)
    network.train()
    with pytest.raises(ValueError, match="freeze_batchnorm comes before"):
        match(network, real, synthetic, CLASSES)


def test_an_unknown_distance_names_the_known_ones():
    with pytest.raises(InputError, match=r"'l1'.*ours, mse, cos"):
        match(*setting(), CLASSES, None, "l1")


@pytest.mark.cuda
@pytest.mark.parametrize("chunk", [None, 3, 12])
def test_a_gpu_computes_the_same(chunk):
    network, real, synthetic = setting()
    expected = class_by_class(network, real, synthetic, drawn())
    found = match(network.cuda(), real.cuda(), synthetic.cuda(), CLASSES, drawn(), "ours", chunk)
    assert_same([x.cpu() for x in found], expected)


@pytest.mark.parametrize(("memory", "classes"), [(8, 1), (16, 3), (24, 5), (48, 11), (None, 5)])
def test_as_many_classes_share_a_pass_as_a_quarter_of_the_memory_holds(memory, classes):
    """256 images of 32 px each; None: the memory is not told. A single class is not a group."""
    given = None if memory is None else memory * 2**30
    chunk = default_chunk(torch.device("cuda"), 256, False, (32, 32), given)
    assert (1 if chunk is None else chunk // 256) == classes
    assert default_chunk(torch.device("cuda"), 256, True, (32, 32), given) is None, "compiled passes are of one class"
    assert default_chunk(torch.device("cpu"), 256, False, (32, 32), given) == 64
