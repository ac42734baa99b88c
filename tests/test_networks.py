"""Networks: published parameter counts, sizes of the features, seeds, and sentences for what cannot be built."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from common.networks import FAMILIES, build_network, has_batchnorm, has_dropout, reinitialise
from common.system.errors import InputError
from tests.network_weights import count, same, weights

# (name, parameters) for 10 classes of 3x32x32 images, counted in the authors' networks.
PARAMETERS = [
    ("ConvNet", 320_010),
    ("ConvNetD1", 331_530),
    ("ConvNetD2", 233_610),
    ("ConvNetD3", 320_010),
    ("ConvNetD4", 452_490),
    ("ConvNetD5", 596_490),
    ("ConvNetW32", 24_714),
    ("ConvNetW64", 86_282),
    ("ConvNetW128", 320_010),
    ("ConvNetW256", 1_229_834),
    ("ConvNetAS", 320_010),
    ("ConvNetAR", 320_010),
    ("ConvNetAL", 320_010),
    ("ConvNetASwish", 320_010),
    ("ConvNetASwishBN", 320_010),
    ("ConvNetNN", 319_242),
    ("ConvNetBN", 320_010),
    ("ConvNetLN", 663_306),
    ("ConvNetIN", 320_010),
    ("ConvNetGN", 320_010),
    ("ConvNetNP", 1_610_250),
    ("ConvNetMP", 320_010),
    ("ConvNetAP", 320_010),
    ("ConvNetD3W128ARINAP", 320_010),
    ("MLP", 411_146),
    ("LeNet", 62_006),
]


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    network = build_network(name, 3, 10, (32, 32))
    assert count(network) == parameters
    logits = network(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "classes", "side", "parameters"),
    [
        ("ConvNetD5", 10, 128, 615_690),
        ("ConvNetD6", 10, 128, 748_170),
        ("ConvNetD4", 200, 64, 857_160),
        ("ConvNetW512", 10, 32, 4_820_000),
        ("ConvNetW1024", 10, 32, 19_080_000),
        ("ConvNetKIP", 10, 32, 19_070_000),
    ],
)
def test_parameter_counts_of_larger_networks(name: str, classes: int, side: int, parameters: int) -> None:
    rounded = 10_000 if parameters % 10_000 == 0 else 1
    with torch.device("meta"):
        assert round(count(build_network(name, 3, classes, (side, side))) / rounded) * rounded == parameters


@pytest.mark.parametrize(
    ("name", "channels", "im_size", "features"),
    [
        ("ConvNetD3", 3, (32, 32), 2048),
        ("ConvNetD3", 3, (64, 64), 8192),
        ("ConvNetD4", 3, (64, 64), 2048),
        ("ConvNetD5", 3, (128, 128), 2048),
        ("ConvNetD3", 1, (28, 28), 2048),  # padded to 32
        ("ConvNetD3", 1, (8, 8), 128),
        ("ConvNetD3", 3, (8, 8), 128),
        ("ConvNetD2LN", 3, (33, 20), 128 * 8 * 5),
        ("ConvNetD2LN", 1, (28, 20), 128 * 8 * 6),
        ("ConvNetD1NP", 3, (1, 2), 128 * 2),
        ("MLP", 3, (32, 32), 128),
        ("MLP", 1, (16, 16, 16), 128),
        ("LeNet", 3, (32, 32), 84),
        ("LeNet", 1, (28, 28), 84),
        ("LeNet", 1, (12, 12), 84),
        ("LeNet", 3, (16, 40), 84),
        ("Conv3DNet", 1, (16, 16, 16), 512),
        ("Conv3DNet", 1, (4, 12, 20), 64 * 1 * 2 * 3),
        ("Conv3DNet", 3, (8, 17, 24), 64 * 1 * 2 * 3),
    ],
)
def test_features_before_the_classifier(name: str, channels: int, im_size: tuple[int, int], features: int) -> None:
    network = build_network(name, channels, 7, im_size)
    images = torch.randn(2, channels, *im_size)
    embedded = network.embed(images)
    assert embedded.shape == (2, features)
    assert network.classifier.in_features == features
    torch.testing.assert_close(network(images), network.classifier(embedded))


def test_conv3dnet_is_the_published_one() -> None:
    network = build_network("Conv3DNet", 1, 10, (16, 16, 16))
    assert count(network) == 228_618
    volumes = torch.randn(2, 1, 16, 16, 16)
    convolved = outputs(network.features, volumes)[::4]
    assert [tuple(x.shape[1:]) for x in convolved] == [(64, side, side, side) for side in (20, 10, 5)]
    norm = network.features[1]
    x = network.features[0](volumes)
    plain = (x - x.mean((2, 3, 4), keepdim=True)) / (x.var((2, 3, 4), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), plain)
    assert norm.weight.shape == norm.bias.shape == (64,)
    network.eval()
    torch.testing.assert_close(norm(x[:1]), plain[:1])  # nothing of the batch, nothing remembered
    assert not has_batchnorm(network)


def outputs(layers: nn.Sequential, x: torch.Tensor) -> list[torch.Tensor]:
    """What each layer gives, in order."""
    given = []
    for layer in layers:
        x = layer(x)
        given.append(x)
    return given


@pytest.mark.parametrize("name", [name for family in FAMILIES for name in family.names])
def test_every_network_takes_volumes_or_says_that_it_does_not(name: str) -> None:
    with torch.device("meta"):
        if name in ("MLP", "Conv3DNet"):
            build_network(name, 1, 10, (16, 16, 16))
        else:
            with pytest.raises(InputError, match=r"two-dimensional images, not images of size \(16, 16, 16\)"):
                build_network(name, 1, 10, (16, 16, 16))


def test_parameters_come_in_the_order_of_stored_trajectories() -> None:
    names = [name for name, _ in build_network("ConvNetD3", 3, 10, (32, 32)).named_parameters()]
    layers = ["features.0", "features.1", "features.4", "features.5", "features.8", "features.9", "classifier"]
    assert names == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def test_instance_norm_is_a_plain_normalisation_of_each_channel() -> None:
    network = build_network("ConvNetD1W8", 3, 2, (6, 4)).double()
    convolution, norm = network.features[0], network.features[1]
    x = convolution(torch.randn(3, 3, 6, 4, dtype=torch.float64))
    plain = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), plain)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("ConvNetAS", nn.Sigmoid),
        ("ConvNetASwish", nn.SiLU),
        ("ConvNetASwishBN", nn.SiLU),
        ("ConvNetASMP", nn.Sigmoid),
        ("ConvNetAL", nn.LeakyReLU),
        ("ConvNetW16AP", nn.AvgPool2d),
        ("ConvNetD2W12MP", nn.MaxPool2d),
        ("ConvNetGN", nn.GroupNorm),
    ],
)
def test_suffixes_choose_layers(name: str, layer: type[nn.Module]) -> None:
    network = build_network(name, 3, 10, (32, 32))
    assert any(isinstance(module, layer) for module in network.modules())


def test_batchnorm_is_recognised() -> None:
    assert has_batchnorm(build_network("ConvNetBN", 3, 10, (8, 8)))
    assert has_batchnorm(nn.Sequential(nn.SyncBatchNorm(3)))
    assert not has_batchnorm(build_network("ConvNetIN", 3, 10, (8, 8)))


def test_dropout_is_recognised() -> None:
    assert has_dropout(build_network("ViT", 3, 10, (32, 32)))
    assert has_dropout(nn.Sequential(nn.Linear(1, 1), nn.Dropout2d(0.5)))
    assert not has_dropout(build_network("ConvNetD3", 3, 10, (32, 32)))


def test_dropout_of_nothing_draws_nothing() -> None:
    """So it counts as none: such a network is trained alike alone and together with others."""
    layer = nn.Dropout(0.0).train()
    assert not has_dropout(layer)
    before, images = torch.get_rng_state(), torch.ones(2, 3)
    assert torch.equal(layer(images), images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "channels", "im_size", "fragment"),
    [
        ("ConvNetD4", 3, (8, 8), "largest depth that fits is 3"),
        ("ConvNetD8", 1, (28, 28), "largest depth that fits is 5"),
        ("ConvNetD3", 3, (32, 7), "largest depth that fits is 2"),
        ("ConvNet", 3, (1, 1), "only NP"),
        ("ConvNet", 1, (16, 16, 16), "two-dimensional"),
        ("Conv3DNet", 1, (28, 28), r"takes three-dimensional images, not images of size \(28, 28\)"),
        ("Conv3DNet", 1, (16, 3, 16), "Images of 1x16x3x16 are too small for Conv3DNet: it takes sides of 4 or more"),
        ("Conv3DNet", 3, (16, 16, 7), "sides of 8 or more"),
        ("conv3dnet", 1, (16, 16, 16), "Did you mean Conv3DNet"),
        ("ConvNetW10GN", 3, (32, 32), "not a multiple of 4"),
        ("ConvNet", 0, (32, 32), "at least one channel"),
        ("ConvNetD3", 3, (), "at least one channel"),
        ("convnetd3", 3, (32, 32), "Did you mean ConvNetD3"),
        ("ConvNetD9", 3, (32, 32), "D1..D8"),
        ("ConvNetBND3", 3, (32, 32), "in this order"),
        ("Perceiver", 3, (32, 32), "no network 'Perceiver'. Did you mean ConvNetAR, "),
    ],
)
def test_what_cannot_be_built_is_explained(name: str, channels: int, im_size: tuple[int, ...], fragment: str) -> None:
    with pytest.raises(InputError, match=fragment.replace(".", r"\.")):
        build_network(name, channels, 10, im_size)


@pytest.mark.parametrize(
    ("name", "im_size"),
    [("ConvNetD2W16", (8, 8)), ("ConvNetD2W16BN", (8, 8)), ("ConvNetD2W16LN", (8, 8)), ("Conv3DNet", (8, 8, 8))],
)
def test_reinitialised_weights_are_those_of_a_network_built_under_the_seed(name: str, im_size: tuple[int, ...]) -> None:
    network = build_network(name, 3, 10, im_size)
    network(torch.randn(4, 3, *im_size)).sum().backward()  # moves BatchNorm's statistics
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    before = torch.random.get_rng_state()
    reinitialise(network, 5)
    assert torch.equal(torch.random.get_rng_state(), before)
    first = weights(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert same(first, weights(build_network(name, 3, 10, im_size)))
    reinitialise(network, 6)
    assert not same(first, weights(network))
    reinitialise(network, 5)
    assert same(first, weights(network))


def test_reinitialised_weights_have_the_default_distribution() -> None:
    network = build_network("ConvNetD2", 3, 10, (32, 32))
    reinitialise(network, 0)
    for layer in (network.features[4], network.classifier):
        bound = 1 / math.sqrt(layer.weight[0].numel())  # U[-bound, bound]
        for tensor in (layer.weight, layer.bias):
            assert tensor.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert (network.features[1].weight == 1).all()
    assert (network.features[1].bias == 0).all()


def test_parameters_that_cannot_be_reinitialised_are_refused() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    network[1].__class__ = type("Odd", (nn.Module,), {})  # owns a weight, has no reset_parameters
    with pytest.raises(TypeError, match="Odd owns parameters"):
        reinitialise(network, 0)


def test_memory_layout_does_not_change_the_weights() -> None:
    # The path that a network on a GPU takes too: drawn in a plain twin on the CPU, then copied.
    plain = build_network("ConvNetD2W16BN", 3, 10, (8, 8))
    other = build_network("ConvNetD2W16BN", 3, 10, (8, 8)).to(memory_format=torch.channels_last)
    other(torch.randn(4, 3, 8, 8))
    parameters = list(other.parameters())
    reinitialise(plain, 3)
    reinitialise(other, 3)
    assert same(weights(plain), weights(other))
    assert all(p is q for p, q in zip(parameters, other.parameters(), strict=True))
    assert other.features[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_draws_the_same_weights_as_the_cpu() -> None:
    here, there = build_network("ConvNetBN", 3, 10, (32, 32)), build_network("ConvNetBN", 3, 10, (32, 32)).cuda()
    before = torch.cuda.get_rng_state()
    reinitialise(here, 3)
    reinitialise(there, 3)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert same(weights(here), weights(there.cpu()))
