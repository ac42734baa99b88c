"""Images of one's own: a set is distilled with no other flag than where they are."""

import json

import pytest
from PIL import Image

from common.config import rule
from common.config.command_line import parse
from common.config.options import ClassMatchingOptions
from common.system.errors import InputError
from tests.command_line import assert_refused, call
from tests.image_sets import make_folder

pytestmark = pytest.mark.usefixtures("cache", "no_pictures", "no_report", "one_thread")

QUICK = ["--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 0, "--eval_it", 0, "--batch_real", 4, "--name", "run"]


def parsed(*words, objective="DM"):
    return parse(ClassMatchingOptions, objective, list(map(str, words)))


def decided(channels, im_size, smallest, *words):
    options, told = rule.decide(*parsed("--dataset", "folder:images", *words), channels, im_size, smallest)
    return options, " ".join(told)


@pytest.mark.parametrize("script", ["DM/distill.py", "DC/distill.py"])
def test_a_folder_is_all_it_takes(tmp_path, script):
    images = make_folder(tmp_path / "images", count=20)
    result = call(script, "--dataset", f"folder:{images}", *QUICK, "--save_path", tmp_path / "runs")
    assert result.code == 0, result.err
    told = "--model ConvNetD3 --msz_per_channel 9 --selection variance --selection_images init --optimizer adam"
    assert f"no recipe for folder:{images}, by rule (docs/recipes.md): {told} --lr_freq 0.03" in result.out
    (config,) = (tmp_path / "runs").rglob("config.json")
    options = json.loads(config.read_text())["options"]
    for key, value in {"model": "ConvNetD3", "msz_per_channel": 9, "lr_freq": 0.03, "optimizer": "adam"}.items():
        assert options[key] == {"value": value, "source": "rule: docs/recipes.md"}
    again = call(script, "--dataset", f"folder:{images}", *QUICK, "--save_path", tmp_path / "runs")
    assert "is finished" in again.out


def test_the_rule_goes_by_channels_side_and_number():
    colour, told = decided(3, (32, 32), 500)
    assert (colour.model, colour.msz_per_channel, colour.selection) == ("ConvNetD3", 64, "variance")
    assert "--msz_per_channel 64" in told
    gray, _ = decided(1, (28, 28), 6000)
    assert (gray.msz_per_channel, gray.selection, gray.selection_images) == (196, "energy", "class")
    assert [decided(3, (side, side), 500)[0].model for side in (33, 64, 65, 128, 129, 224)] == [
        "ConvNetD4", "ConvNetD4", "ConvNetD5", "ConvNetD5", "ConvNetD6", "ConvNetD6",
    ]  # fmt: skip
    few, _ = decided(3, (32, 32), 6)
    assert few.msz_per_channel == 171  # 5 images of a class that has 6
    assert few.ipc * 32 * 32 // few.msz_per_channel <= 6


def test_no_network_is_too_deep_and_no_budget_too_large():
    assert decided(3, (16, 128), 500)[0].model == "ConvNetD3"
    with pytest.raises(InputError, match=r"a class has only 8 images: lower --ipc \(50\)"):
        decided(3, (32, 32), 8, "--ipc", 50)


def test_flags_win_one_by_one():
    options, told = decided(3, (64, 64), 500, "--model", "ConvNetD3W32", "--msz_per_channel", 100)
    assert (options.model, options.msz_per_channel, options.lr_freq) == ("ConvNetD3W32", 100, 0.03)
    assert told == "--selection variance --selection_images init --optimizer adam --lr_freq 0.03"
    options, told = decided(3, (64, 64), 500, "--lr_freq", 5)
    assert (options.lr_freq, options.optimizer_used, options.msz_per_channel) == (5.0, "sgd", 256)
    assert "optimizer" not in told


@pytest.mark.parametrize("words", [["--optimizer", "sgd"], ["--mom_freq", 0.9]], ids=str)
def test_sgd_needs_a_step(words):
    with pytest.raises(InputError, match="give --msz_per_channel and --lr_freq"):
        parsed("--dataset", "folder:images", *words)


@pytest.mark.parametrize(
    "words",
    [["--msz_per_channel", 9, "--lr_freq", 1], ["--recipe", "CIFAR10"], ["--storage", "coded"]],
    ids=["both given", "borrowed", "coded"],
)
def test_a_command_that_worked_without_the_rule_does_without(words):
    options, sources = parsed("--dataset", "folder:images", *words)
    assert rule.SOURCE not in sources.values()
    assert rule.decide(options, sources, 3, (64, 64), 500) == (options, [])


def test_named_datasets_still_need_a_recipe(tmp_path):
    assert_refused(call("DM/distill.py", "--ipc", 5, "--save_path", tmp_path), "no recipe for DM on digits at ipc 5")


def test_what_is_wrong_with_the_folder_is_said_first(tmp_path):
    result = call("DM/distill.py", "--dataset", f"folder:{tmp_path / 'nowhere'}", "--save_path", tmp_path / "runs")
    assert_refused(result, f"{tmp_path / 'nowhere'} is not a folder")
    (tmp_path / "images").mkdir()
    result = call("DM/distill.py", "--dataset", f"folder:{tmp_path / 'images'}", "--save_path", tmp_path / "runs")
    assert_refused(result, f"{tmp_path / 'images'} has no folder train/")
    assert not (tmp_path / "runs").exists()


def test_trajectory_matching_needs_flags_or_a_recipe(tmp_path):
    images = make_folder(tmp_path / "images")
    assert_refused(call("TM/distill.py", "--dataset", f"folder:{images}"), "no recipe for TM", "--recipe NAME")


def test_grayscale_files_are_one_channel(tmp_path):
    images = make_folder(tmp_path / "images", size=(16, 16), count=8)
    for file in images.rglob("*.png"):
        with Image.open(file) as image:
            gray = image.convert("L")
        gray.save(file)
    result = call("DM/distill.py", "--dataset", f"folder:{images}", *QUICK, "--save_path", tmp_path / "runs")
    assert result.code == 0, result.err
    assert "--msz_per_channel 64 --selection energy --selection_images class" in result.out
