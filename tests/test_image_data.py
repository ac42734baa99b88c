"""ImageData: batches are what torchvision computes, and pictures are the way back."""

from __future__ import annotations

import pytest
import torch
import torchvision

from common.datasets import ClassSampler, ImageData
from common.system.seeds import generator
from tests.image_sets import make_data


def test_batch_is_what_torchvision_computes() -> None:
    data = make_data()
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(data.mean, data.std)]
    )
    indices = torch.tensor([3, 0, 3, 11])
    expected = torch.stack([transform(data.images[i].permute(1, 2, 0).numpy()) for i in indices])
    assert torch.equal(data.batch(indices), expected)
    assert torch.equal(data.batch(slice(2, 4)), data.batch(torch.tensor([2, 3])))
    assert torch.equal(data.batch(indices.view(2, 2)), expected.view(2, 2, 3, 4, 6))


def test_denormalise_inverts_and_clamps() -> None:
    data = make_data()
    batch = data.batch(slice(None))
    torch.testing.assert_close(data.denormalise(batch), data.images / 255)
    assert (data.denormalise(batch * 100) >= 0).all()
    assert (data.denormalise(batch * 100) <= 1).all()


def test_float_volumes_are_not_divided_by_255_nor_changed() -> None:
    volumes = torch.rand(6, 1, 3, 4, 5)
    before = volumes.clone()
    data = ImageData(volumes, torch.tensor([0, 1] * 3), (0.5,), (0.25,), ("a", "b"), "volumes")
    torch.testing.assert_close(data.batch(slice(None)), (before - 0.5) / 0.25)
    assert torch.equal(volumes, before)
    assert data.im_size == (3, 4, 5)


def test_class_indices_and_sizes() -> None:
    data = make_data((5, 9, 3))
    for c, indices in enumerate(data.class_indices):
        assert torch.equal(indices, torch.nonzero(data.labels == c).flatten())
    assert data.class_indices is data.class_indices
    assert (len(data), data.num_classes, data.channels, data.im_size) == (17, 3, 3, (4, 6))
    assert data.to("cpu") is data


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_cuda_gives_the_same_draws_and_batches() -> None:
    data = make_data()
    on_gpu = data.to("cuda")
    drawn = ClassSampler(on_gpu).draw(3, generator(0, "draw"))
    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), ClassSampler(data).draw(3, generator(0, "draw")))
    torch.testing.assert_close(on_gpu.batch(drawn).cpu(), data.batch(drawn.cpu()))
