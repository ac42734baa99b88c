"""ImageNet-abcde and 3D-MNIST from their command lines: every objective, their own defaults, recipes at other sizes."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from common import recipes
from common.config.command_line import parse
from common.experts.folder import read_manifest
from common.synset.file import load_synset
from tests.command_line import assert_refused, call
from tests.conftest import ROOT
from tests.imagenet_sets import TRAIN, WOOF, make_imagenet
from tests.voxel_sets import make_voxels, write_voxels
from TM import distill as tm

pytestmark = pytest.mark.usefixtures("one_thread", "cache")

DISTILL = "ImageNet-abcde/distill.py"
MODEL = "ConvNetD1W16"
SIDE, K = 16, 128  # hence two images per class, as many as there are
SHORT = [
    "--dataset", "imagenet-imagewoof", "--res", SIDE, "--msz_per_channel", K, "--model", MODEL, "--device", "cpu",
    "--Iteration", 2, "--eval_it", 0, "--num_eval", 1, "--epoch_eval_train", 2, "--eval_mode", "S", "--name", "run",
]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_imagenet(tmp_path_factory.mktemp("imagenet"))


def run_folder(path, objective):
    return path / "ImageNet-abcde" / objective / "imagenet-imagewoof" / "ipc1" / "run"


@pytest.mark.parametrize("objective", ["DC", "DM"])
def test_class_matching_from_the_tree_to_the_evaluated_file(tree, tmp_path, objective):
    flags = [*SHORT, "--batch_real", TRAIN, "--data_path", tree, "--save_path", tmp_path]
    result = call(DISTILL, "--objective", objective, *flags)
    assert result.code == 0, result.err
    file = run_folder(tmp_path, objective) / "synset.safetensors"
    synset, metadata = load_synset(file)
    assert synset.im_size == (SIDE, SIDE)
    assert synset.num_per_class == TRAIN
    assert metadata["class_names"] == list(WOOF.values())  # as published, not as the folders sort
    assert metadata["objective"] == f"ImageNet-abcde/{objective}"
    assert metadata["resize"] == "crop"
    assert metadata["evaluation"] == {
        "epochs": 2, "lr": None, "batch": 256, "strategy": "color_crop_cutout_flip_scale_rotate", "kind": "glad",
    }  # fmt: skip
    output = tmp_path / "result.json"
    flags = ["--synset", file, "--data_path", tree, "--num_eval", 1, "--device", "cpu", "--output", output]
    assert call("ImageNet-abcde/evaluate.py", *flags).code == 0
    assert json.loads(output.read_text())["options"]["dataset"] is None  # the file says it
    missing = call("ImageNet-abcde/evaluate.py", "--baseline", "random", "--data_path", tmp_path / "nowhere")
    assert_refused(missing, str(tmp_path / "nowhere"), "train")  # of imagenet-a, the folder's default


def test_trajectory_matching_with_experts_of_its_own(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGENET", str(tree))  # in place of --data_path
    data = ["--dataset", "imagenet-imagewoof", "--res", SIDE, "--model", MODEL, "--buffer_path", tmp_path / "buffers"]
    steps = ["--buffer_path", tmp_path / "buffers", "--syn_steps", 2, "--max_start_epoch", 1, "--expert_epochs", 1]
    words = [DISTILL, "--objective", "TM", *SHORT, *steps, "--save_path", tmp_path]
    assert_refused(call(*words), "no experts in", "python ImageNet-abcde/buffer.py", f"--image_size {SIDE}")
    experts = ["--num_experts", 1, "--train_epochs", 1, "--device", "cpu"]
    result = call("ImageNet-abcde/buffer.py", *data, *experts)
    assert result.code == 0, result.err
    result = call(*words)
    assert result.code == 0, result.err
    summary = json.loads((run_folder(tmp_path, "TM") / "summary.json").read_text())
    # The step size that is learned is the set's, but this evaluation has its own.
    assert summary["evaluation"]["lr"] is None
    assert summary["last"]["step_size"] > 0
    manifest = read_manifest(tmp_path / "buffers" / "imagenet-imagewoof" / MODEL)
    # Experts on squashed images are not those of cropped ones, whatever their folder.
    assert manifest["image_size"] == [SIDE, SIDE]
    squashed = call(*words[:-2], "--resize", "squash", "--save_path", tmp_path / "squashed")
    assert_refused(squashed, "were made for something else", "other training images")


def options_of(objective, *words):
    if objective == "TM":
        return parse(tm.Options, "TM", list(words))
    # Its classes' annotations are looked up in the module of their name.
    specification = importlib.util.spec_from_file_location("imagenet_abcde", ROOT / DISTILL)
    module = sys.modules["imagenet_abcde"] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    part = objective.partition("/")[2]
    return parse(getattr(module, part), objective, ["--objective", part, *words])


@pytest.mark.parametrize(("objective", "lr_freq"), [("DC", 1e5), ("DM", 1e6), ("TM", 1e9)])
def test_defaults_are_as_published(objective, lr_freq):
    options, sources = options_of(f"ImageNet-abcde/{objective}")
    expected = {
        "dataset": "imagenet-a", "model": "ConvNetD5", "ipc": 1, "image_size": 128, "resize": "crop",
        "msz_per_channel": 2048, "lr_freq": lr_freq, "mom_freq": 0.5, "eval_mode": "M", "eval_protocol": "glad",
        "num_eval": 5, "epoch_eval_train": 1000, "Iteration": 15000 if objective == "TM" else 1000,
        "eval_it": 500 if objective == "TM" else 100, "batch_train": 256, "selection": "variance",
    }  # fmt: skip
    assert {key: getattr(options, key) for key in expected} == expected
    assert sources["lr_freq"].startswith("published")
    if objective == "DC":
        assert options.method == "DSA"
    if objective == "TM":
        steps = (options.syn_steps, options.expert_epochs, options.max_start_epoch, options.lr_lr, options.lr_teacher)
        assert steps == (20, 2, 10, 1e-6, 0.01)


def test_published_accuracies_of_the_subsets():
    assert recipes.find("ImageNet-abcde/DM", "imagenet-c", 1).published["accuracy"] == 55.6
    assert recipes.find("TM", "imagenet-cats", 10).published["accuracy"] == 48.6
    assert recipes.find("ImageNet-abcde/DM", "imagenet-geo", 1).published is None


def test_tm_squashes_imagenet_and_evaluates_with_the_learned_step_size():
    options, _ = options_of("TM", "--dataset", "ImageNet", "--subset", "imagefruit")
    assert options.dataset == "imagenet-fruits"
    assert (options.resize, options.eval_protocol, options.image_size) == ("squash", "dc", 128)
    assert (options.msz_per_channel, options.syn_steps) == (2048, 20)


def test_a_recipe_is_scaled_to_another_size():
    """As many images from the same budget, and the same step in orthonormal units, lr_freq / (4 H W)."""
    options, sources = options_of("ImageNet-abcde/DM", "--res", "256")
    assert options.msz_per_channel == 8192
    assert options.lr_freq == 4e6
    assert isinstance(options.msz_per_channel, int)
    assert sources["msz_per_channel"].endswith("(scaled from 128 px)")
    flagged, sources = options_of("ImageNet-abcde/DM", "--res", "256", "--lr_freq", "7")
    assert (flagged.msz_per_channel, flagged.lr_freq, sources["lr_freq"]) == (8192, 7, "flag")
    same, sources = options_of("ImageNet-abcde/DM", "--res", "128")
    assert (same.msz_per_channel, same.lr_freq) == (2048, 1e6)
    assert sources["lr_freq"].startswith("published")
    pixels, _ = options_of("ImageNet-abcde/DM", "--res", "256", "--transform", "identity")
    assert pixels.lr_freq == 1.0  # of one pixel, whatever the size


def test_networks_with_dropout_are_tested_but_not_matched_twice(tree, tmp_path):
    flags = [*SHORT, "--model", "ViT", "--batch_real", TRAIN, "--data_path", tree, "--save_path", tmp_path]
    assert_refused(call(DISTILL, "--objective", "DC", *flags), "ViT has dropout")
    result = call(DISTILL, "--objective", "DM", *flags)  # a single pass over each image
    assert result.code == 0, result.err
    figures = [(run_folder(tmp_path, "DM") / "summary.json").read_text()]
    result = call(DISTILL, "--objective", "DM", *flags, "--resume", "never")
    assert result.code == 0, result.err
    figures.append((run_folder(tmp_path, "DM") / "summary.json").read_text())
    first, again = map(json.loads, figures)
    assert first["last"] == again["last"]


def test_an_objective_that_does_not_exist(tmp_path):
    assert call(DISTILL, "--objective", "XX", "--save_path", tmp_path).code == 2
    assert_refused(call(DISTILL, "--data_path", tmp_path, "--save_path", tmp_path), str(tmp_path))


@pytest.mark.parametrize("script", ["run_DC_FreD.sh", "run_DM_FreD.sh", "run_TM_FreD.sh", "run_buffer.sh"])
def test_shell_scripts_pass_on_what_the_environment_sets(tmp_path, script):
    says = tmp_path / "python"
    says.write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n')
    says.chmod(0o755)
    environment = os.environ | {"PYTHON": str(says), "DATA_PATH": "where", "RES": "256"}
    environment.pop("DATASET", None)
    words = ["sh", str(ROOT / "ImageNet-abcde" / "scripts" / script), "--seed", "3"]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    given = said.split("\n")
    assert given[:2] == ["--dataset", "imagenet-a"]
    for pair in (["--data_path", "where"], ["--res", "256"], ["--seed", "3"]):
        assert given[given.index(pair[0]) + 1] == pair[1]
    if script != "run_buffer.sh":
        assert given[given.index("--objective") + 1] == script[4:6]
        assert given[given.index("--ipc") + 1] == "1"


def test_3d_mnist_from_the_file_to_the_evaluated_set(tmp_path):
    write_voxels(tmp_path / "3D-MNIST" / "full_dataset_vectors.h5", make_voxels({"train": 8, "test": 2}))
    flags = ["--data_path", tmp_path, "--Iteration", 1, "--batch_real", 4, "--num_eval", 1, "--epoch_eval_train", 1]
    flags += ["--eval_it", 0, "--device", "cpu", "--name", "run", "--save_path", tmp_path]
    result = call("3D-MNIST/distill.py", *flags)
    assert result.code == 0, result.err
    assert "512 DCT coefficients per channel (of 4,096)" in result.out
    file = tmp_path / "DM" / "3D-MNIST" / "ipc1" / "run" / "synset.safetensors"
    synset, metadata = load_synset(file)
    assert synset.im_size == (16, 16, 16)
    assert metadata["network"] == "Conv3DNet"
    flags = ["--data_path", tmp_path, "--num_eval", 1, "--epoch_eval_train", 1, "--device", "cpu"]
    assert call("3D-MNIST/evaluate.py", "--synset", file, *flags).code == 0
    result = call("3D-MNIST/evaluate.py", "--baseline", "random", *flags)
    assert result.code == 0, result.err
    assert "(1 x Conv3DNet)" in result.out  # trained on volumes, without being told
    assert_refused(call("3D-MNIST/distill.py", "--data_path", tmp_path / "other"), "full_dataset_vectors.h5")
