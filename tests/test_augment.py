"""DSA against slow references, pixel by pixel, and the properties that distillation leans on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF

from common.matching.augment import STRATEGIES, DSAParams, apply, parse_strategy, sample, stretch
from common.system.errors import InputError

ALL = "color_crop_cutout_flip_scale_rotate"
SIZES = [(16, 16), (7, 7), (12, 9), (28, 28)]


def draw(
    strategy: str, groups: int, seed: int = 0, im_size: tuple[int, int] = (16, 16), **options: object
) -> DSAParams:
    generator = torch.Generator().manual_seed(seed)
    return sample(strategy, groups, generator, im_size, dtype=torch.float64, **options)


def pictures(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def resampled(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bilinear values of image [ch, H, W] at matrix @ (x, y), in pixels from the centre, zero outside; by loops."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    for i in range(height):
        for j in range(width):
            x, y = matrix @ (np.array([j, i]) - centre) + centre
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        weight = (1 - abs(y - row)) * (1 - abs(x - column))
                        out[:, i, j] += weight * image[:, row, column]
    return out


def equal(result: torch.Tensor, reference: object) -> None:
    torch.testing.assert_close(result, torch.as_tensor(reference), rtol=0, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_color(channels: int) -> None:
    images = pictures(4, channels, 16, 16)
    params = draw("color", 4)
    for image, result, (brightness, saturation, contrast) in zip(
        images, apply(images, params), params.color, strict=True
    ):
        x = image.numpy() + brightness.item()
        x = (x - x.mean(axis=0)) * saturation.item() + x.mean(axis=0)
        equal(result, (x - x.mean()) * contrast.item() + x.mean())


@pytest.mark.parametrize("size", SIZES)
def test_crop_is_a_shift_by_whole_pixels(size: tuple[int, int]) -> None:
    images = pictures(8, 2, *size)
    params = draw("crop", 8, im_size=size)
    most = [int(0.125 * side + 0.5) for side in size]
    for image, result, theta in zip(images, apply(images, params), params.theta, strict=True):
        right, down = theta[0, 2].item() * size[1] / 2, theta[1, 2].item() * size[0] / 2
        assert right == pytest.approx(round(right), abs=1e-12)
        assert down == pytest.approx(round(down), abs=1e-12)
        padded = F.pad(image, (most[1], most[1], most[0], most[0]))
        top, left = most[0] + round(down), most[1] + round(right)
        equal(result, padded[:, top : top + size[0], left : left + size[1]])


@pytest.mark.parametrize("size", SIZES)
def test_cutout(size: tuple[int, int]) -> None:
    images = pictures(8, 2, *size)
    params = draw("cutout", 8, im_size=size)
    cut = [int(0.5 * side + 0.5) for side in size]
    for image, result, (top, left) in zip(images, apply(images, params), params.cutout.tolist(), strict=True):
        reference = image.clone()
        for row in range(top, top + cut[0]):
            for column in range(left, left + cut[1]):
                if 0 <= row < size[0] and 0 <= column < size[1]:
                    reference[:, row, column] = 0
        equal(result, reference)


def test_colours_in_one_operation_are_those_in_three() -> None:
    """As an accelerator computes them, with factors above and below a half."""
    images, factor = pictures(6, 2, 3, 5, 4).requires_grad_(), torch.linspace(0, 2, 6, dtype=torch.float64)
    results = []
    for at_once in (False, True):
        result = stretch(images, images.mean(dim=2, keepdim=True), factor[:, None, None, None, None], at_once)
        results.append((result, torch.autograd.grad(result, images, pictures(*images.shape, seed=2))[0]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


def test_flip() -> None:
    images = pictures(16, 3, 12, 9)
    params = draw("flip", 16, im_size=(12, 9))
    result = apply(images, params)
    assert 0 < params.flipped.sum() < 16
    assert torch.equal(result[params.flipped], TF.hflip(images[params.flipped]))
    assert torch.equal(result[~params.flipped], images[~params.flipped])


@pytest.mark.parametrize("size", SIZES[1:3])
def test_scale(size: tuple[int, int]) -> None:
    images = pictures(4, 2, *size)
    params = draw("scale", 4, im_size=size)
    for image, result, theta in zip(images, apply(images, params), params.theta.numpy(), strict=True):
        assert theta[0, 1] == theta[1, 0] == theta[0, 2] == theta[1, 2] == 0
        equal(result, resampled(image.numpy(), np.diag([theta[0, 0], theta[1, 1]])))


def test_scale_above_one_shrinks() -> None:
    images = torch.ones(64, 1, 16, 16, dtype=torch.float64)
    params = draw("scale", 64)
    border = apply(images, params)[:, 0, 8, 0]  # the middle of the left border
    shrunk = params.theta[:, 0, 0] > 1.1
    assert shrunk.any()
    assert (border[shrunk] < 0.5).all()
    equal(border[params.theta[:, 0, 0] < 1], 1.0 + torch.zeros(int((params.theta[:, 0, 0] < 1).sum())).double())


@pytest.mark.parametrize("size", SIZES[:3])
def test_rotate(size: tuple[int, int]) -> None:
    images = pictures(4, 2, *size)
    params = draw("rotate", 4, im_size=size)
    for image, result, theta in zip(images, apply(images, params), params.theta, strict=True):
        angle = math.asin(theta[1, 0].item() * size[0] / size[1])
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        equal(result, resampled(image.numpy(), rotation))
        turned = TF.rotate(image[None], math.degrees(angle), TF.InterpolationMode.BILINEAR)[0]
        torch.testing.assert_close(result, turned, rtol=0, atol=1e-5)  # torchvision's grid is float32


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strategy", ["crop", "flip", "scale", "rotate"])
def test_aligned_corners_sample_the_same_positions(strategy: str, size: tuple[int, int]) -> None:
    # The authors' folders differ in align_corners, which therefore does not matter to their results.
    images = pictures(8, 2, *size)
    plain, aligned = (draw(strategy, 8, im_size=size, align_corners=choice) for choice in (False, True))
    assert aligned.align_corners
    assert aligned[2:4].to("cpu").align_corners
    equal(apply(images, aligned), apply(images, plain))


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_least_images_are_augmented(align_corners: bool) -> None:
    for size in ((1, 1), (1, 5), (5, 1)):
        result = apply(pictures(60, 1, *size), draw(ALL, 60, im_size=size, align_corners=align_corners))
        assert result.isfinite().all()


def test_a_class_gets_the_same_parameters_whatever_its_number_of_images() -> None:
    shared = pictures(12, 1, 3, 16, 16)
    real = torch.cat([shared, pictures(12, 6, 3, 16, 16, seed=2)], dim=1)  # 7 images per class, the first one is shared
    params = draw(ALL, 12, seed=3)
    assert set(params.strategies) == set(STRATEGIES)
    first = apply(real.flatten(0, 1), params).unflatten(0, (12, 7))[:, 0]
    equal(first, apply(shared.flatten(0, 1), params))


def test_float32_agrees_with_float64() -> None:
    images = pictures(24, 3, 32, 32)
    params = draw(ALL, 12, im_size=(32, 32))
    result = apply(images.float(), params)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), apply(images, params), rtol=0, atol=3e-5)


def test_per_image_mode_draws_one_strategy_and_a_parameter_for_each_image() -> None:
    seen = set()
    for seed in range(40):
        params = draw(ALL, 8, seed=seed, one_strategy=True)
        assert len(set(params.strategies)) == 1
        seen.add(params.strategies[0])
        stages = {"color": params.color, "cutout": params.cutout, "flip": params.flipped}
        drawn = stages.get(params.strategies[0], params.theta)[:, None]
        assert len(drawn.flatten(1).unique(dim=0)) > 1
    assert seen == set(STRATEGIES)


@pytest.mark.parametrize("strategy", ["color", "rotate", "cutout", "flip"])
def test_stages_that_no_group_uses_are_absent(strategy: str) -> None:
    params = draw(strategy, 4)
    assert (params.theta is not None) == (params.moved is not None) == (strategy == "rotate")
    assert (params.color is not None) == (params.colored is not None) == (strategy == "color")
    assert (params.cutout is not None) == (strategy == "cutout")
    assert (params.flipped is not None) == (strategy == "flip")


def test_groups_are_untouched_by_the_strategies_of_others() -> None:
    images = pictures(40, 3, 16, 16).float()
    result = apply(images, draw("flip_cutout_color", 40))
    params = draw("flip_cutout_color", 40)
    still = torch.tensor([name == "flip" for name in params.strategies]) & ~params.flipped
    assert still.any()
    assert torch.equal(result[still], images[still])


def test_slices_give_what_the_whole_gives() -> None:
    images = pictures(20, 3, 16, 16)
    params = draw(ALL, 10)
    whole = apply(images, params)
    for start, stop in ((0, 3), (3, 4), (4, 10), (0, 10)):
        part = params[start:stop]
        assert part.groups == stop - start
        assert torch.equal(apply(images[2 * start : 2 * stop], part), whole[2 * start : 2 * stop])
        assert (part.cutout is not None) == ("cutout" in part.strategies)
    with pytest.raises(TypeError, match="range"):
        params[0]
    with pytest.raises(ValueError, match="0 groups"):
        apply(images, params[3:3])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_flow(strategy: str) -> None:
    images = pictures(4, 2, 4, 5).requires_grad_()
    params = draw(strategy, 2, im_size=(4, 5))
    assert torch.autograd.gradcheck(lambda x: apply(x, params), images)


@pytest.mark.parametrize("strategy", ["color", "cutout"])
def test_gradients_flow_twice(strategy: str) -> None:
    # The others are linear in the images and have no second derivative; grid_sample's is missing in older torch.
    images = pictures(4, 2, 4, 5).requires_grad_()
    params = draw(strategy, 2, im_size=(4, 5))
    assert torch.autograd.gradgradcheck(lambda x: apply(x, params), images)


def test_draws_depend_on_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = draw(ALL, 10, seed=5), draw(ALL, 10, seed=5), draw(ALL, 10, seed=6)
    images = pictures(10, 3, 16, 16)
    assert torch.equal(apply(images, first), apply(images, again))
    assert not torch.equal(apply(images, first), apply(images, other))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.to("cpu", torch.float32).theta.dtype == torch.float32


def test_ranges() -> None:
    draws, size = 4000, (32, 15)

    def uniform(values: torch.Tensor, low: float, high: float) -> bool:
        width = high - low
        close = values.min() < low + 0.01 * width and values.max() > high - 0.01 * width
        return bool(values.min() >= low and values.max() <= high and close) and math.isclose(
            values.mean().item(), (low + high) / 2, abs_tol=0.03 * width
        )

    color = draw("color", draws, im_size=size).color
    assert uniform(color[:, 0], -0.5, 0.5)
    assert uniform(color[:, 1], 0, 2)
    assert uniform(color[:, 2], 0.5, 1.5)
    scale = draw("scale", draws, im_size=size).theta
    assert uniform(scale[:, 0, 0], 1 / 1.2, 1.2)
    assert uniform(scale[:, 1, 1], 1 / 1.2, 1.2)
    angle = torch.rad2deg(torch.asin(draw("rotate", draws).theta[:, 1, 0]))
    assert uniform(angle, -15, 15)
    crop = draw("crop", draws, im_size=size).theta
    shifts = [(crop[:, axis, 2] * side / 2).round().long() for axis, side in ((1, 32), (0, 15))]
    cutout = draw("cutout", draws, im_size=size).cutout
    centres = [cutout[:, 0] + 16 // 2, cutout[:, 1] + 8 // 2]
    # Sides 32 and 15: shifts up to 4 and 2; squares of 16 and 8, even, so that the centre may be one past the end.
    for integers, low, high in ((shifts[0], -4, 4), (shifts[1], -2, 2), (centres[0], 0, 32), (centres[1], 0, 15)):
        values, counts = integers.unique(return_counts=True)
        assert values.tolist() == list(range(low, high + 1))
        assert (counts / draws * len(values) - 1).abs().max() < 0.35
    assert draw("cutout", draws, im_size=(6, 6)).cutout.unique().tolist() == list(range(-1, 5))  # 3 is odd: 0..5
    flips = draw("flip", draws).flipped.double().mean().item()
    assert flips == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("one_strategy", [False, True])
def test_strategies_are_drawn_uniformly(one_strategy: bool) -> None:
    if one_strategy:
        drawn = [draw(ALL, 1, seed=seed, one_strategy=True).strategies[0] for seed in range(1200)]
    else:
        drawn = list(draw(ALL, 1200).strategies)
    chi_square = sum((drawn.count(name) - 200) ** 2 / 200 for name in STRATEGIES)
    assert chi_square < 20.5  # 5 degrees of freedom: exceeded once in 1000


@pytest.mark.parametrize("strategy", ["", "none", "None"])
def test_no_strategy_is_the_identity_in_any_dimension(strategy: str) -> None:
    images = torch.randn(6, 1, 4, 4, 4)
    assert apply(images, sample(strategy, 3, torch.Generator(), (4, 4, 4))) is images


def test_strategy_names() -> None:
    assert parse_strategy(ALL) == STRATEGIES
    assert parse_strategy("Flip") == ("flip",)
    assert parse_strategy("none") == ()
    for wrong in ("flip_zoom", "flip__crop", "color,crop"):
        with pytest.raises(InputError, match="color, crop, cutout, flip, scale, rotate"):
            parse_strategy(wrong)


def test_what_cannot_be_augmented_is_explained() -> None:
    with pytest.raises(InputError, match="two-dimensional"):
        sample("flip", 2, torch.Generator(), (4, 4, 4))
    with pytest.raises(ValueError, match="0 groups"):
        draw("flip", 0)
    params = draw("flip", 2)
    for images, message in (
        (torch.zeros(3, 1, 16, 16), "3 images do not divide into 2 groups"),
        (torch.zeros(2, 1, 16, 16, 16), "was given images"),
        (torch.zeros(2, 1, 8, 16), "was given images"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.bfloat16), "bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            apply(images, params)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_agrees_with_the_cpu() -> None:
    images = pictures(24, 3, 32, 32)
    params = draw(ALL, 12, im_size=(32, 32))
    equal(apply(images.cuda(), params.to("cuda")).cpu(), apply(images, params))


def test_mixed_precision_stays_outside():
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    params = sample("scale_rotate_color", 6, torch.Generator().manual_seed(1), (32, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = apply(images, params)
    assert torch.equal(mixed, apply(images, params))
