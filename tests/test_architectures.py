"""AlexNet, VGG11, ResNet18, ViT and the ConvNets of ImageNet: counts, sizes, layers, derivatives, seeds, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from common.matching.gradient import match
from common.networks import build_network, reinitialise
from common.networks.vgg import VGG11
from common.networks.vit import Attention, ViT
from common.system.errors import InputError
from tests.network_weights import count, same, weights

Build = Callable[[], nn.Module]

# For 10 classes of 3-channel images, counted in the authors' networks.
PARAMETERS = [
    ("AlexNet", 32, 1_872_202),
    ("AlexNetBN", 32, 1_874_122),
    ("AlexNetCIFAR", 32, 1_872_202),
    ("VGG11", 32, 9_231_114),
    ("VGG11BN", 32, 9_231_114),
    ("VGG11CIFAR", 32, 9_231_114),
    ("ResNet18", 32, 11_173_962),
    ("ResNet18BN", 32, 11_173_962),
    ("ResNet18CIFAR", 32, 11_173_962),
    ("ResNet18_AP", 32, 11_250_762),
    ("ResNet18BN_AP", 32, 11_250_762),
    ("ViTCIFAR", 32, 9_523_722),
    ("AlexNet", 128, 2_333_002),
    ("VGG11", 128, 9_476_874),
    ("ResNet18", 128, 11_173_962),
    ("ViT", 128, 16_176_650),
    ("ConvNetD5_IN", 128, 615_690),
    ("ConvNetD5GAP", 128, 25_103_370),
]

ARCHITECTURES = [
    *("AlexNet", "AlexNetBN", "AlexNetCIFAR", "VGG11", "VGG11BN", "VGG11CIFAR"),
    *("ResNet18", "ResNet18BN", "ResNet18_AP", "ResNet18BN_AP", "ResNet18CIFAR"),
    *("ViT", "ViTCIFAR", "ConvNetGAP", "ConvNet_BN", "ConvNetD4_LN"),
]


def meta(name: str, channels: int, im_size: Sequence[int], num_classes: int = 10) -> nn.Module:
    """The network without its weights."""
    with torch.device("meta"):
        return build_network(name, channels, num_classes, im_size)


def layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


@pytest.mark.parametrize(("name", "side", "parameters"), PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str, side: int, parameters: int) -> None:
    assert count(meta(name, 3, (side, side))) == parameters


@pytest.mark.parametrize(("name", "authors"), [("VGG11BN", 9_471_370), ("ResNet18BN", 11_164_362)])
def test_batch_norm_is_there_where_the_authors_lost_it(name: str, authors: int) -> None:
    """Their ImageNet form of these has no norm at all; with it, the counts are those of the instance-norm networks."""
    network = meta(name, 3, (128, 128))
    norms = sum(count(layer) for layer in layers(network, nn.BatchNorm2d))
    assert count(network) == authors + norms == count(meta(name.removesuffix("BN"), 3, (128, 128)))


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("AlexNet", 0),
        ("AlexNetBN", 5),
        ("VGG11", 8),
        ("VGG11BN", 8),
        ("ResNet18", 20),
        ("ResNet18BN", 20),
        ("ResNet18_AP", 20),
        ("ResNet18BN_AP", 20),
    ],
)
@pytest.mark.parametrize("side", [32, 64, 128])
def test_every_convolution_has_the_norm_of_its_name(name: str, norms: int, side: int) -> None:
    network = meta(name, 3, (side, side))
    batch, group = layers(network, nn.BatchNorm2d), layers(network, nn.GroupNorm)
    assert (len(batch), len(group)) == ((norms, 0) if "BN" in name else (0, norms))
    assert all(layer.num_groups == layer.num_channels for layer in group)  # instance norm
    assert all(layer.affine for layer in batch + group)


@pytest.mark.parametrize(("name", "side", "norms"), [("ViT", 128, 0), ("ViT", 96, 13), ("ViTCIFAR", 128, 13)])
def test_only_the_form_for_cifar_has_layer_norms(name: str, side: int, norms: int) -> None:
    network = meta(name, 3, (side, side))
    assert len(layers(network, nn.LayerNorm)) == norms
    assert len(layers(network, nn.GELU)) == len(layers(network, Attention)) > 0
    dropouts = layers(network, nn.Dropout)
    assert len(dropouts) == 1 + 3 * len(layers(network, Attention))
    assert {layer.p for layer in dropouts} == {0.1}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_classifier_fits_every_size(name: str) -> None:
    for channels, *im_size in [
        *((1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 96, 96), (3, 128, 128), (3, 256, 256)),
        *((3, 36, 104), (1, 144, 128)),
    ]:
        logits = meta(name, channels, im_size, num_classes=7)(torch.empty(2, channels, *im_size, device="meta"))
        assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "channels", "im_size", "features"),
    [
        ("AlexNet", 3, (32, 32), 3072),
        ("AlexNet", 1, (28, 28), 3072),  # padded to 32
        ("AlexNet", 1, (4, 4), 192),
        ("AlexNetBN", 3, (8, 31), 192 * 3),
        ("VGG11", 3, (32, 32), 512),
        ("VGG11", 1, (28, 28), 512),  # padded to 32
        ("VGG11BN", 3, (64, 100), 512 * 2 * 3),
        ("VGG11", 3, (128, 128), 25_088),
        ("VGG11", 3, (127, 160), 512 * 3 * 5),
        ("VGG11CIFAR", 3, (128, 128), 512 * 4 * 4),
        ("ResNet18", 3, (32, 32), 512),
        ("ResNet18", 1, (28, 28), 512),
        ("ResNet18", 1, (1, 9), 512),
        ("ResNet18BN", 3, (1, 1), 512),
        ("ResNet18", 3, (64, 64), 512),
        ("ResNet18_AP", 3, (32, 32), 512 * 4 * 4),
        ("ResNet18BN_AP", 1, (28, 28), 512 * 3 * 3),
        ("ResNet18_AP", 1, (16, 8), 512 * 2),
        ("ResNet18BN_AP", 3, (8, 15), 512),
        ("ViT", 1, (28, 28), 512),
        ("ViT", 3, (4, 20), 512),
        ("ViT", 3, (128, 128), 512),
        ("ConvNetGAP", 3, (32, 32), 512),
        ("ConvNetD2W8MPGAP", 1, (5, 28), 16),
    ],
)
def test_features_before_the_classifier(name: str, channels: int, im_size: tuple[int, int], features: int) -> None:
    network = build_network(name, channels, 7, im_size).eval()
    images = torch.randn(2, channels, *im_size)
    with torch.no_grad():
        embedded = network.embed(images)
        logits = network(images)
    assert embedded.shape == (2, features)
    assert (embedded[0] - embedded[1]).abs().max() > 0  # no norm has erased the images
    torch.testing.assert_close(logits, network.classifier(embedded))


@pytest.mark.parametrize(
    ("name", "same_as", "side"),
    [
        ("ConvNet_BN", "ConvNetBN", 32),
        ("ConvNet_IN", "ConvNet", 32),
        ("ConvNet_LN", "ConvNetLN", 32),
        ("ConvNet_GN", "ConvNetGN", 32),
        ("ConvNet_NN", "ConvNetNN", 32),
        ("ConvNetD5_BN", "ConvNetD5BN", 64),
        ("ConvNetD4W64_GN", "ConvNetD4W64GN", 64),
        ("ViT", "ViTCIFAR", 32),
        ("ViT", "ViTCIFAR", 96),
        ("VGG11", "VGG11CIFAR", 96),
        ("AlexNetCIFAR", "AlexNet", 128),
        ("ResNet18CIFAR", "ResNet18", 128),
    ],
)
def test_names_of_one_network(name: str, same_as: str, side: int) -> None:
    assert str(meta(name, 3, (side, side))) == str(meta(same_as, 3, (side, side)))


@pytest.mark.parametrize(("name", "patch"), [("ViT", (16, 16)), ("ViTCIFAR", (4, 4))])
def test_patches_are_larger_in_large_images(name: str, patch: tuple[int, int]) -> None:
    assert meta(name, 3, (128, 128)).features[0].kernel_size == patch


@torch.no_grad()
def with_weights_of(source: nn.Module, target: nn.Module) -> nn.Module:
    """The target, which has the same layers in the same order under other names, with the weights of the source."""
    target = target.to_empty(device="cpu")
    for to, value in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        to.copy_(value)
    return target


@pytest.mark.parametrize("name", ["ResNet18", "ResNet18BN"])
def test_resnet_is_torchvisions_with_another_stem(name: str) -> None:
    norm = nn.BatchNorm2d if name.endswith("BN") else lambda channels: nn.GroupNorm(channels, channels)
    with torch.device("meta"):
        other = torchvision.models.resnet18(num_classes=10, norm_layer=norm)
        other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    network, images = build_network(name, 3, 10, (32, 32)), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(images), with_weights_of(network, other)(images))


def test_vgg_has_torchvisions_convolutions() -> None:
    with torch.device("meta"):
        other = torchvision.models.vgg11_bn().features
    network, images = build_network("VGG11BN", 3, 10, (64, 64)), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(network.embed(images), with_weights_of(network.features, other)(images).flatten(1))


@pytest.mark.parametrize("norm", [[], ["BatchNorm2d"]])
def test_alexnet_is_rectified_after_each_convolution_and_pooled_three_times(norm: list[str]) -> None:
    network = meta("AlexNetBN" if norm else "AlexNet", 3, (32, 32))
    block, pooling = ["Conv2d", *norm, "ReLU"], ["MaxPool2d"]
    assert [type(layer).__name__ for layer in network.features] == 2 * (block + pooling) + 3 * block + pooling


@pytest.mark.parametrize(
    ("build", "side", "pool"),
    [
        (lambda: build_network("ResNet18", 3, 2, (32, 32)), 32, lambda x: F.avg_pool2d(x, 4)),  # the form for CIFAR
        (lambda: build_network("ResNet18", 3, 2, (40, 40)), 40, lambda x: x.mean((2, 3))),
        (lambda: build_network("ConvNetD2W8GAP", 3, 2, (32, 32)), 32, lambda x: x.mean((2, 3))),
        (lambda: VGG11(3, 2, (64, 64), large=True), 64, lambda x: F.adaptive_max_pool2d(x, 7)),
    ],
)
def test_features_are_pooled_last(build: Build, side: int, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
    network, images = build(), torch.randn(2, 3, side, side)
    unpooled = network.features[:-1](images)
    assert min(unpooled.shape[2:]) > 1
    torch.testing.assert_close(network.embed(images), pool(unpooled).flatten(1))


def test_average_pooling_takes_the_place_of_strides() -> None:
    plain, pooled = (meta(name, 3, (32, 32)) for name in ("ResNet18BN", "ResNet18BN_AP"))
    strides = [layer.stride for layer in layers(plain, nn.Conv2d)]
    assert strides.count((2, 2)) == 6
    assert all(layer.stride == (1, 1) for layer in layers(pooled, nn.Conv2d))
    for block in pooled.features[3:]:
        inputs, outputs = block.layers[0].in_channels, block.layers[0].out_channels
        kinds = [type(layer).__name__ for layer in (*block.layers, *block.shortcut)]
        if inputs == outputs:
            assert "AvgPool2d" not in kinds
        else:
            assert kinds[2:5] == ["ReLU", "AvgPool2d", "Conv2d"]
            assert kinds[6:] == ["Conv2d", "AvgPool2d", "BatchNorm2d"]


def test_attention_is_torchs() -> None:
    attention, other = Attention(), nn.MultiheadAttention(512, 8, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(attention.projections.weight)
        other.out_proj.load_state_dict(attention.output.state_dict())
        attention.projections.weight.mul_(4)  # a softmax far from uniform
        other.in_proj_weight.mul_(4)
    tokens = torch.randn(2, 6, 512)
    expected, shares = other(tokens, tokens, tokens, average_attn_weights=False)
    assert shares.max() > 0.5
    torch.testing.assert_close(attention(tokens), expected)


def test_vit_knows_patches_by_their_positions_alone() -> None:
    network = ViT(3, 10, (4, 12), depth=2).double().eval()
    with torch.no_grad():
        images = torch.randn(2, 3, 4, 12, dtype=torch.float64)
        logits = network(images)
        moved = torch.cat([images[..., 8:], images[..., :8]], dim=3)
        assert (network(moved) - logits).abs().max() > 1e-3
        positions = network.features[1].positions
        positions.copy_(positions[:, [0, 3, 1, 2]])
        torch.testing.assert_close(network(moved), logits)


def test_attention_and_perceptrons_of_vit_are_added_to_the_tokens() -> None:
    network = ViT(3, 10, (16, 32), patch=16, depth=2, normalised=False).eval()
    tokens = network.features[1]
    with torch.no_grad():
        for layer in layers(network, nn.Linear):  # without their outputs the class token arrives as it set out
            layer.weight.zero_()
            layer.bias = None
        embedded = network.embed(torch.randn(2, 3, 16, 32))
    torch.testing.assert_close(embedded, (tokens.class_token + tokens.positions)[:, 0].expand(2, -1))


def test_dropout_is_for_training() -> None:
    network, images = ViT(3, 10, (8, 8), depth=1), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(network(images), network(images))
        network.eval()
        assert torch.equal(network(images), network(images))


SMALL_VITS = [
    lambda: ViT(3, 2, (16, 32), depth=1),
    lambda: ViT(3, 2, (16, 32), patch=16, depth=1, normalised=False),  # the form for large images
]


@pytest.mark.parametrize(
    ("build", "im_size"),
    [
        (lambda: build_network("AlexNet", 3, 2, (8, 8)), (8, 8)),
        (lambda: VGG11(3, 2, (32, 32), large=True), (32, 32)),
        (lambda: build_network("ResNet18BN", 3, 2, (9, 9)), (9, 9)),
        *((build, (16, 32)) for build in SMALL_VITS),
        (lambda: build_network("ConvNetD2W8GAP", 3, 2, (8, 8)), (8, 8)),
    ],
)
def test_derivatives_of_gradients_are_those_of_finite_differences(build: Build, im_size: tuple[int, int]) -> None:
    """d/dx <dL/dtheta(x), v>, which gradient matching needs, along a direction u of the images."""
    torch.manual_seed(0)
    network = build().double()
    for layer in layers(network, nn.Dropout):
        layer.eval()
    parameters = list(network.parameters())
    images, u = torch.randn(2, 2, 3, *im_size, dtype=torch.float64)
    v = [torch.randn_like(p) for p in parameters]

    def product(images: torch.Tensor, create_graph: bool = False) -> torch.Tensor:
        loss = F.cross_entropy(network(images), torch.tensor([0, 1]))
        gradients = torch.autograd.grad(loss, parameters, create_graph=create_graph)
        return torch.stack([(g * each).sum() for g, each in zip(gradients, v, strict=True)]).sum()

    images.requires_grad_()
    (derivative,) = torch.autograd.grad(product(images, create_graph=True), images)
    step = 1e-7 * u  # small enough not to carry a ReLU or a maximum across
    difference = (product(images.detach() + step) - product(images.detach() - step)) / 2e-7
    assert difference.abs() > 0.01
    torch.testing.assert_close((derivative * u).sum(), difference, rtol=1e-5, atol=0)


@pytest.mark.parametrize("build", SMALL_VITS)
def test_classes_of_vit_may_share_a_pass_of_gradient_matching(build: Build) -> None:
    network = build().double().eval()
    real, synthetic = torch.randn(6, 3, 16, 32, dtype=torch.float64), torch.randn(4, 3, 16, 32, dtype=torch.float64)
    loss, gradient = match(network, real, synthetic, 2)
    together, same_gradient = match(network, real, synthetic, 2, chunk=6)
    torch.testing.assert_close(together, loss)
    torch.testing.assert_close(same_gradient, gradient)


@pytest.mark.parametrize(
    ("name", "side"),
    [("AlexNetBN", 8), ("VGG11", 32), ("ResNet18BN_AP", 8), ("ViT", 8), ("ConvNetD2W8_BN", 8)],
)
def test_reinitialised_weights_are_those_of_a_network_built_under_the_seed(name: str, side: int) -> None:
    network = build_network(name, 3, 10, (side, side))
    with torch.no_grad():
        network(torch.randn(2, 3, side, side))  # moves BatchNorm's statistics, draws dropout
        for p in network.parameters():
            p.add_(1)
    reinitialise(network, 5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = build_network(name, 3, 10, (side, side))
    assert same(weights(network), weights(expected))
    reinitialise(network, 6)
    for p, q in zip(network.parameters(), expected.parameters(), strict=True):
        drawn = not (q == 0).all() and not (q == 1).all()  # norms start with ones and zeros
        assert torch.equal(p, q) != drawn


def test_tokens_and_positions_start_from_the_normal_distribution() -> None:
    tokens = build_network("ViT", 3, 10, (64, 64)).features[1]
    assert tokens.positions.shape == (1, 1 + 16 * 16, 512)
    assert tokens.positions.mean().abs() < 0.02
    assert tokens.positions.std().item() == pytest.approx(1, rel=0.02)
    assert tokens.class_token.std().item() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize(
    ("name", "channels", "im_size", "message"),
    [
        ("AlexNet", 3, (7, 32), "Images of 3x7x32 are too small for AlexNet: it takes sides of 8 or more."),
        ("AlexNetBN", 1, (3, 3), "too small for AlexNetBN: it takes sides of 4 or more"),
        ("VGG11", 3, (31, 31), "Images of 3x31x31 are too small for VGG11: it takes sides of 32 or more."),
        ("VGG11BN", 1, (27, 32), "too small for VGG11BN: it takes sides of 28 or more"),
        ("ResNet18", 3, (8, 8), "Images of 3x8x8 leave ResNet18 a single pixel, which instance norm makes zero"),
        ("ResNet18CIFAR", 3, (5, 8), "give it a side of 9 or more, or take ResNet18BN"),
        ("ResNet18_AP", 3, (15, 8), "give it a side of 16 or more, or take ResNet18BN"),
        ("ResNet18BN_AP", 3, (7, 7), "too small for ResNet18BN_AP: it takes sides of 8 or more"),
        ("ViT", 3, (30, 32), "ViT cuts images of 3x30x32 into patches of 4x4: both sides must be multiples of 4."),
        ("ViT", 1, (128, 132), "into patches of 16x16: both sides must be multiples of 16."),
        ("ViTCIFAR", 3, (128, 130), "both sides must be multiples of 4."),
        ("ConvNetD6GAP", 3, (32, 32), "largest depth that fits is 5"),
        ("ConvNetW10_GN", 3, (32, 32), "10 is not a multiple of 4"),
        ("AlexNet", 1, (16, 16, 16), "AlexNet takes two-dimensional images, not images of size (16, 16, 16)."),
        ("VGG11", 1, (32, 32, 32), "VGG11 takes two-dimensional images"),
        ("ResNet18", 1, (32,), "ResNet18 takes two-dimensional images"),
        ("ViT", 1, (16, 16, 16), "ViT takes two-dimensional images"),
        ("ResNet50", 3, (32, 32), "Did you mean ResNet18"),
        ("vgg11bn", 3, (32, 32), "Did you mean VGG11BN"),
        ("ConvNet_BND5", 3, (32, 32), "in this order"),
    ],
)
def test_what_cannot_be_built_is_explained(name: str, channels: int, im_size: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build_network(name, channels, 10, im_size)
