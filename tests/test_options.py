"""Flag, then recipe, then default; and for each value where it came from."""

import dataclasses
import json
import os
import subprocess

import pytest
import torch

from common import recipes
from common.config.command_line import parse, parse_buffer, parse_plain
from common.config.evaluate_options import EvaluateOptions
from common.config.options import (
    NOT_PART_OF_A_RUN,
    BufferOptions,
    ClassMatchingOptions,
    DataOptions,
    DistillOptions,
)
from common.datasets import DATASETS, ImageData, statistics
from common.runs.folder import Run
from common.system.errors import InputError
from tests.command_line import SHORT, TINY, assert_refused, call, run_folder
from tests.conftest import ROOT
from tests.image_sets import make_folder
from TM.distill import Options as TMOptions


def read(*words):
    return parse(ClassMatchingOptions, "DM", [str(word) for word in words])


def test_flag_then_recipe_then_default():
    options, sources = read("--dataset", "digits", "--ipc", 1, "--lr_freq", 7)
    recipe = recipes.find("DM", "digits", 1)
    assert options.lr_freq == 7
    assert sources["lr_freq"] == "flag"
    assert options.batch_real == recipe.values["batch_real"] != ClassMatchingOptions.batch_real
    assert sources["batch_real"] == recipe.sources["batch_real"]
    assert options.lr_net == DistillOptions.lr_net
    assert sources["lr_net"] == "default"
    assert sources.keys() == {field.name for field in dataclasses.fields(ClassMatchingOptions)}
    for key, value in recipe.values.items():
        if key != "lr_freq":
            assert getattr(options, key) == value


def test_a_flag_that_repeats_the_recipe_is_still_a_flag():
    value = recipes.find("DM", "digits", 1).values["msz_per_channel"]
    assert read("--msz_per_channel", value)[1]["msz_per_channel"] == "flag"
    assert read("--msz-per-channel", value)[1]["msz_per_channel"] == "flag"
    assert read(f"--msz_per_channel={value}")[1]["msz_per_channel"] == "flag"


def test_the_recipe_follows_dataset_and_ipc():
    assert read("--dataset", "CIFAR10", "--ipc", 2)[0].lr_freq == 1e6
    assert read("--dataset=CIFAR10", "--ipc=2")[0].lr_freq == 1e6
    assert read()[0].lr_freq == recipes.find("DM", "digits", 1).values["lr_freq"]


def test_provenance_is_written_down(tmp_path):
    assert call("DM/distill.py", *SHORT, "--no_dsa", "--save_path", tmp_path).code == 0
    options = json.loads((run_folder(tmp_path) / "config.json").read_text())["options"]
    assert options["Iteration"] == {"value": 2, "source": "flag", "instead_of": 150}  # the recipe's
    assert options["dsa"] == {"value": False, "source": "flag", "instead_of": True}
    assert options["lr_net"] == {"value": 0.01, "source": "default"}
    recipe = recipes.find("DM", "digits", 1)
    assert options["lr_freq"] == {"value": recipe.values["lr_freq"], "source": recipe.sources["lr_freq"]}


@pytest.mark.parametrize(
    ("words", "dsa"),
    [
        ([], True),
        (["--dsa"], True),
        (["--dsa", "True"], True),
        (["--dsa", "true"], True),
        (["--dsa", "1"], True),
        (["--dsa=true"], True),
        (["--dsa", "False"], False),
        (["--dsa", "false"], False),
        (["--dsa=False"], False),
        (["--dsa", "0"], False),
        (["--no_dsa"], False),
        (["--no-dsa"], False),
        (["--dsa", "False", "--dsa", "True"], True),  # the last one counts
    ],
    ids=str,
)
def test_booleans(words, dsa):
    options, sources = read(*words, "--ipc", 2)  # words follow, too
    assert options.dsa is dsa
    assert options.ipc == 2
    assert sources["dsa"] == ("flag" if words else "default")
    assert options.strategy == (DistillOptions.dsa_strategy if dsa else "")


def test_an_option_whose_name_begins_with_no():
    assert read()[0].no_download is False
    assert read("--no_download")[0].no_download is True
    assert read("--no_download", "False")[0].no_download is False
    assert parse_plain(EvaluateOptions, ["--synset", "x", "--no_download", "--seed", "1"]).no_download is True


def test_a_value_that_looks_like_a_boolean_stays_as_it_is():
    options, _ = read("--ipc", 1, "--seed", 1, "--name", "true", "--num_eval", 1)
    assert (options.ipc, options.seed, options.name, options.num_eval) == (1, 1, "true", 1)


def unwrapped(text):
    return " ".join(text.replace("│", " ").split())


def test_help_shows_the_recipe_and_underscores():
    result = call("DM/distill.py", "--dataset", "digits", "--help")
    assert result.code == 0
    text = unwrapped(result.out)
    assert "--msz_per_channel INT" in text
    assert "--msz-per-channel" not in text
    values = recipes.find("DM", "digits", 1).values
    assert f"(default: {values['lr_freq']})" in text.split("--lr_freq FLOAT")[1].split("--mom_freq")[0]
    assert (
        f"(default: {values['epoch_eval_train']})"
        in text.split("--epoch_eval_train {None}|INT")[1].split("--batch_train")[0]
    )
    for field in dataclasses.fields(DistillOptions):
        assert f"--{field.name}" in text
    assert "%%" not in text
    other = call("DM/distill.py", "--dataset", "CIFAR10", "--ipc", 2, "--help")
    assert "(default: 1000000.0)" in unwrapped(other.out)
    assert call("DM/evaluate.py", "--help").code == 0


def test_borrowing_a_recipe(tmp_path):
    own = f"folder:{make_folder(tmp_path)}"
    options, sources = read("--dataset", "folder:/somewhere", "--recipe", "CIFAR10", "--ipc", 2)
    assert (options.dataset, options.msz_per_channel, options.lr_freq) == ("folder:/somewhere", 64, 1e6)
    assert sources["lr_freq"].startswith("published")
    with pytest.raises(InputError, match="no recipe for 'Cifar'"):
        read("--recipe", "Cifar")
    with pytest.raises(InputError, match=r"at ipc 1 \(there is none for this dataset\): give --msz_per_channel"):
        read("--dataset", own, "--transform", "dwt")  # the rule for own images is for the dct
    with pytest.raises(InputError, match=r"on CIFAR10 at ipc 7 \(recipes exist for ipc 1, 2"):
        read("--dataset", own, "--recipe", "CIFAR10", "--ipc", 7)


@pytest.fixture
def cifar100(monkeypatch):
    """Four images in CIFAR-100's place, in its own normalisation."""
    images, labels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 32, 32), torch.arange(4) % 2
    data = ImageData(images, labels, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("a", "b"), "CIFAR100")
    monkeypatch.setitem(DATASETS, "CIFAR100", lambda request: (data, data))
    return data


def test_cifar100_can_be_normalised_as_cifar10(cifar100):
    for chosen, expected in (("cifar100", (cifar100.mean, cifar100.std)), ("cifar10", statistics("CIFAR10"))):
        for part in DataOptions(dataset="CIFAR100", cifar100_stats=chosen).load():
            assert (part.mean, part.std) == expected


def test_cifar10_statistics_are_for_cifar100_without_whitening(cifar100):
    for options in ({"dataset": "digits"}, {"dataset": "CIFAR10"}, {"dataset": "CIFAR100", "zca": True}):
        with pytest.raises(InputError, match="leave it out with another dataset or with --zca"):
            DataOptions(cifar100_stats="cifar10", **options).load()
    flags = ["--baseline", "random", "--cifar100_stats", "cifar10", "--device", "cpu"]
    assert_refused(call("DM/evaluate.py", *flags), "--cifar100_stats cifar10 sets CIFAR100's mean and std")
    flags += ["--dataset", "CIFAR100", "--num_eval", 1, "--epoch_eval_train", 0, "--model", "ConvNetD1W32"]
    assert call("DM/evaluate.py", *flags).code == 0


def test_plain_pixels_take_their_own_recipe(tmp_path):
    options, sources = read("--transform", "identity", "--ipc", 1)
    assert (options.lr_freq, options.msz_per_channel) == (1.0, 0)
    assert options.batch_real == recipes.find("DM", "digits", 1).values["batch_real"]
    assert "ancestor" in sources["lr_freq"]
    assert read("--transform=identity", "--lr_freq", 3)[0].lr_freq == 3
    assert call("DM/distill.py", *SHORT, "--transform", "identity", "--save_path", tmp_path).code == 0
    config = json.loads((run_folder(tmp_path) / "config.json").read_text())
    assert config["identity"]["msz_per_channel"] == 64
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["budget"]["images_per_class"] == 1


def test_the_default_name_is_made_from_what_is_computed(tmp_path):
    content = {"fingerprint": "", "class_names": ["a"], "train": 1, "test": 1}

    def folder(*words, place="a"):
        run = Run(*read("--save_path", tmp_path / place, *words), "DM", torch.device("cpu"), content)
        run.close()
        return run.folder

    plain = folder()
    assert plain.parent == tmp_path / "a" / "DM" / "digits" / "ipc1"
    elsewhere = ("--device", "cuda", "--data_path", "x", "--workers", 3, "--checkpoint_every", 9, "--no_download")
    assert folder(*elsewhere, place="b").name == plain.name
    assert folder("--lr_freq", recipes.find("DM", "digits", 1).values["lr_freq"]).name == plain.name
    others = [
        folder(*words).name for words in (["--lr_freq", 5], ["--seed", 1], ["--no_dsa"], ["--model", "ConvNetD2"])
    ]
    assert len({plain.name, *others}) == 5
    assert folder("--name", "mine").name == "mine"
    kinds = (ClassMatchingOptions, BufferOptions, TMOptions)
    assert {field.name for kind in kinds for field in dataclasses.fields(kind)} >= NOT_PART_OF_A_RUN
    assert folder("--dataset", "folder:/a/b", "--recipe", "digits").parent.parent.name == "folder-b"


@pytest.mark.parametrize(("transform", "step"), [("dct", 256.0), ("dft", 32.0), ("dwt", 1.0), ("identity", 1.0)])
def test_a_recipes_step_is_converted_and_a_flags_is_not(tmp_path, transform, step):
    """256 in units of the DCT moves an 8x8 image by 256 / (4 * 64) = 1."""
    for flags, expected in (([], step), (["--lr_freq", 5], 5)):
        path = tmp_path / str(expected)
        words = [*SHORT, "--Iteration", 0, "--transform", transform, "--save_path", path, *flags]
        assert call("DM/distill.py", *words).code == 0
        written = json.loads((run_folder(path) / "config.json").read_text())["options"]["lr_freq"]
        assert written["value"] == expected
        assert ("converted" in written["source"]) == (transform in ("dft", "dwt") and not flags)


@pytest.mark.parametrize(
    ("words", "stats"),
    [
        (["--dataset", "CIFAR100"], "cifar10"),  # as the authors' trajectory-matching folder has it
        (["--dataset", "CIFAR100", "--zca"], "cifar100"),  # whitened images are not normalised
        (["--dataset", "folder:x", "--recipe", "CIFAR100"], "cifar100"),  # borrowed: not these images' statistics
    ],
)
def test_statistics_of_a_recipe_are_for_its_own_dataset(words, stats):
    options, sources = parse(DistillOptions, "TM", words)
    assert options.cifar100_stats == parse_buffer(BufferOptions, "TM", words).cifar100_stats == stats
    assert (sources["cifar100_stats"] == "default") == (stats == "cifar100")


@pytest.mark.parametrize(
    ("script", "published", "given"),
    [
        ("DM/scripts/run_DM_FreD.sh", ["--ipc", "2"], ["ipc", "data_path", "save_path"]),
        ("DC/scripts/run_DC_FreD.sh", ["--ipc", "2"], ["ipc", "data_path", "save_path"]),
        ("TM/scripts/run_TM_FreD.sh", ["--ipc", "1"], ["ipc", "data_path", "save_path", "buffer_path"]),
        ("TM/scripts/run_buffer.sh", [], ["data_path", "buffer_path"]),
    ],
)
def test_shell_scripts_hand_on_what_their_script_takes(tmp_path, script, published, given):
    """With a PYTHON that prints its arguments."""
    echo = tmp_path / "echo me"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    everything = {"IPC": "7", "DATA_PATH": "a b", "SAVE_PATH": "c", "BUFFER_PATH": "d"}
    clean = {key: value for key, value in os.environ.items() if key not in {*everything, "DATASET"}}

    def arguments(**environment):
        command = ["sh", str(ROOT / script), "--seed", "1"]
        chosen = clean | {"PYTHON": str(echo)} | environment
        return subprocess.run(command, cwd=tmp_path, env=chosen, capture_output=True, text=True, check=True).stdout

    assert arguments().splitlines()[1:] == ["--dataset", "CIFAR10", *published, "--seed", "1"]
    lines = arguments(DATASET="digits", **everything).splitlines()[1:]
    flags = [word for key in given for word in (f"--{key}", everything[key.upper()])]
    assert lines == ["--dataset", "digits", *flags, "--seed", "1"]


@pytest.mark.parametrize("flag", ["seed", "ipc", "Iteration"])
def test_whole_numbers_have_64_bits(tmp_path, flag):
    """A run with another one could not be saved, after all its updates."""
    words = [*TINY, "--save_path", tmp_path, f"--{flag}"]
    told = f"--{flag} {2**63} is no whole number of 64 bits"
    assert_refused(call("DM/distill.py", *words, 2**63), told)
    if flag == "seed":
        assert call("DM/distill.py", *words, 2**63 - 1, "--dry_run").code == 0


@pytest.mark.parametrize("size", [0, 9999])
def test_a_side_is_looked_at_before_a_budget_in_bits(size):
    words = ["--dataset", "CIFAR10", "--bits_per_class", "100000", "--storage", "coded", "--image_size", size]
    assert_refused(call("DM/distill.py", *words), f"--image_size must be from 1 to 4,096 pixels, not {size:,}")
