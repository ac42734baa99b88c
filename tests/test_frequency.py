import numpy as np
import pytest
import torch
from scipy import fft

from common import frequency
from common.errors import InputError


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
    with pytest.raises(InputError, match=r"unknown transform 'fourier'.*dct, identity"):
        frequency.forward(torch.zeros(8, 8), 2, "fourier")
