"""Values of images that others made: told by their range, converted where asked for, never taken silently."""

import dataclasses
import re

import pytest
import torch

from common import evaluate, load_dataset
from common.datasets import statistics
from common.images.pixel_values import as_normalised, likely_values, normalised_by
from common.images.zca import whitened
from common.pretrained.convert import Provenance, from_authors
from common.synset.authors import read_authors
from common.synset.file import load_synset
from common.synset.open import open_synset
from common.system.errors import InputError
from tests.authors_files import synthetic, write_pair
from tests.command_line import assert_refused, call

pytestmark = pytest.mark.usefixtures("cache")

KNOWN = ["--dataset", "digits", "--model", "ConvNetD1W32"]
PROTOCOL = ["--epoch_eval_train", 20, "--lr_net", 0.01, "--batch_train", 256, "--dsa_strategy", "none"]
QUICK = ["--num_eval", 1, "--device", "cpu"]
MEAN, STD = (each[0] for each in statistics("digits"))
TOP = {"unit": 1, "signed": 1, "bytes": 255}
BOTTOM = {"unit": 0, "signed": -1, "bytes": 0}


@pytest.fixture(scope="module")
def digits():
    """(images, labels): 4 images of 16 coefficients in each of 10 classes, normalised."""
    train, _ = load_dataset("digits")
    synset = synthetic(10, 1, (8, 8), 16)
    synset.init(train, train.labels, train.class_indices)
    return synset.get(need_copy=True)


def in_units(images, values):
    """Normalised images of digits as others would store them, in 0..1, -1..1 or 0..255, and a little beyond."""
    if values not in TOP:
        return images
    return (images * STD + MEAN) * (TOP[values] - BOTTOM[values]) + BOTTOM[values]


def real_pixels(values, count=20):
    """Real images of digits in 0..1, -1..1 or 0..255."""
    raw = load_dataset("digits")[1].images[:count].float() / 255
    return raw * (TOP[values] - BOTTOM[values]) + BOTTOM[values]


# -- told apart ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["MNIST", "FashionMNIST", "SVHN", "CIFAR10", "CIFAR100", "Tiny", "imagenet-a", "digits"]
)
def test_each_convention_is_told_by_its_values(name):
    """Boards of two values a standard deviation around the dataset's own mean."""
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in statistics(name))
    bounds = float((-mean / std).min()), float(((1 - mean) / std).max())
    board = (-1.0) ** torch.arange(64).view(1, 1, 8, 8).expand(4, mean.shape[1], 8, 8)
    raw = mean + std * board  # of strokes on black it goes a little below 0
    cases = {
        "unit": [raw, raw.clamp(0, 1), mean + 0.3 * std * board],
        # Real images, some distilled far beyond them, blurred ones.
        "normalised": [board, 8 * board, 0.3 * board, 0.3 * board - 0.01],
    }
    cases["bytes"] = [255 * each for each in cases["unit"][:2]]
    for values, images in cases.items():
        for each in images:
            assert likely_values(each, bounds, statistics(name)) == values


def test_black_strokes_that_were_low_passed_are_told():
    """Of MNIST with 49 coefficients pixels lie in -0.48 to 1.31; black is at -0.42 after normalisation."""
    bounds, values = (-0.42, 2.82), torch.tensor([-0.48, 1.31, 0.9, *[0.0] * 11]).view(1, 1, 2, 7)
    ((mean,), (std,)) = statistics("MNIST")
    assert likely_values(values, bounds, statistics("MNIST")) == "unit"
    assert likely_values((values - mean) / std, bounds, statistics("MNIST")) == "normalised"


def test_where_normalised_images_are_in_0_to_1_nothing_is_said():
    volumes = torch.rand(2, 1, 4, 4, 4)
    assert likely_values(volumes, (0.0, 1.0), ((0.0,), (1.0,))) == "normalised"  # 3D-MNIST: mean 0, std 1


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "SVHN", "CIFAR10", "CIFAR100", "Tiny", "digits"])
def test_pixels_in_minus_1_to_1_are_told_by_their_ends(name):
    """Boards of the dataset's own mean and spread, with a black and a white pixel; distilled ones lie far beyond."""
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in statistics(name))
    bounds = float((-mean / std).min()), float(((1 - mean) / std).max())
    board = (-1.0) ** torch.arange(64).view(1, 1, 8, 8).expand(4, mean.shape[1], 8, 8)
    raw = (mean + std * board).clamp(0, 1)
    raw[0, :, 0, 0], raw[0, :, 0, 1] = 0.0, 1.0
    signed = 2 * raw - 1
    assert likely_values(signed, bounds, statistics(name)) == "signed"
    assert likely_values(signed, (-5.0, 7.0), None) == "signed"  # whitened images
    assert likely_values(raw, bounds, statistics(name)) == "unit"
    for images in (board, 3 * signed, 0.5 * signed, (raw - mean) / std, board * torch.linspace(0.1, 3, 8)):
        assert likely_values(images, bounds, statistics(name)) == "normalised"


def test_where_normalised_images_are_in_minus_1_to_1_nothing_is_said():
    signed = torch.tensor([-1.0, 1.0, *[0.0] * 14]).view(1, 1, 4, 4)
    assert likely_values(signed, (-1.0, 1.0), ((0.5,), (0.5,))) == "normalised"
    assert likely_values(signed, (-1.02, 1.02), ((0.5,), (0.49,))) == "normalised"


@pytest.mark.parametrize("values", ["unit", "signed", "bytes"])
def test_pixels_are_normalised_as_the_dataset_is(digits, values, caplog):
    _, test = load_dataset("digits")
    images, _ = digits
    torch.testing.assert_close(as_normalised(in_units(images, values), values, test, "x"), images)
    raw = real_pixels(values)
    torch.testing.assert_close(as_normalised(raw, values, test, "x"), test.batch(torch.arange(20)))
    assert not caplog.records
    for declared in (None, "normalised"):
        caplog.clear()
        assert as_normalised(raw, declared, test, "x") is raw
        assert len(caplog.records) == (declared is None)


def test_colour_has_a_mean_and_a_std_for_each_channel():
    raw = torch.rand(4, 3, 8, 8)
    mean, std = statistics("CIFAR10")
    expected = (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(normalised_by(raw, "unit", (mean, std), "x"), expected)


@pytest.mark.parametrize(("values", "declared"), [
    ("bytes", "unit"), ("bytes", "signed"), ("unit", "bytes"), ("signed", "bytes"), ("normalised", "bytes"),
    ("normalised", "unit"), ("signed", "unit"), ("normalised", "signed"), ("unit", "signed"),
])  # fmt: skip
def test_a_declaration_that_the_values_contradict_is_refused(digits, values, declared):
    _, test = load_dataset("digits")
    alike = [in_units(digits[0], values)]
    alike += [real_pixels(values)] if values in TOP else [test.batch(torch.arange(20)), 2 * digits[0]]
    for images in alike:
        with pytest.raises(InputError, match=rf"x has values from .*give another --pixels than {declared}"):
            as_normalised(images, declared, test, "x")


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "CIFAR10", "Tiny", "digits"])
@pytest.mark.parametrize("values", ["unit", "signed"])
def test_distilled_pixels_beyond_the_range_are_accepted(name, values):
    """Half as much contrast again as real images have, or half of it; normalised images of any contrast are not."""
    known = statistics(name)
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in known)
    board = (-1.0) ** torch.arange(64).view(1, 1, 8, 8).expand(4, mean.shape[1], 8, 8)
    for contrast in (0.5, 1, 1.5):
        raw = mean + contrast * std * board
        raw[0, :, 0, :2] = torch.tensor([-0.2, 1.3])
        pixels = raw if values == "unit" else 2 * raw - 1
        torch.testing.assert_close(normalised_by(pixels, values, known, "x"), (raw - mean) / std)
    for contrast in (0.75, 1, 1.5, 5):
        with pytest.raises(InputError, match=f"give another --pixels than {values}"):
            normalised_by(contrast * board * torch.linspace(0.7, 1.3, 8), values, known, "x")


def test_whitened_images_are_neither(digits):
    train, test = whitened(*load_dataset("digits"), progress=False)
    for values in ("unit", "signed", "bytes"):
        with pytest.raises(InputError, match="leave it out with --zca"):
            as_normalised(in_units(digits[0], values), values, test, "x")
    own = train.batch(torch.arange(20))
    assert as_normalised(own, None, test, "x") is own


@pytest.mark.parametrize("values", ["unit", "signed", "bytes"])
def test_a_warning_of_whitened_images_gives_flags_that_work(values, caplog):
    _, test = whitened(*load_dataset("digits"), progress=False)
    raw = real_pixels(values)
    assert as_normalised(raw, None, test, "x") is raw
    (said,) = caplog.messages
    assert f"leave out --zca and give --pixels {values} to normalise them" in said


def test_real_and_synthetic_normalised_images_raise_no_warning(digits, caplog):
    train, test = load_dataset("digits")
    as_normalised(train.batch(torch.arange(100)), None, test, "x")
    as_normalised(digits[0], None, test, "x")
    assert not caplog.records


# -- commands --------------------------------------------------------------------------------------------------------


def accuracy(result):
    assert result.code == 0, result.err
    return re.search(r"\d+\.\d\d \+-", result.out)[0]


@pytest.mark.parametrize("values", ["unit", "bytes"])
def test_an_evaluation_warns_and_converts(digits, tmp_path, values, caplog):
    images, labels = digits
    known = [*KNOWN, *PROTOCOL, *QUICK]
    right = call("DM/evaluate.py", "--synset", write_pair(tmp_path / "right", images, labels), *known)
    assert not caplog.records
    file = write_pair(tmp_path / "other", in_units(images, values), labels)
    taken = call("DM/evaluate.py", "--synset", file, *known)
    assert accuracy(taken) != accuracy(right)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{file} has values from" in said
    assert f"give --pixels {values}" in said
    caplog.clear()
    assert accuracy(call("DM/evaluate.py", "--synset", file, *known, "--pixels", values)) == accuracy(right)
    assert accuracy(call("DM/evaluate.py", "--synset", file, *known, "--pixels", "normalised")) == accuracy(taken)
    assert not caplog.records
    # Converted without the flag, the values are still others.
    converted = tmp_path / "pixels.safetensors"
    assert call("common/pretrained/__main__.py", "convert", file, "--as_pixels", "--output", converted).code == 0
    assert not caplog.records  # which dataset it is was not said
    assert accuracy(call("DM/evaluate.py", "--synset", converted, *known)) == accuracy(taken)
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{converted} has values from" in said
    refused = call("DM/evaluate.py", "--synset", converted, *known, "--pixels", values)
    assert_refused(refused, "--pixels says what the authors' files hold", "converted again")


def test_pixels_in_minus_1_to_1_are_warned_of_and_converted(tmp_path, caplog):
    _, test = load_dataset("digits")
    order = test.labels.argsort(stable=True)
    chosen = torch.cat([order[test.labels[order] == label][:2] for label in range(10)])
    known, images = [*KNOWN, *PROTOCOL, *QUICK], test.images[chosen].float() / 255
    right = call(
        "DM/evaluate.py", "--synset", write_pair(tmp_path / "right", test.batch(chosen), test.labels[chosen]), *known
    )
    assert not caplog.records
    file = write_pair(tmp_path / "signed", 2 * images - 1, test.labels[chosen])
    assert accuracy(call("DM/evaluate.py", "--synset", file, *known)) != accuracy(right)
    (said,) = caplog.messages
    assert f"{file} has values from -1 to 1, where normalised images of the dataset have -0.812 to 1.85" in said
    assert "wrong accuracy if these are pixels in -1..1: give --pixels signed" in said
    caplog.clear()
    assert accuracy(call("DM/evaluate.py", "--synset", file, *known, "--pixels", "signed")) == accuracy(right)
    assert not caplog.records
    assert_refused(call("DM/evaluate.py", "--synset", file, *known, "--pixels", "unit"), "no pixels in 0..1")


def test_robustness_and_check_convert_too(digits, tmp_path, caplog, monkeypatch):
    from common.robustness import authors_set
    from common.robustness.options import RobustnessOptions

    images, labels = digits
    file = write_pair(tmp_path / "other", in_units(images, "unit"), labels)
    options = RobustnessOptions(synset=str(file), dataset="digits")
    for pixels, expected in (("unit", images), (None, in_units(images, "unit"))):
        setup = authors_set.authors_set(dataclasses.replace(options, pixels=pixels), tmp_path, torch.device("cpu"))
        torch.testing.assert_close(setup.training_sets(0).images, expected)
        assert len(caplog.records) == (pixels is None)
    caplog.clear()
    words = ["check", file, *KNOWN, *PROTOCOL, *QUICK]
    right = call("common/pretrained/__main__.py", "check", write_pair(tmp_path / "right", *digits), *words[2:])
    found = call("common/pretrained/__main__.py", *words, "--pixels", "unit")
    assert found.code == 0, found.err
    assert found.out == right.out
    assert not caplog.records
    call("common/pretrained/__main__.py", *words)
    assert [record.getMessage() for record in caplog.records if "give --pixels unit" in record.getMessage()]


def test_files_that_say_it_themselves_take_no_pixels(digits, tmp_path):
    assert_refused(call("DM/evaluate.py", "--baseline", "random", *QUICK, "--pixels", "unit"), "with --baseline")
    synset = synthetic(10, 1, (8, 8), 16)
    from common.synset.file import save_synset

    ours = save_synset(synset, tmp_path / "set.safetensors", {"dataset": "digits"})
    refused = call("DM/evaluate.py", "--synset", ours, *QUICK, "--pixels", "normalised")
    assert_refused(refused, "--pixels says what the authors' files hold")
    refused = call("common/pretrained/__main__.py", "check", ours, *QUICK, "--pixels", "unit")
    assert_refused(refused, "--pixels says what the authors' files hold")


# -- converted -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["unit", "signed", "bytes"])
def test_coefficients_are_recovered_from_pixels(digits, tmp_path, values, caplog):
    images, labels = digits
    right, _ = from_authors(read_authors(write_pair(tmp_path / "right", images, labels)), Provenance("digits"))
    assert not caplog.records
    file = write_pair(tmp_path / "other", in_units(images, values), labels)
    found, metadata = from_authors(read_authors(file), Provenance("digits", pixels=values))
    assert not caplog.records
    assert torch.equal(found.positions, right.positions)
    torch.testing.assert_close(found.coefficients, right.coefficients, rtol=1e-4, atol=1e-3)
    assert metadata["source"]["pixels"] == values
    for provenance, told in (
        (Provenance(pixels=values), "give a --dataset"),
        (Provenance("digits", pixels=values, zca=True), "--zca"),
        (Provenance("digits", pixels=values, lr_net=-1.0), "--lr_net -1.0 must be positive"),
        (Provenance("digits", pixels=values, epochs=-1), "--epochs -1 is too small"),
    ):
        with pytest.raises(InputError, match=told):
            from_authors(read_authors(file), provenance)
    output = tmp_path / "set.safetensors"
    words = ["convert", file, "--output", output, "--dataset", "digits", "--pixels", values]
    assert call("common/pretrained/__main__.py", *words).code == 0
    torch.testing.assert_close(load_synset(output)[0].get(need_copy=True)[0], images, rtol=1e-4, atol=1e-4)


def test_images_of_whole_numbers_are_bytes(digits, tmp_path):
    labels = digits[1]
    raw = (in_units(digits[0], "bytes")).clamp(0, 255).round().to(torch.uint8)
    file = write_pair(tmp_path, raw, labels)
    for pixels in (None, "unit", "normalised"):
        with pytest.raises(InputError, match=r"with --pixels bytes of whole ones in 0\.\.255"):
            open_synset(str(file), pixels=pixels)
    assert torch.equal(open_synset(str(file), pixels="bytes")[0].get(need_copy=True)[0], raw.float())
    result = call("DM/evaluate.py", "--synset", file, *KNOWN, *PROTOCOL, *QUICK, "--pixels", "bytes")
    assert result.code == 0, result.err


# -- in one call from Python -----------------------------------------------------------------------------------------


def test_evaluate_warns_of_tensors_that_are_not_like_the_test_images(digits, caplog):
    train, test = load_dataset("digits")
    quick = {"model": "ConvNetD1W16", "networks": 1, "epochs": 0, "progress": False}
    evaluate(digits, test, **quick)
    evaluate(train, test, **quick)
    assert not caplog.records
    evaluate((in_units(digits[0], "unit"), digits[1]), test, **quick)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "the set to train on has values from" in said
    assert said.endswith("pixels in 0..1: normalise them as test.normalise does")
    for values in ("signed", "bytes"):
        caplog.clear()
        evaluate((real_pixels(values), test.labels[:20]), test, **quick)
        (said,) = [record.getMessage() for record in caplog.records]
        where = f"pixels in {BOTTOM[values]}..{TOP[values]}"
        assert said.endswith(f"{where}: bring them to 0..1 and normalise them as test.normalise does")
    caplog.clear()
    evaluate(dataclasses.replace(train, mean=(0.5,), std=(0.5,)), test, **quick)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "normalised by mean [0.5] and std [0.5], those of digits by mean [0.3054] and std [0.376]" in said
