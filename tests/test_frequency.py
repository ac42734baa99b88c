import math
from fractions import Fraction

import numpy as np
import pytest
import pywt
import torch
from scipy import fft

from common import frequency
from common.system.errors import InputError


@pytest.mark.parametrize("im_size", [(8, 8), (28, 28), (32, 32), (12, 20), (16, 16, 16), (4, 6, 8)])
def test_dct_equals_scipy_and_inverts(im_size, draws):
    ndim = len(im_size)
    x = torch.randn(3, 2, *im_size, generator=draws)
    axes = tuple(range(-ndim, 0))
    expected = fft.dctn(x.double().numpy(), type=2, norm=None, axes=axes)
    coefficients = frequency.dct(x, ndim)
    assert coefficients.dtype == torch.float32
    assert np.abs(coefficients.numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert (frequency.idct(coefficients, ndim) - x).norm() < 1e-5 * x.norm()


@pytest.mark.parametrize("direction", [frequency.dct, frequency.idct])
@pytest.mark.parametrize("im_size", [(4, 5), (2, 3, 4)])
def test_gradients_agree_with_finite_differences(direction, im_size, draws):
    x = torch.randn(2, *im_size, generator=draws, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: direction(y, len(im_size)), (x,))


def test_orthonormal_scale_relates_the_two_dcts(draws):
    x = torch.randn(5, 12, 20, generator=draws, dtype=torch.float64)
    orthonormal = torch.from_numpy(fft.dctn(x.numpy(), norm="ortho", axes=(-2, -1)))
    scaled = frequency.dct(x, 2) / frequency.orthonormal_scale((12, 20))
    torch.testing.assert_close(scaled, orthonormal)
    # The units of the published learning rates: 4 N^2, 8 N^2 and 16 N^2 per squared coefficient.
    squared = frequency.orthonormal_scale((32, 32)).square() / 32**2
    torch.testing.assert_close(squared[:2, :2], torch.tensor([[16.0, 8.0], [8.0, 4.0]], dtype=torch.float64))


def test_identity_changes_nothing(draws):
    x = torch.randn(2, 3, 8, 8, generator=draws)
    assert frequency.forward(x, 2, "identity") is x
    assert frequency.inverse(x, 2, "identity") is x
    assert torch.equal(frequency.orthonormal_scale((8, 8), "identity"), torch.ones(8, 8, dtype=torch.float64))


def test_the_transform_is_float32_under_mixed_precision(draws):
    x = torch.randn(2, 3, 32, 32, generator=draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = frequency.dct(x, 2)
    assert torch.equal(mixed, frequency.dct(x, 2))
    assert frequency.dct(x.bfloat16(), 2).dtype == torch.float32


def test_unknown_transform_is_named():
    with pytest.raises(InputError, match=r"unknown transform 'fourier'.*dct, dft, dwt, identity"):
        frequency.forward(torch.zeros(8, 8), 2, "fourier")


SIZES = {"dct": (5, 6), "dft": (5, 6), "dwt": (4, 8), "identity": (5, 6)}
SIZES_3D = {"dct": (2, 3, 4), "dft": (3, 4, 5), "dwt": (4, 8, 4), "identity": (2, 3, 4)}
SHAPES = [*SIZES.items(), *SIZES_3D.items(), ("dft", (8, 8)), ("dft", (7, 7)), ("dwt", (28, 28)), ("dwt", (12, 20))]


@pytest.mark.parametrize(("transform", "im_size"), SHAPES)
def test_each_transform_inverts_and_keeps_the_norm(transform, im_size, draws):
    ndim = len(im_size)
    x = torch.randn(3, 2, *im_size, generator=draws, dtype=torch.float64)
    coefficients = frequency.forward(x, ndim, transform)
    assert coefficients.shape == x.shape
    assert coefficients.dtype == torch.float64
    torch.testing.assert_close(frequency.inverse(coefficients, ndim, transform), x)
    # Parseval: d numbers hold the image, and each has the scale that is stated.
    orthonormal = coefficients / frequency.orthonormal_scale(im_size, transform)
    axes = tuple(range(-ndim, 0))
    torch.testing.assert_close(orthonormal.square().sum(axes), x.square().sum(axes))
    assert (frequency.inverse(coefficients.float(), ndim, transform) - x).norm() < 1e-5 * x.norm()


@pytest.mark.parametrize(("transform", "im_size"), [*SIZES.items(), *SIZES_3D.items()])
@pytest.mark.parametrize("direction", [frequency.forward, frequency.inverse])
def test_each_transform_is_differentiable(direction, transform, im_size, draws):
    x = torch.randn(2, *im_size, generator=draws, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: direction(y, len(im_size), transform), (x,))
    assert torch.autograd.gradgradcheck(lambda y: direction(y, len(im_size), transform).square(), (x,))


@pytest.mark.parametrize("im_size", [(4, 4), (5, 6), (7, 7), (4, 3, 2)])
def test_dft_holds_each_conjugate_pair_once(im_size, draws):
    axes = tuple(range(1, 1 + len(im_size)))
    x = torch.randn(2, *im_size, generator=draws, dtype=torch.float64)
    packed = frequency.forward(x, len(im_size), "dft").numpy()
    spectrum = np.fft.fftn(x.numpy(), axes=axes)
    scale = frequency.orthonormal_scale(im_size, "dft").square().numpy() / math.prod(im_size)
    for position in np.ndindex(*im_size):
        partner = tuple(-u % n for u, n in zip(position, im_size, strict=True))
        at = (slice(None), *position)
        part = spectrum[at].real if position <= partner else spectrum[at].imag
        np.testing.assert_allclose(packed[at], part, atol=1e-12)
        # A pair is two numbers of half the energy each, a frequency that is its own negative one number.
        assert scale[position] == pytest.approx(1.0 if position == partner else 0.5)


def test_any_choice_of_dft_positions_decodes_to_a_real_image_that_has_them(draws):
    kept = torch.randperm(64, generator=draws)[:13]
    packed = torch.zeros(64, dtype=torch.float64)
    packed[kept] = torch.randn(13, generator=draws, dtype=torch.float64)
    image = frequency.inverse(packed.view(8, 8), 2, "dft")
    assert image.dtype == torch.float64
    torch.testing.assert_close(frequency.forward(image, 2, "dft").flatten(), packed)


@pytest.mark.parametrize("im_size", [(8, 8), (28, 28), (12, 20), (8, 4, 16)])
def test_dwt_is_the_haar_pyramid_of_pywavelets(im_size, draws):
    x = torch.randn(*im_size, generator=draws, dtype=torch.float64)
    levels = {28: 2, 12: 2}.get(im_size[0], min(im_size).bit_length() - 1)
    expected, _ = pywt.coeffs_to_array(pywt.wavedecn(x.numpy(), "haar", mode="periodization", level=levels))
    np.testing.assert_allclose(frequency.forward(x, len(im_size), "dwt").numpy(), expected, atol=1e-12)


def test_the_slowest_positions_are_block_averages_under_dwt(draws):
    x = torch.randn(8, 8, generator=draws, dtype=torch.float64)
    coarse = frequency.frequencies((8, 8), "dwt") <= 2  # of three levels, all but the finest
    assert coarse.sum() == 16
    kept = frequency.inverse(frequency.forward(x, 2, "dwt") * coarse, 2, "dwt")
    blocks = torch.nn.functional.avg_pool2d(x[None, None], 2)
    torch.testing.assert_close(kept, torch.nn.functional.interpolate(blocks, scale_factor=2)[0, 0])


def test_frequencies_rank_by_how_fast_an_image_varies():
    for transform in ("dct", "dft", "dwt"):
        rank = frequency.frequencies((8, 8), transform)
        assert rank[0, 0] == 0
        assert (rank.flatten()[1:] > 0).all()
    dft = frequency.frequencies((8, 8), "dft")
    assert dft[1, 0] == dft[7, 0] == dft[0, 1] < dft[2, 0]  # u and -u are one frequency
    assert dft.argmax() == 4 * 8 + 4
    dct = frequency.frequencies((8, 8), "dct")
    assert dct[2, 1] == dct[1, 2] == dct[0, 3] < dct[7, 7]


@pytest.mark.parametrize("transform", ["dct", "dft"])
def test_positions_of_one_frequency_have_one_value(transform):
    steps = np.arange(28) if transform == "dct" else np.minimum(np.arange(28), 28 - np.arange(28))
    # 55 frequencies of the DCT and 29 of the DFT; sums of rounded shares gave 86 and 41.
    exact = steps[:, None] + steps
    found = frequency.frequencies((28, 28), transform)
    assert len(found.unique()) == len(np.unique(exact)) == {"dct": 55, "dft": 29}[transform]
    assert torch.equal(found.flatten().argsort(stable=True), torch.from_numpy(exact).flatten().argsort(stable=True))


@pytest.mark.parametrize("im_size", [(28, 20), (12, 12, 12), (6, 10, 15)])
@pytest.mark.parametrize("transform", ["dct", "dft", "identity"])
def test_one_frequency_has_one_value_whatever_the_sides(transform, im_size):
    def share(index, side):
        return Fraction(min(index, side - index) if transform == "dft" else index, side)

    exact = [sum(map(share, index, im_size)) for index in np.ndindex(im_size)]
    expected = torch.tensor([float(each) for each in exact], dtype=torch.float64)
    assert torch.equal(frequency.frequencies(im_size, transform).flatten(), expected)


@pytest.mark.parametrize("target", ["dct", "dft", "dwt", "identity"])
def test_a_converted_step_moves_images_alike(target):
    """One SGD step against a unit image that one coefficient makes moves by lr / (4 N^2) of the published unit."""
    lr = frequency.convert_step(256.0, (8, 8), "dct", target)
    scale = frequency.orthonormal_scale((8, 8), target)
    one = torch.zeros(8, 8, dtype=torch.float64)
    one[2, 3] = scale[2, 3]
    unit = frequency.inverse(one, 2, target)
    assert unit.norm() == pytest.approx(1.0)
    coefficients = torch.zeros(8, 8, dtype=torch.float64, requires_grad=True)
    (frequency.inverse(coefficients, 2, target) * unit).sum().backward()
    moved = frequency.inverse(lr * coefficients.grad, 2, target)
    torch.testing.assert_close(moved, 256.0 / (4 * 64) * unit)


def test_images_that_cannot_be_halved_have_no_wavelets():
    with pytest.raises(InputError, match=r"halves every side, which 8x7 does not allow: choose dct or dft"):
        frequency.forward(torch.zeros(8, 7), 2, "dwt")
