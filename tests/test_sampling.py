"""Draws of real images: of the right class, uniform, and a function of the generator alone."""

from __future__ import annotations

import pytest
import torch

from common.datasets import ClassSampler, ImageData, draw_per_class
from common.system.errors import InputError
from common.system.seeds import generator
from tests.image_sets import make_data


def test_draw_takes_different_images_of_the_right_class() -> None:
    data = make_data((40, 9, 25))
    drawn = ClassSampler(data).draw(9, generator(0, "draw"))
    assert drawn.shape == (3, 9)
    for c, row in enumerate(drawn):
        assert (data.labels[row] == c).all()
        assert len(row.unique()) == 9


def test_draw_covers_a_class_uniformly() -> None:
    data = make_data((20, 7))
    sampler, rng = ClassSampler(data), generator(0, "draw")
    draws = 4000
    counts = sum(torch.bincount(sampler.draw(5, rng).flatten(), minlength=27) for _ in range(draws))
    for indices in data.class_indices:
        share = 5 / len(indices)
        deviation = (counts[indices] - draws * share) / (draws * share * (1 - share)) ** 0.5
        assert deviation.abs().max() < 4.5


def test_order_of_a_draw_is_random() -> None:
    data = make_data((6, 6))
    sampler, rng = ClassSampler(data), generator(0, "draw")
    first = torch.cat([sampler.draw(4, rng)[:, 0] for _ in range(3000)])
    counts = torch.bincount(first, minlength=12)
    assert ((counts - 500).abs() < 4.5 * (3000 * 5 / 36) ** 0.5).all()


def test_draws_depend_on_the_generator_alone() -> None:
    data = make_data((40, 30))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = ClassSampler(data).draw(10, generator(3, "draw"))
    torch.randn(3)
    assert torch.equal(first, ClassSampler(data).draw(10, generator(3, "draw")))
    assert not torch.equal(first, ClassSampler(data).draw(10, generator(4, "draw")))
    torch.set_rng_state(state)
    draw_per_class(data, 3, generator(3, "draw"))
    assert torch.equal(state, torch.get_rng_state())


def test_class_with_too_few_images_repeats_all_of_them_evenly() -> None:
    data = make_data((3, 50, 10))
    for n in (8, 10, 64):
        drawn = ClassSampler(data).draw(n, generator(0, "draw"))
        for c, row in enumerate(drawn):
            assert (data.labels[row] == c).all()
            times = torch.bincount(row, minlength=len(data))[data.class_indices[c]]
            assert times.max() - times.min() <= 1
            assert times.sum() == n


def test_draw_per_class_refuses_a_class_with_too_few_images() -> None:
    data = make_data((30, 9, 25))
    assert draw_per_class(data.class_indices, 9, generator(0, "init")).shape == (3, 9)
    with pytest.raises(InputError, match=r"'class 1' has 9 images, but 10 of each class are needed: lower --ipc"):
        draw_per_class(data, 10, generator(0, "init"))
    with pytest.raises(InputError, match="class 'b' has no images"):
        ClassSampler(ImageData(data.images[:2], torch.zeros(2).long(), (0,) * 3, (1,) * 3, ("a", "b"), "x"))
