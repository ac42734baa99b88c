"""Average pooling by whole tensors is torch's, bit for bit, in every direction and transform."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from common.networks import build_network
from common.networks.pooling import AvgPool2x2

TORCHS = nn.AvgPool2d(2)
SHAPES = [(5, 3, 8, 8), (2, 4, 28, 28), (3, 2, 6, 14), (2, 3, 7, 7), (2, 3, 8, 5), (1, 1, 2, 2), (3, 4, 4)]


def images(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_derivatives_are_torchs_bit_for_bit(shape, dtype):
    x = images(shape, dtype).requires_grad_()
    found, expected = AvgPool2x2()(x), TORCHS(x)
    assert torch.equal(found, expected)
    to_values = images(found.shape, dtype).requires_grad_()
    to_x = [torch.autograd.grad(out, x, to_values, create_graph=True)[0] for out in (found, expected)]
    assert torch.equal(*to_x)
    direction = images(shape, dtype).flip(0)
    again = [torch.autograd.grad(g, to_values, direction)[0] for g in to_x]
    assert torch.equal(*again)


def test_derivatives_are_those_of_finite_differences():
    x = images((2, 3, 4, 6), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(AvgPool2x2(), x)
    assert torch.autograd.gradgradcheck(AvgPool2x2(), x)


def test_transforms_of_torch_go_through_it():
    x, pool = images((4, 2, 3, 8, 8)), AvgPool2x2()

    def second(pool):
        return lambda one: grad(lambda y: grad(lambda z: pool(z).pow(3).sum())(y).pow(2).sum())(one)

    assert torch.equal(vmap(second(pool))(x), vmap(second(TORCHS))(x))
    assert torch.equal(vmap(pool, in_dims=1)(x), vmap(TORCHS, in_dims=1)(x))


def test_it_is_not_in_the_way_of_a_compiler():
    x = images((2, 3, 8, 8))
    compiled = torch.compile(AvgPool2x2(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), TORCHS(x))


def test_a_network_takes_it():
    kinds = [type(module) for module in build_network("ConvNetD2W8", 3, 2, (8, 8)).modules()]
    assert kinds.count(AvgPool2x2) == 2
