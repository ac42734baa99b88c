import pytest
import torch
from sklearn.datasets import load_digits

from common import frequency
from common.synset.selection import select
from common.system.errors import InputError


def by_explained_variance(images: torch.Tensor, k: int, transform: str = "dct") -> set[int]:
    """The paper's definition, one basis vector at a time, from the covariance matrix; ties to energy, then index."""
    x = frequency.forward(images.double(), images.dim() - 2, transform).mean(dim=1).flatten(1)
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / max(len(x) - 1, 1)
    ratio = []
    for j in range(x.shape[1]):
        basis = torch.zeros(x.shape[1], dtype=torch.float64)
        basis[j] = 1
        ratio.append((basis @ covariance @ basis / covariance.trace()).item())
    scale = frequency.orthonormal_scale(images.shape[2:], transform).flatten()
    energy = (
        (frequency.forward(images.double(), images.dim() - 2, transform).flatten(2) / scale).square().mean(dim=(0, 1))
    )
    ranked = sorted(range(len(ratio)), key=lambda j: (-ratio[j], -energy[j].item(), j))
    return set(ranked[:k])


def positions(rule, images, k, transform="dct", **more):
    return select(rule, [[images]], k, transform, **more)[0]


@pytest.mark.parametrize("transform", ["dct", "dft", "dwt", "identity"])
@pytest.mark.parametrize("k", [1, 7, 16, 64])
def test_variance_is_the_explained_variance_rule_on_random_images(k, transform, draws):
    images = torch.randn(6, 3, 8, 8, generator=draws)
    assert set(positions("variance", images, k, transform).tolist()) == by_explained_variance(images, k, transform)


@pytest.mark.parametrize("k", [4, 16, 40])
def test_variance_is_the_explained_variance_rule_on_real_images(k):
    digits = load_digits()
    for c in range(3):
        images = torch.from_numpy(digits.images[digits.target == c][:20]).float()[:, None]
        assert set(positions("variance", images, k).tolist()) == by_explained_variance(images, k)


def test_ties_go_to_the_larger_energy_then_the_lower_index():
    # Plain pixels: 0 and 3 vary alike, 1, 2 and 4 do not vary; 4 is brighter than 1 and 2, which are equal.
    images = torch.tensor([[1.0, 5, 5, 1, 7, 0], [3.0, 5, 5, 3, 7, 0]]).view(2, 1, 2, 3)
    ranked = [0, 3, 4, 1, 2, 5]
    for k in range(1, 7):
        expected = sorted(ranked[:k])
        assert positions("variance", images, k, "identity").tolist() == expected
        assert set(expected) == by_explained_variance(images, k, "identity")


def test_one_image_and_constant_images_are_decided_by_energy(draws):
    image = torch.randn(1, 3, 8, 8, generator=draws)
    by_energy = positions("energy", image, 10)
    assert torch.equal(positions("variance", image, 10), by_energy)
    assert torch.equal(positions("variance", image.expand(5, -1, -1, -1), 10), by_energy)


def test_energy_has_the_least_reconstruction_error(draws):
    images = torch.randn(4, 3, 4, 4, generator=draws) + 2
    k = 5

    def error(kept):
        coefficients = frequency.dct(images, 2).flatten(2)
        mask = torch.zeros(16).index_fill(0, kept.long(), 1.0)
        return (frequency.idct((coefficients * mask).unflatten(2, (4, 4)), 2) - images).square().sum()

    best = error(positions("energy", images, k))
    for _ in range(200):
        assert best <= error(torch.randperm(16, generator=draws)[:k]) * (1 + 1e-6)


def test_a_class_may_come_in_chunks(draws):
    images = torch.randn(30, 2, 8, 8, generator=draws) * torch.rand(8, 8, generator=draws) + 100
    for rule in ("variance", "energy"):
        whole = select(rule, [[images]], 20, "dct")
        assert torch.equal(select(rule, [iter(images.split(7))], 20, "dct"), whole)


def test_low_keeps_the_corner_and_random_follows_its_generator():
    images = torch.zeros(2, 1, 4, 4)
    assert positions("low", images, 6).tolist() == [0, 1, 2, 4, 5, 8]
    first, again, other = (
        positions("random", images, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(set(first.tolist())) == 6


def test_low_breaks_ties_by_index_at_the_size_of_mnist():
    chosen = select("low", [[torch.zeros(1, 1, 28, 28)]], 196, "dct")[0].tolist()
    ranked = sorted(range(784), key=lambda index: (index // 28 + index % 28, index))
    assert chosen == sorted(ranked[:196])
    # With frequencies that rounding set apart, 451 and 478 were kept instead.
    assert {127, 154} <= set(chosen)
    assert not {451, 478} & set(chosen)


def test_classes_have_positions_of_their_own_ascending_and_3d_works(draws):
    images = torch.randn(2, 5, 1, 4, 4, 4, generator=draws)
    chosen = select("variance", [[rows] for rows in images], 9, "dct")
    assert chosen.shape == (2, 9)
    assert chosen.dtype == torch.int32
    assert (chosen.diff(dim=1) > 0).all()
    for rows, expected in zip(chosen, images, strict=True):
        assert set(rows.tolist()) == by_explained_variance(expected, 9)


@pytest.mark.parametrize("rule", ["variance", "energy", "low"])
def test_all_coefficients(rule, draws):
    assert positions(rule, torch.randn(3, 1, 4, 4, generator=draws), 16).tolist() == list(range(16))


@pytest.mark.parametrize(
    ("rule", "k", "message"),
    [
        ("best", 4, "unknown selection rule 'best'"),
        ("variance", 17, "4x4 images have 16"),
        ("variance", 0, "out of range"),
    ],
)
def test_bad_requests_are_named(rule, k, message):
    with pytest.raises(InputError, match=message):
        positions(rule, torch.zeros(3, 1, 4, 4), k)
