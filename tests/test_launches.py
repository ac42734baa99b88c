"""What an accelerator computes in fewer operations than a CPU does: the numbers are the same."""

import pytest
import torch

from common.config.options import DSA_STRATEGY
from common.images.image_data import ImageData
from common.networks import build_network, reinitialise
from common.system.seeds import generator
from common.training.train import Batches, EvaluationProtocol, are_finite, train
from tests.image_sets import make_data


@pytest.mark.parametrize("kind", ["dc", "glad"])
def test_a_step_of_sgd_in_one_operation_is_the_same(kind, monkeypatch):
    """CPUs have it, too. Momentum, decay, a falling step size, in float64."""
    images = torch.randn(20, 3, 4, 6, generator=generator(0, "images"), dtype=torch.float64)
    network = build_network("ConvNetD1W8", 3, 3, (4, 6)).double()
    trained = []
    for fused in (False, True):
        monkeypatch.setattr("common.training.train.fuses", lambda device, fused=fused: fused)
        reinitialise(network, 1)
        protocol = EvaluationProtocol(4, 0.05, 8, DSA_STRATEGY, kind=kind)
        train(network, Batches(images, torch.arange(20) % 3), protocol, generator(0, "draws"))
        trained.append([each.detach().clone() for each in network.parameters()])
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-12, atol=1e-12)


def test_numbers_that_are_not_finite_are_found():
    largest = torch.finfo(torch.float32).max
    rows = [[largest, largest, -largest], [0, torch.nan, 1], [torch.inf, 0, 0], [-torch.inf, torch.inf, 0], [0, 0, 0]]
    assert are_finite(torch.tensor(rows), 1).tolist() == [True, False, False, False, True]
    assert are_finite(torch.tensor([1, 2]), 0), "whole numbers are"


@pytest.mark.parametrize("fits", [True, False])
def test_images_that_are_kept_normalised_are_those_normalised_for_each_batch(fits, monkeypatch):
    data = make_data()
    part, rows = data.subset(torch.tensor([5, 3, 11])), slice(2, 9)
    expected, of_part = data.batch(rows), part.batch(slice(0, 2))
    room = 16 * data.images.numel() * 4
    monkeypatch.setattr(ImageData, "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr("common.images.image_data.total_memory", lambda device: room if fits else room - 1)
    first, again = data.batch(rows), data.batch(rows)
    assert torch.equal(first, expected)
    assert torch.equal(part.batch(slice(0, 2)), of_part)
    assert (first.data_ptr() == again.data_ptr()) == fits, "a view of what is kept, or made for each batch"
