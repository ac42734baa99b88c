"""Volumes as pictures: a flat object is seen from its face, upright, whichever way it lies, at any brightness."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from common.report.voxels import SIDE, render

# Where a picture's ring has its hole, and what is outside of it.
CENTRE = (slice(SIDE // 2 - 3, SIDE // 2 + 3),) * 2
EDGES = (slice(0, 3), slice(SIDE - 3, SIDE))


def ring() -> Tensor:
    """A ring in the plane of H and W, 4 voxels thick: [1, 16, 16, 16]."""
    row, column = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    radius = (row.square() + column.square()).sqrt()
    volume = torch.zeros(1, 16, 16, 16)
    volume[0, 6:10] = ((radius > 4) & (radius < 7)).float()
    return volume


def letter_l() -> Tensor:
    """An L in the plane of H and W: a stem at small W, a foot at large H."""
    volume = torch.zeros(1, 16, 16, 16)
    volume[0, 6:10, 1:15, 2:6] = 1
    volume[0, 6:10, 11:15, 2:13] = 1
    return volume


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_a_turned_ring_shows_its_hole(order: tuple[int, int, int]) -> None:
    picture = render(ring().permute(0, *order))[0]
    assert picture.shape == (SIDE, SIDE)
    assert picture[CENTRE].min() > 0.95
    assert all(picture[rows].min() > 0.95 for rows in EDGES)
    dark = picture < 0.8
    assert 0.15 < dark.float().mean() < 0.6
    # All around the hole.
    middle = SIDE // 2
    assert all(part.any() for part in (dark[middle, :middle], dark[middle, middle:]))
    assert all(part.any() for part in (dark[:middle, middle], dark[middle:, middle]))


def test_a_ring_turned_by_any_angle_shows_its_hole() -> None:
    angle = torch.linspace(0, torch.pi, 7)
    zero, one = torch.zeros(7), torch.ones(7)
    cos, sin = angle.cos(), angle.sin()
    about_width = torch.stack([one, zero, zero, zero, zero, cos, -sin, zero, zero, sin, cos, zero], dim=1).view(7, 3, 4)
    grid = torch.nn.functional.affine_grid(about_width, [7, 1, 16, 16, 16], align_corners=False)
    turned = torch.nn.functional.grid_sample(ring().expand(7, 1, -1, -1, -1), grid, align_corners=False)[:, 0]
    for picture in render(turned):
        assert picture[CENTRE].min() > 0.9
        assert (picture < 0.8).float().mean() > 0.15


def test_what_faces_the_front_is_neither_turned_nor_mirrored() -> None:
    dark = render(letter_l())[0] < 0.8
    half = SIDE // 2
    counts = {
        (row, column): int(dark[rows, columns].sum())
        for row, rows in enumerate((slice(half), slice(half, SIDE)))
        for column, columns in enumerate((slice(half), slice(half, SIDE)))
    }
    assert counts[0, 1] < 0.1 * counts[0, 0]  # nothing at the upper right
    assert counts[1, 0] > counts[0, 0] > 0
    assert counts[1, 1] > 0.2 * counts[1, 0]  # the foot


def test_faint_volumes_are_seen_as_well_as_bright_ones() -> None:
    bright, faint = render(torch.cat([ring(), 0.4 * ring()]))
    assert (bright - faint).abs().max() < 0.1


def test_haze_is_left_out(draws: torch.Generator) -> None:
    hazy = (ring() + 0.25 * torch.rand(1, 16, 16, 16, generator=draws)).clamp(0, 1)
    clear, seen = render(ring())[0], render(hazy)[0]
    assert seen[CENTRE].min() > 0.95
    assert (seen - clear)[clear > 0.99].abs().mean() < 0.1


def test_a_volume_is_drawn_the_same_beside_others() -> None:
    both = render(torch.cat([letter_l(), ring()]))
    torch.testing.assert_close(both[:1], render(letter_l()))
    torch.testing.assert_close(both[1:], render(ring()))


@pytest.mark.parametrize("sides", [(1, 1, 1), (2, 5, 3), (8, 8, 8), (1, 16, 9), (32, 4, 4)])
def test_any_size_and_content_can_be_drawn(sides: tuple[int, int, int], draws: torch.Generator) -> None:
    volumes = torch.stack([torch.zeros(sides), torch.ones(sides), torch.rand(sides, generator=draws)])
    pictures = render(volumes)
    assert pictures.shape == (3, SIDE, SIDE)
    assert pictures.isfinite().all()
    assert ((pictures >= 0) & (pictures <= 1)).all()
    assert (pictures[0] == 1).all()
    assert pictures[1].min() < 0.8
