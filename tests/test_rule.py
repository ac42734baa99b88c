"""Images of one's own: a set is distilled with no other flag than where they are."""

import json

import pytest
import torch
from PIL import Image

from common.config import rule
from common.config.command_line import parse, parse_buffer
from common.config.options import BufferOptions, ClassMatchingOptions
from common.experts.curve import suggest_max_start_epoch
from common.experts.folder import save_expert
from common.system.errors import InputError
from tests.command_line import assert_refused, call
from tests.image_sets import make_folder

pytestmark = pytest.mark.usefixtures("cache", "one_thread")

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
def test_sgd_needs_a_step(tmp_path, words):
    with pytest.raises(InputError, match="give --msz_per_channel and --lr_freq"):
        parsed("--dataset", f"folder:{make_folder(tmp_path)}", *words)


@pytest.mark.parametrize(
    "words",
    [["--msz_per_channel", 9, "--lr_freq", 1], ["--recipe", "CIFAR10"], ["--storage", "coded"]],
    ids=["both given", "borrowed", "coded"],
)
def test_a_command_that_worked_without_the_rule_does_without(words):
    options, sources = parsed("--dataset", "folder:images", *words)
    by_rule = [key for key, source in sources.items() if source == rule.SOURCE]
    assert by_rule == ([] if options.recipe else ["validation_share"])
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


def test_images_of_several_sizes_become_squares(tmp_path):
    images = make_folder(tmp_path / "images", count=20)
    data = ["--dataset", f"folder:{images}"]
    assert parsed(*data)[0].image_size is None
    Image.new("RGB", (99, 50)).save(images / "train" / "dog" / "odd.png")
    assert parsed(*data)[0].image_size == 12  # most images are that small
    assert parsed(*data, "--image_size", 16)[0].image_size == 16
    result = call("DM/distill.py", *data, *QUICK, "--save_path", tmp_path / "runs")
    assert result.code == 0, result.err
    assert "--lr_freq 0.03 --image_size 12" in result.out
    (config,) = (tmp_path / "runs").rglob("config.json")
    told = json.loads(config.read_text())["options"]["image_size"]
    assert told == {"value": 12, "source": "rule: docs/recipes.md"}
    result = call("DM/evaluate.py", "--synset", config.parent / "synset.safetensors", "--num_eval", 1)
    assert result.code == 0, result.err


@pytest.mark.parametrize(("shorter", "side"), [(31, 31), (32, 32), (63, 32), (100, 64), (2000, 128)])
def test_the_side_has_a_bound(tmp_path, shorter, side):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            photo = Image.new("L", (shorter + 10 * i, shorter))
            exif = photo.getexif()
            exif[0x0112] = 6 if i == 1 else 1  # turned: the shorter side is the same
            photo.save(tmp_path / name / f"{i}.jpg", exif=exif)
    assert parsed("--dataset", f"folder:{tmp_path}")[0].image_size == side
    assert parse_buffer(BufferOptions, "TM", ["--dataset", f"folder:{tmp_path}"]).image_size == side


def test_a_folder_is_mended_before_the_settings(tmp_path):
    commands = {
        "DM/distill.py": (["--ipc", 0, "--lr_freq", -1], "--lr_freq -1.0 must be positive"),
        "TM/buffer.py": (["--num_experts", 0], "--num_experts 0 is too small"),
        "DM/evaluate.py": (["--baseline", "random", "--ipc", 0], "--ipc 0 is too small"),
    }
    nowhere, empty, images = tmp_path / "nowhere", tmp_path / "empty", make_folder(tmp_path / "images", count=4)
    empty.mkdir()
    said = {nowhere: f"{nowhere} is not a folder", empty: f"{empty} has no folder train/"}
    for script, (wrong, setting) in commands.items():
        for folder in (nowhere, empty, images):
            result = call(script, *wrong, "--dataset", f"folder:{folder}")
            assert_refused(result, said.get(folder, setting))


def test_trajectory_matching_reads_the_curve_of_its_experts(tmp_path):
    images = make_folder(tmp_path / "images", count=20)
    data, buffers = ["--dataset", f"folder:{images}"], ["--buffer_path", tmp_path / "buffers"]
    quick = ["--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 0, "--save_path", tmp_path]
    command = f"python TM/buffer.py --dataset folder:{images} --model ConvNetD3 --buffer_path {tmp_path / 'buffers'}"
    assert_refused(call("TM/distill.py", *data, *buffers, *quick), "no experts in", f"`{command}`")
    made = call("TM/buffer.py", *data, *buffers, "--num_experts", 1, "--train_epochs", 4)
    assert made.code == 0, made.err
    done = call("TM/distill.py", *data, *buffers, *quick)
    assert done.code == 0, done.err
    (file,) = (tmp_path / "TM").rglob("config.json")
    options = json.loads(file.read_text())["options"]
    (manifest,) = (tmp_path / "buffers").rglob("manifest.json")
    suggested = suggest_max_start_epoch(manifest.parent, 2)
    assert suggested is not None
    assert options["max_start_epoch"] == {"value": suggested, "source": rule.SOURCE}
    assert options["lr_lr"] == {"value": 1e-6, "source": rule.SOURCE}
    assert options["syn_steps"] == {"value": 2, "source": rule.SOURCE}  # two epochs of 36 images are two steps
    assert "is finished" in call("TM/distill.py", *data, *buffers, *quick).out


def test_a_student_takes_no_more_steps_than_an_expert():
    assert rule.steps_of_student(50, 2, 50_000) == 50
    assert rule.steps_of_student(50, 2, 1_294) == 12  # digits, a tenth held back: two epochs of six batches of 256


def experts(folder, *curves):
    for number, curve in enumerate(curves):
        save_expert(folder, number, torch.zeros(len(curve) + 1, 3), dict(enumerate(curve, 1)))
    return folder


def test_the_student_starts_where_most_of_the_gain_is_made(tmp_path):
    curve = [0.1, 0.5, 0.85, 0.9, 1.0, 0.9, 0.9, 0.9]  # from 0.1 to 1.0: four fifths of the gain is 0.82
    assert suggest_max_start_epoch(experts(tmp_path / "one", curve), 2) == 3
    late, early = [0.1] * 7 + [1.0], [1.0] * 8
    assert suggest_max_start_epoch(experts(tmp_path / "median", late, curve, early), 2) == 3
    assert suggest_max_start_epoch(experts(tmp_path / "late", late), 2) == 7  # epochs 6 to 8 are the last to match
    assert suggest_max_start_epoch(experts(tmp_path / "none", [None, 0.5, 0.5]), 2) == 2
    assert suggest_max_start_epoch(tmp_path / "nowhere", 2) is None


def test_experts_without_a_curve_suggest_nothing(tmp_path):
    save_expert(tmp_path, 0, torch.zeros(5, 3), {4: 0.9})
    with pytest.raises(InputError, match=r"not tested after every epoch.*give it, or train others with --test_every 1"):
        suggest_max_start_epoch(tmp_path, 2)
    with pytest.raises(InputError, match="have 4 epochs, of which --expert_epochs takes 5"):
        suggest_max_start_epoch(tmp_path, 5)


def test_grayscale_files_are_one_channel(tmp_path):
    images = make_folder(tmp_path / "images", size=(16, 16), count=8)
    for file in images.rglob("*.png"):
        with Image.open(file) as image:
            gray = image.convert("L")
        gray.save(file)
    result = call("DM/distill.py", "--dataset", f"folder:{images}", *QUICK, "--save_path", tmp_path / "runs")
    assert result.code == 0, result.err
    assert "--msz_per_channel 64 --selection energy --selection_images class" in result.out


def test_sets_of_several_seeds_are_named_by_what_the_rule_decided(tmp_path):
    images = make_folder(tmp_path / "images", size=(40, 40), count=6)
    quick = [*QUICK[:-2], "--Iteration", 0, "--seeds", "0", "--msz_per_channel", 400, "--save_path", tmp_path / "runs"]
    for words in ([], ["--model", "ConvNetD3"]):  # by rule it is ConvNetD4
        result = call("DM/distill.py", "--dataset", f"folder:{images}", *quick, *words)
        assert result.code == 0, result.err
    folders = sorted((tmp_path / "runs").rglob("seeds.json"))
    models = [json.loads((each.parent.parent / json.loads(each.read_text())["runs"]["0"] / "config.json").read_text())
              ["options"]["model"]["value"] for each in folders]  # fmt: skip
    assert sorted(models) == ["ConvNetD3", "ConvNetD4"]
