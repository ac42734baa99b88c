"""A result that is remembered is the result that torch derives: the same figures, the first time and later."""

import pytest
import torch
import torch.nn.functional as F

from common.costs import meter
from common.networks import build_network

META = torch.device("meta")


def step():
    """Training of a network: operations with several results, some None, and operations in place."""
    with META:
        network = build_network("ResNet18", 3, 10, (32, 32))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    logits = network(torch.empty(8, 3, 32, 32, device=META))
    F.cross_entropy(logits, torch.zeros(8, dtype=torch.long, device=META)).backward()
    optimizer.step()


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(meter, "_known", {})


def test_a_second_weighing_gives_the_figures_of_the_first(monkeypatch):
    first = meter.weigh(step)
    assert meter._known
    assert meter.weigh(step) == first
    monkeypatch.setattr(meter, "_MOST_KNOWN", 0)
    monkeypatch.setattr(meter, "_known", {})
    assert meter.weigh(step) == first  # with nothing remembered
    assert not meter._known


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x * 2,
        lambda x: x.half() * 2.5,
        lambda x: (x > 0).to(torch.int64) * 2,
        lambda x: (x > 0).to(torch.int64) * 2.0,
        lambda x: x.double().to(torch.float64),
        lambda x: x.t() + 1,
        lambda x: x.contiguous(memory_format=torch.contiguous_format),
        lambda x: torch.ops.aten._unsafe_view(x, [12]),
        lambda x: x.expand(2, 4, 3).clone(),
        lambda x: torch.fft.fftn(x).conj() * 1j,
        lambda x: x.max(dim=1).indices,
        lambda x: x.add_(1),
    ],
)
def test_a_remembered_result_has_the_form_of_the_derived_one(operation):
    x = torch.empty(4, 3, device=META)
    expected = operation(x)
    with meter._Scales():
        for _ in range(2):
            found = operation(x)
            assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
            assert (found.untyped_storage()._cdata == x.untyped_storage()._cdata) == (
                expected.untyped_storage()._cdata == x.untyped_storage()._cdata
            )


def test_memory_of_an_argument_that_is_returned_is_counted_once():
    """Some operations return a view although they declare a new tensor."""

    def views():
        x = torch.empty(1000, device=META)
        return [torch.ops.aten._unsafe_view(x, [10, 100]) for _ in range(3)]

    assert meter.weigh(views).bytes == meter.weigh(views).bytes == 4000


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("wanted", [1, 2])
def test_each_gradient_of_a_convolution_takes_what_the_convolution_takes(groups, wanted):
    images = torch.empty(2, 4, 6, 5, device="meta", requires_grad=wanted == 2)
    weight = torch.empty(8, 4 // groups, 3, 3, device="meta", requires_grad=True)

    def both():
        torch.nn.functional.conv2d(images, weight, padding=1, groups=groups).sum().backward()

    once = 2 * (2 * 6 * 5) * 8 * (4 // groups) * 3 * 3  # every pixel of 8 outputs sees 3 x 3 of its group's inputs
    assert meter.weigh(both).flops == (1 + wanted) * once
