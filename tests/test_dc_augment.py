"""DC's augmentation against one image at a time in numpy and scipy, and what a batch adds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

from common.matching.augment import parse_strategy
from common.matching.dc_augment import STRATEGIES, DCParams, apply, sample, strategy_for
from common.system.errors import InputError

SHAPES = [(1, 28, 28), (3, 9, 9), (2, 12, 10)]


def pictures(count: int, shape: tuple[int, ...], seed: int = 1) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def draw(strategy: str, count: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0, **options: object) -> DCParams:
    return sample(strategy, count, torch.Generator().manual_seed(seed), shape, **options)


def means(images: torch.Tensor) -> list[float]:
    return [images[:, c].mean().item() for c in range(images.shape[1])]


def crop(image: np.ndarray, shift: list[int], mean: list[float]) -> np.ndarray:
    _, height, width = image.shape
    padded = np.stack([np.full((height + 8, width + 8), m) for m in mean])
    padded[:, 4 : 4 + height, 4 : 4 + width] = image
    top, left = 4 + shift[0], 4 + shift[1]
    return padded[:, top : top + height, left : left + width]


def scale(image: np.ndarray, size: list[int]) -> np.ndarray:
    channels, height, width = image.shape
    resized = F.interpolate(torch.from_numpy(image)[None], size)[0].numpy()  # nearest
    side = max(*size, height, width)
    canvas = np.zeros((channels, side, side))
    top, left = int((side - size[0]) / 2), int((side - size[1]) / 2)
    canvas[:, top : top + size[0], left : left + size[1]] = resized
    top, left = int((side - height) / 2), int((side - width) / 2)
    return canvas[:, top : top + height, left : left + width]


def rotate(image: np.ndarray, degrees: int, mean: list[float]) -> np.ndarray:
    _, height, width = image.shape
    turned = scipy.ndimage.rotate(image, angle=degrees, axes=(-2, -1), cval=np.mean(mean))
    top, left = int((turned.shape[1] - height) / 2), int((turned.shape[2] - width) / 2)
    return turned[:, top : top + height, left : left + width]


@pytest.mark.parametrize("shape", SHAPES)
def test_crop(shape: tuple[int, int, int]) -> None:
    images, params = pictures(64, shape), draw("crop", 64, shape)
    shifts = params.operations["crop"][1].tolist()
    assert {shift for pair in shifts for shift in pair} == set(range(-4, 4))
    for image, result, shift in zip(images, apply(images, params), shifts, strict=True):
        torch.testing.assert_close(
            result, torch.from_numpy(crop(image.numpy(), shift, means(images))), rtol=0, atol=1e-15
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_scale(shape: tuple[int, int, int]) -> None:
    images, params = pictures(64, shape), draw("scale", 64, shape)
    for axis, side in ((0, shape[1]), (1, shape[2])):
        sizes = params.operations["scale"][1][:, axis]
        assert sizes.min() >= int(0.8 * side)
        assert sizes.max() < 1.2 * side
        assert sizes.min() < side < sizes.max()
    for image, result, size in zip(images, apply(images, params), params.operations["scale"][1].tolist(), strict=True):
        assert torch.equal(result, torch.from_numpy(scale(image.numpy(), size)))


@pytest.mark.parametrize("shape", SHAPES)
def test_rotate_is_scipys_at_every_angle(shape: tuple[int, int, int]) -> None:
    degrees = torch.arange(-45, 45)
    images = pictures(len(degrees), shape)
    params = DCParams(len(degrees), shape, {"rotate": (torch.arange(len(degrees)), degrees)})
    for image, result, angle in zip(images, apply(images, params), degrees.tolist(), strict=True):
        reference = torch.from_numpy(rotate(image.numpy(), angle, means(images)))
        torch.testing.assert_close(result, reference, rtol=0, atol=1e-10)


def test_rotate_draws_whole_degrees() -> None:
    degrees = draw("rotate", 4000).operations["rotate"][1]
    assert degrees.unique().tolist() == list(range(-45, 45))


def test_noise() -> None:
    images, params = pictures(64, (3, 8, 8)), draw("noise", 64)
    noise = apply(images, params) - images
    assert noise.std().item() == pytest.approx(0.001, rel=0.05)
    assert abs(noise.mean().item()) < 5 * 0.001 / noise.numel() ** 0.5
    assert not torch.equal(noise[0], noise[1])


def test_each_image_gets_one_operation_drawn_uniformly() -> None:
    params = draw("crop_scale_rotate", 3000, (1, 4, 4))
    rows = torch.cat([rows for rows, _ in params.operations.values()])
    assert rows.sort().values.tolist() == list(range(3000))
    for name in ("crop", "scale", "rotate"):
        assert len(params.operations[name][0]) == pytest.approx(1000, abs=130)  # five standard deviations


def test_a_mixed_batch_is_each_operation_on_its_images() -> None:
    images, params = pictures(40, (3, 9, 9)), draw("crop_scale_rotate_noise", 40, (3, 9, 9))
    result, mean = apply(images, params), means(images)
    functions = {
        "crop": lambda image, shift: crop(image, shift.tolist(), mean),
        "scale": lambda image, size: scale(image, size.tolist()),
        "rotate": lambda image, degrees: rotate(image, degrees.item(), mean),
        "noise": lambda image, noise: image + 0.001 * noise.double().numpy(),
    }
    assert set(params.operations) == set(functions)
    for name, (rows, values) in params.operations.items():
        for row, value in zip(rows.tolist(), values, strict=True):
            reference = torch.from_numpy(np.ascontiguousarray(functions[name](images[row].numpy(), value)))
            torch.testing.assert_close(result[row], reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "crop_scale_rotate", "crop_noise"])
@pytest.mark.parametrize("count", [1, 7])
def test_single_precision_and_one_pixel(strategy: str, count: int) -> None:
    for shape in ((3, 28, 28), (1, 1, 1)):
        images = pictures(count, shape)
        params = draw(strategy, count, shape, seed=3)
        double, single = apply(images, params), apply(images.float(), params)
        assert single.dtype == torch.float32
        assert double.dtype == torch.float64
        assert double.shape == single.shape == images.shape
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-3 if "rotate" in strategy else 1e-5)


def test_the_generator_alone_decides(draws: torch.Generator) -> None:
    images = pictures(20, (3, 8, 8))
    state = torch.get_rng_state()
    first, again, other = (apply(images, draw("crop_scale_rotate_noise", 20, seed=seed)) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, pictures(20, (3, 8, 8)))


@pytest.mark.cuda
def test_a_gpu_does_the_same() -> None:
    images = pictures(40, (3, 28, 28))
    here = apply(images, draw("crop_scale_rotate_noise", 40, (3, 28, 28)))
    there = apply(images.cuda(), draw("crop_scale_rotate_noise", 40, (3, 28, 28), device="cuda"))
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strategy", ["", "none", "None"])
def test_no_strategy_is_the_identity(strategy: str) -> None:
    images = pictures(2, (1, 4, 4, 4))
    assert apply(images, draw(strategy, 2, (1, 4, 4, 4))) is images


def test_what_the_authors_augment_with() -> None:
    assert strategy_for("MNIST", "ConvNetD3") == "crop_scale_rotate"
    assert strategy_for("MNIST", "ConvNetBN") == strategy_for("CIFAR10", "ConvNetBN") == "crop_noise"
    assert strategy_for("CIFAR10", "ConvNetD3") == ""
    assert parse_strategy("Crop_noise", STRATEGIES) == ("crop", "noise")


def test_what_it_refuses() -> None:
    with pytest.raises(InputError, match=r"'flip' in 'crop_flip' is not one .* crop, scale, rotate, noise"):
        draw("crop_flip", 2)
    with pytest.raises(InputError, match=r"\[ch, H, W\]"):
        draw("crop", 2, (1, 4, 4, 4))
    with pytest.raises(ValueError, match="were drawn for"):
        apply(pictures(3, (3, 8, 8)), draw("crop", 2))
    with pytest.raises(ValueError, match="bfloat16"):
        apply(pictures(2, (3, 8, 8)).bfloat16(), draw("crop", 2))
