"""The commands as a user meets them: what they print, what they leave, and a sentence for whatever cannot work."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.matching import distribution
from common.report import pictures
from common.synset.file import load_synset, save_synset
from common.system.files import table_beside
from tests.command_line import SHORT, assert_refused, call, contents, run_folder
from tests.conftest import ROOT
from tests.image_sets import make_folder
from tests.left_out import whole_runs
from tests.synsets import started

pytestmark = pytest.mark.usefixtures("cache")


# -- distil ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, bare_runs):
    path = tmp_path_factory.mktemp("finished")
    with whole_runs():
        result = call("DM/distill.py", *SHORT, "--epoch_eval_train", 4, "--export", "--save_path", path)
    assert result.code == 0, result.err
    return path, result


def test_a_run_says_what_it_found_and_where(finished):
    path, result = finished
    folder = run_folder(path)
    summary = json.loads((folder / "summary.json").read_text())
    assert [line for line in (folder / "log.txt").read_text().splitlines() if line not in result.out] == []
    for part in ("10 classes x 4 images", "before optimisation", "best on test", str(folder / "synset.safetensors")):
        assert part in result.out
    assert f"{100 * summary['last']['mean']:.2f} +-" in result.out
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.json", "metrics.jsonl", "log.txt", "summary.json", "checksums.json",
        "checkpoint.pt", "checkpoint_previous.pt",
        "synset.safetensors", "synset_best.safetensors", "images_best.pt", "labels_best.pt", "masks.png", "curves.png",
        "images_000000.png", "images_000002.png", "report.html",
    }  # fmt: skip
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert len(image.convert("L").getcolors()) > 10


def test_a_finished_run_is_left_alone(finished):
    path, _ = finished
    before = contents(run_folder(path))
    stamps = {
        file: file.stat().st_mtime_ns
        for file in run_folder(path).iterdir()
        if file.name not in (".lock", "log.txt", "images_best.pt", "labels_best.pt")
    }
    result = call("DM/distill.py", *SHORT, "--epoch_eval_train", 4, "--export", "--save_path", path)
    assert result.code == 0
    assert "is finished; --resume never would start it over" in result.out
    after = contents(run_folder(path))
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == ["log.txt"]
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in stamps.items())


def test_the_pictures_of_a_run_say_what_they_clip(tmp_path, monkeypatch):
    titles, drawn = {}, pictures.draw_images
    monkeypatch.setattr(
        pictures, "draw_images", lambda path, *args: (titles.update({path.name: args[-1]}), drawn(path, *args))
    )
    result = call("DM/distill.py", *SHORT, "--save_path", tmp_path)
    assert result.code == 0, result.err
    synset, metadata = load_synset(run_folder(tmp_path) / "synset.safetensors")
    pixels = synset.get(need_copy=True)[0] * metadata["std"][0] + metadata["mean"][0]
    share = ((pixels < -0.5 / 255) | (pixels > 1 + 0.5 / 255)).float().mean()
    assert titles["images_000002.png"].splitlines()[1] == (
        f"{100 * share:.1f} % of the pixel values ({pixels.min():.2f} to {pixels.max():.2f}) lie outside 0..1 and are "
        "clipped"
    )


def test_resume_never_starts_over(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    folder = run_folder(tmp_path)
    (folder / "images_000099.png").write_bytes(b"of another run")
    result = call("DM/distill.py", *SHORT, "--lr_freq", 7, "--save_path", tmp_path, "--resume", "never")
    assert result.code == 0, result.err
    assert "resumed" not in result.out
    assert json.loads((folder / "config.json").read_text())["identity"]["lr_freq"] == 7
    assert not (folder / "images_000099.png").exists()
    assert not (folder / "images_best.pt").exists()  # the new run does not export
    losses = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert len(losses) == 2


def test_export_is_the_authors_pair_of_the_best_set(finished):
    folder = run_folder(finished[0])
    images, labels = (torch.load(folder / name, weights_only=True) for name in ("images_best.pt", "labels_best.pt"))
    best, _ = load_synset(folder / "synset_best.safetensors")
    assert torch.equal(images, best.decode())
    assert torch.equal(labels, torch.arange(10).repeat_interleave(4))


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "ConvNetD1W32BN"],
        ["--batch_syn", 2],
        ["--batch_syn", 100],  # more than there are: all
        ["--transform", "identity"],
        ["--transform", "dft"],
        ["--transform", "dwt", "--selection", "low"],
        ["--model", "MLP", "--no_dsa"],
        ["--no_dsa"],
        ["--Iteration", 0],
        ["--eval_it", 1, "--selection", "variance", "--selection_images", "init"],
        ["--chunk", 3],
        ["--precision", "bf16"],
    ],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_variants_run_and_their_files_can_be_evaluated(tmp_path, flags):
    result = call("DM/distill.py", *SHORT, *flags, "--save_path", tmp_path)
    assert result.code == 0, result.err
    folder = run_folder(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    updates = 0 if "--Iteration" in flags else 2
    assert summary["last"]["iteration"] == updates
    if "identity" in flags:
        assert summary["budget"]["images_per_class"] == 1
    evaluated = call(
        "DM/evaluate.py", "--synset", summary["file"], "--num_eval", 1, "--device", "cpu", "--output", tmp_path / "o"
    )
    assert evaluated.code == 0, evaluated.err
    if updates == 0:
        # The same network, draws and set: the evaluation before the first update is numbered 0, as this one is.
        assert json.loads((tmp_path / "o").read_text())["accuracies"] == summary["last"]["accuracies"]


def test_batch_statistics_are_those_of_all_classes(tmp_path, monkeypatch):
    """A network with BatchNorm is not fed in pieces: each would be normalised by itself."""
    original, chunks = distribution.match, []

    def recorded(embed, real, images, classes, drawn, chunk):
        chunks.append(chunk)
        return original(embed, real, images, classes, drawn, chunk)

    monkeypatch.setattr(distribution, "match", recorded)
    for model in ("ConvNetD1W32", "ConvNetD1W32BN"):
        words = [*SHORT, "--model", model, "--Iteration", 1, "--save_path", tmp_path / model]
        assert call("DM/distill.py", *words).code == 0
    assert chunks == [16, None]
    assert_refused(call("DM/distill.py", *words, "--chunk", 3, "--name", "cut"), "leave out --chunk")


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--dataset", "digit"], ["there is no dataset 'digit'", "did you mean digits"]),
        (["--model", "ConvNte"], ["There is no network 'ConvNte'", "ConvNet"]),
        (["--model", "ConvNetD8"], ["too small for a ConvNet of depth 8"]),
        (["--msz_per_channel", 65], ["msz_per_channel 65 is out of range", "64 coefficients"]),
        (["--msz_per_channel", -1], ["--msz_per_channel -1 must be positive"]),
        (["--ipc", 100, "--msz_per_channel", 16, "--lr_freq", 1], ["class 0 has 142 images", "decodes 400"]),
        (["--ipc", 0], ["--ipc 0 is too small: give at least 1"]),
        (["--ipc", -1], ["--ipc -1 is too small"]),
        (["--ipc", 5], ["no recipe for DM on digits at ipc 5", "recipes exist for ipc 1, 2, 10", "--lr_freq"]),
        (["--recipe", "nothing"], ["DM has no recipe for 'nothing'", "digits"]),
        (
            ["--recipe", "imagenet-imagewoof"],
            ["DM has no recipe for 'imagenet-imagewoof': use ImageNet-abcde/distill.py --objective DM, which has one"],
        ),
        (
            ["--dataset", "imagenet-imagewoof"],
            ["no recipe for DM on imagenet-imagewoof", "use ImageNet-abcde/distill.py --objective DM, which has one"],
        ),
        (["--batch_real", 0], ["--batch_real 0 is too small"]),
        (["--num_eval", 0], ["--num_eval 0 is too small"]),
        (["--Iteration", -1], ["--Iteration -1 is too small"]),
        (["--lr_freq", -1], ["--lr_freq -1.0 must be positive"]),
        (["--lr_freq", "inf"], ["--lr_freq inf"]),
        (["--lr_freq", "1e45"], ["--lr_freq 1e+45"]),  # not finite in float32
        (["--mom_freq", "nan"], ["--mom_freq nan"]),
        (["--lr_net", 0], ["--lr_net 0.0 must be positive"]),
        (["--chunk", 0], ["--chunk 0 is too small"]),
        (["--dsa_strategy", "flip_turn"], ["'turn' in 'flip_turn' is not a DSA strategy"]),
        (["--device", "abacus"], ["device 'abacus'"]),
        (["--device", "cuda:99"], ["device 'cuda:99' is not there"]),
        (["--precision", "tf32"], ["tf32 needs a CUDA GPU"]),
        (["--image_size", 16], ["images of digits are 8 x 8 pixels, not 16"]),
        (["--name", "../elsewhere"], ["--name '../elsewhere' is not the name of a folder"]),
    ],
    ids=str,
)
def test_bad_values_are_refused_in_a_sentence(tmp_path, flags, parts):
    assert_refused(call("DM/distill.py", *SHORT, "--save_path", tmp_path / "a" / "b", *flags), *parts)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--lr_frq", 1], "--lr_frq"),
        (["--ipc", "one"], "'one'"),
        (["--ipc"], "--ipc"),
        (["--dataset"], "--dataset"),
        (["--selection", "best"], "best"),
        (["--transform", "fft"], "fft"),
        (["--resume", "maybe"], "maybe"),
        (["--dsa", "perhaps"], "perhaps"),
        (["stray"], "stray"),
    ],
    ids=str,
)
@pytest.mark.parametrize("script", ["DM/distill.py"])
def test_flags_that_do_not_parse_are_named_once(tmp_path, script, flags, part):
    result = call(script, "--save_path", tmp_path, *flags)
    assert result.code == 2
    assert part in result.err
    assert result.err.count("For full helptext") == 1  # one message
    assert result.err.count("Error parsing") <= 1
    assert result.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dataset", ["MNIST", "FashionMNIST", "CIFAR10"])
def test_missing_data_without_download(tmp_path, dataset):
    flags = ["--dataset", dataset, "--no_download", "--data_path", tmp_path / "data", "--save_path", tmp_path / "runs"]
    result = call("DM/distill.py", *flags, "--msz_per_channel", 64, "--lr_freq", 1)
    assert_refused(result, f"{dataset} is not in", "without --no_download", str(tmp_path / "data"))
    assert not (tmp_path / "runs").exists()


FOLDER = [
    "--model", "ConvNetD1W32", "--batch_real", 4, "--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 0,
    "--msz_per_channel", 72, "--lr_freq", 10, "--name", "run", "--device", "cpu",
]  # fmt: skip


def test_a_folder_is_distilled_and_evaluated_elsewhere(tmp_path):
    tree = make_folder(tmp_path / "tree", names=("a $_$ name", "b"))
    result = call("DM/distill.py", "--dataset", f"folder:{tree}", *FOLDER, "--save_path", tmp_path / "runs")
    assert result.code == 0, result.err
    (file,) = tmp_path.glob("runs/DM/folder-*/ipc1/run/synset.safetensors")
    moved = shutil.move(tree, tmp_path / "moved")
    evaluate = ["DM/evaluate.py", "--synset", file, "--num_eval", 1, "--device", "cpu"]
    assert_refused(call(*evaluate), "is not a folder")
    result = call(*evaluate, "--dataset", f"folder:{moved}")
    assert result.code == 0, result.err
    other = make_folder(tmp_path / "other", names=("a", "c"))
    assert_refused(call(*evaluate, "--dataset", f"folder:{other}"), "was made for the classes")
    larger = make_folder(tmp_path / "larger", names=("a $_$ name", "b"), size=(16, 16))
    assert_refused(call(*evaluate, "--dataset", f"folder:{larger}"), "give the --dataset it was made from")
    assert_refused(call(*evaluate, "--dataset", "digits"), "mean has 3 values")


def test_folders_that_cannot_be_read(tmp_path):
    def refused(tree, *parts):
        result = call("DM/distill.py", "--dataset", f"folder:{tree}", *FOLDER, "--save_path", tmp_path / "runs")
        assert_refused(result, *parts)

    refused(tmp_path / "nowhere", "is not a folder")
    refused(make_folder(tmp_path / "one", names=("cat",)), "1 class folder(s), at least 2 are needed")
    mixed = make_folder(tmp_path / "mixed")
    Image.new("RGB", (20, 12)).save(mixed / "train" / "dog" / "9.png")
    real = call("DM/evaluate.py", "--baseline", "random", "--dataset", f"folder:{mixed}", "--ipc", 1)
    assert_refused(real, "--image_size")  # distill.py has a rule
    damaged = make_folder(tmp_path / "damaged")
    file = damaged / "test" / "cat" / "1.png"
    file.write_bytes(file.read_bytes()[:200])
    refused(damaged, str(file), "cannot be read as an image")
    refused(make_folder(tmp_path / "one_each", count=1), "class 'cat' has 1 training image,", "--validation_share 0")
    few = make_folder(tmp_path / "few", count=2)  # one of two images is held back
    refused(few, "class cat has 1 image,", "decodes 2")


def test_unwritable_run_folder(tmp_path):
    (tmp_path / "file").write_text("a file, where a folder is needed")
    result = call("DM/distill.py", *SHORT, "--save_path", tmp_path / "file")
    assert_refused(result, "cannot write to the run folder", "choose another --save_path")
    assert (tmp_path / "file").read_text() == "a file, where a folder is needed"


def test_a_folder_of_another_configuration(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    before = contents(run_folder(tmp_path))
    flags = [*SHORT, "--epoch_eval_train", 4, "--export", "--save_path", tmp_path]
    result = call("DM/distill.py", *flags, "--lr_freq", 7, "--no_dsa")
    assert_refused(result, "--lr_freq 256.0 there, 7.0 now", "--dsa True there, False now", "another --name")
    assert contents(run_folder(tmp_path)) == before
    # Where it computes and where it writes are no part of it.
    assert call("DM/distill.py", *flags, "--checkpoint_every", 5, "--data_path", "elsewhere", "--workers", 1).code == 0


# -- evaluate ----------------------------------------------------------------------------------------------------


def test_evaluate_prints_its_accuracy_and_the_stored_one(finished, tmp_path):
    path, _ = finished
    file = run_folder(path) / "synset.safetensors"
    summary = json.loads((run_folder(path) / "summary.json").read_text())
    flags = ["--synset", file, "--num_eval", 2, "--device", "cpu"]
    first, second = (call("DM/evaluate.py", *flags, "--output", tmp_path / f"{i}.json") for i in range(2))
    assert (first.code, second.code) == (0, 0), first.err
    untimed = [re.sub(r"; evaluation .*", "", each.out) for each in (first, second)]
    assert untimed[0] == untimed[1]
    result = json.loads((tmp_path / "0.json").read_text())
    assert result["n"] == len(result["accuracies"]) == 2
    assert result["evaluation"] == summary["evaluation"]
    assert result["stored"] == summary["last"]
    assert first.out.startswith(
        f"{100 * result['mean']:.2f} +- {100 * result['std']:.2f} % (2 x ConvNetD1W32); evaluation "
    )
    assert f"{100 * summary['last']['mean']:.2f} +- " in first.out.splitlines()[1]


def test_evaluate_takes_another_network_and_protocol(finished, tmp_path):
    flags = ["--synset", run_folder(finished[0]) / "synset.safetensors", "--num_eval", 1, "--device", "cpu"]
    flags += ["--model", "ConvNetD2W32BN", "--epoch_eval_train", 1, "--lr_net", 0.05, "--dsa_strategy", "none"]
    result = call("DM/evaluate.py", *flags, "--batch_train", 8, "--output", tmp_path / "result.json")
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["network"] == "ConvNetD2W32BN"
    assert written["evaluation"] == {"epochs": 1, "lr": 0.05, "batch": 8, "strategy": "none"}


def test_evaluations_written_side_by_side_keep_their_tables(finished, tmp_path):
    """What follows a dot is no suffix: b.seed0 and b.seed1 shared b.csv, and of a.csv only the table was left."""
    flags = ["--synset", run_folder(finished[0]) / "synset.safetensors", "--num_eval", 1, "--device", "cpu"]
    for seed in range(2):
        result = call(
            "DM/evaluate.py", *flags, "--epoch_eval_train", 0, "--seed", seed, "--output", tmp_path / f"b.seed{seed}"
        )
        assert result.code == 0, result.err
    assert sorted(contents(tmp_path)) == ["b.seed0", "b.seed0.csv", "b.seed1", "b.seed1.csv"]
    for seed in range(2):
        (row,) = csv.DictReader(io.StringIO(contents(tmp_path)[f"b.seed{seed}.csv"].decode()))
        assert int(row["seed"]) == json.loads((tmp_path / f"b.seed{seed}").read_text())["options"]["seed"] == seed
    assert table_beside(tmp_path / "a.json") == tmp_path / "a.csv"
    assert table_beside(tmp_path / "a.JSON") == tmp_path / "a.csv"


@pytest.mark.parametrize("name", ["a.csv", "a.pt", "set.safetensors", "mine"])
def test_an_output_that_would_be_overwritten_or_is_read_is_refused(finished, tmp_path, name):
    file = Path(shutil.copy(run_folder(finished[0]) / "synset.safetensors", tmp_path / "set.safetensors"))
    if name == "mine":
        file = file.rename(tmp_path / "mine")
    result = call("DM/evaluate.py", "--synset", file, "--num_eval", 1, "--device", "cpu", "--output", tmp_path / name)
    told = "which is read" if name == "mine" else f"give {tmp_path / name.split('.')[0]}.json"
    assert_refused(result, f"{tmp_path / name} ", told)
    assert list(contents(tmp_path)) == [file.name]
    assert load_synset(file)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--synset", "nowhere.safetensors"], ["no synthetic set at nowhere.safetensors"]),
        (["--synset", ROOT / "LICENSE"], ["not a readable synthetic set"]),
        (["--synset", ROOT], ["no synthetic set at"]),
        (["--model", "ConvNte"], ["There is no network"]),
        (["--num_eval", 0], ["--num_eval 0 is too small"]),
        (["--lr_net", 0], ["error: --lr_net 0.0 must be positive"]),
        (["--lr_net", -1], ["error: --lr_net -1.0 must be positive"]),
        (["--epoch_eval_train", -1], ["error: --epoch_eval_train -1 is too small: give at least 0"]),
        (["--batch_train", 0], ["error: --batch_train 0 is too small: give at least 1"]),
        (["--dsa_strategy", "turn"], ["not a DSA strategy"]),
        (["--dataset", "MNIST", "--no_download", "--data_path", "nowhere"], ["MNIST is not in"]),
        (["--epoch_eval_train", 0, "--num_eval", 1, "--output", ROOT / "LICENSE" / "result.json"], ["cannot write"]),
    ],
    ids=str,
)
def test_evaluate_refuses_in_a_sentence(finished, flags, parts):
    file = run_folder(finished[0]) / "synset.safetensors"
    assert_refused(call("DM/evaluate.py", "--synset", file, "--device", "cpu", *flags), *parts)


def test_evaluate_needs_to_know_what_a_set_was_made_from(tmp_path):
    """A set saved from Python with less than an evaluation needs."""
    path = save_synset(started(), tmp_path / "set.safetensors", {"dataset": "digits"})
    result = call("DM/evaluate.py", "--synset", path, "--device", "cpu")
    unknown = "give --model, --epoch_eval_train, --lr_net, --batch_train and --dsa_strategy"
    assert_refused(result, "set.safetensors does not say all", unknown)


# -- the shell script --------------------------------------------------------------------------------------------


def shell(*words, cwd, **environment):
    inherited = {key: value for key, value in os.environ.items() if key not in ("DATASET", "IPC", "DATA_PATH")}
    return subprocess.run(
        ["sh", str(ROOT / "DM/scripts/run_DM_FreD.sh"), *map(str, words)],
        cwd=cwd, env=inherited | {"PYTHON": sys.executable} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", sorted(ROOT.glob("*/scripts/*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_posix(script):
    assert script.read_text().startswith("#!/bin/sh\n")
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    dash = shutil.which("dash")
    assert dash is None or subprocess.run([dash, "-n", script], check=False).returncode == 0


def test_shell_script_hands_on_the_environment_and_the_flags(tmp_path):
    """With a PYTHON that prints its arguments."""
    echo = tmp_path / "echo me"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)

    def arguments(*words, **environment):
        result = shell(*words, cwd=tmp_path, PYTHON=str(echo), **environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()

    script = str(ROOT / "DM/distill.py")
    assert arguments() == [script, "--dataset", "CIFAR10", "--ipc", "2"]
    assert arguments(IPC="1") == [script, "--dataset", "CIFAR10", "--ipc", "1"]
    assert arguments(DATASET="digits") == [script, "--dataset", "digits"]
    assert arguments("--name", "a b", DATASET="MNIST", IPC="10", DATA_PATH="/a b", SAVE_PATH="c d") == [
        script, "--dataset", "MNIST", "--ipc", "10", "--data_path", "/a b", "--save_path", "c d", "--name", "a b",
    ]  # fmt: skip


def test_shell_script_runs_from_any_directory(tmp_path):
    flags = ["--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 0, "--name", "run", "--device", "cpu"]
    result = shell(*flags, cwd=tmp_path, DATASET="digits", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    options = json.loads((run_folder(tmp_path / "runs") / "config.json").read_text())["options"]
    assert options["lr_freq"]["value"] == 256.0
    assert options["lr_freq"]["source"].startswith("tuned here")
