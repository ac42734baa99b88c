"""Runs whose sets are stored as bf16, int8 or coded."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from common.report.run_page import write_run_report
from common.runs import setup
from common.synset.file import file_bytes, load_synset
from tests.command_line import SHORT, TINY, assert_refused, call, checkpoint, contents, run_folder

pytestmark = pytest.mark.usefixtures("one_thread")

CODED = ["--storage", "coded", "--n", "20", "--bits_per_class", "1500"]


def folder(save_path, bits=1500):
    return save_path / "DM" / "digits" / f"bits{bits}" / "run"


def finished(save_path, *words):
    result = call("DM/distill.py", *SHORT, "--save_path", save_path, *words)
    assert result.code == 0, result.err
    return result


def test_a_coded_run_saves_what_it_evaluates_within_its_budget(tmp_path):
    result = finished(tmp_path, *CODED)
    path = folder(tmp_path)
    synset, metadata = load_synset(path / "synset.safetensors")
    assert metadata["storage"] == {
        "kind": "coded", "bits_per_class": 1500, "images_per_class": 20, "colour": "rgb", "block": 0,
        "positions": "joint", "numbers": synset.numbers(), "bytes": len(synset.payload),
    }  # fmt: skip
    assert len(synset.payload) <= 1875
    assert file_bytes(path / "synset.safetensors")["needed"] == len(synset.payload)
    summary = json.loads((path / "summary.json").read_text())
    assert summary["budget"]["payload_bytes"] == len(synset.payload)
    assert summary["budget"]["coefficient_bytes"] == 4 * summary["budget"]["coefficients"]
    assert "1,875 allowed" in result.out
    assert f"{len(synset.payload):,} bytes that a decoder needs" in result.out
    config = json.loads((path / "config.json").read_text())
    assert config["options"]["ipc"]["source"] == "nearest to --bits_per_class"
    page = write_run_report(path).read_text(encoding="utf-8")
    assert "DM on digits, 1,500 bits per class, stored as coded" in page
    assert f"<dd>{len(synset.payload):,}</dd>" in re.sub(r"\s*class=\"[^\"]*\"", "", page)
    told = call("DM/evaluate.py", "--synset", path / "synset.safetensors", "--num_eval", "1")
    assert told.code == 0, told.err
    assert "is stored in the file" in told.out


@pytest.mark.parametrize("words", [CODED, ["--storage", "int8", "--positions", "joint", "--msz_per_channel", "20"]])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, words):
    long = [*TINY, *words, "--Iteration", "24", "--eval_it", "12", "--num_eval", "1", "--epoch_eval_train", "0"]
    long += ["--name", "run", "--checkpoint_every", "1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call("DM/distill.py", *long, "--save_path", whole).code == 0
    with pytest.MonkeyPatch.context() as patch:
        from common.runs.loop import Distillation

        count, update = [0], Distillation.update

        def failing(self, *given, **more):
            count[0] += 1
            if count[0] == 17:
                raise KeyboardInterrupt
            update(self, *given, **more)

        patch.setattr(Distillation, "update", failing)
        assert call("DM/distill.py", *long, "--save_path", parts).code
    again = call("DM/distill.py", *long, "--save_path", parts)
    assert "resumed from iteration 16" in again.out
    where = folder if words is CODED else run_folder
    a, b = (checkpoint(where(each))["synset"] for each in (whole, parts))
    assert a.keys() == b.keys()
    for key in a.keys() - {"optimizer"}:
        assert torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])), key
    assert contents(where(whole))["synset.safetensors"] == contents(where(parts))["synset.safetensors"]


@pytest.mark.parametrize("script", ["DC/distill.py", "TM/distill.py"])
def test_other_objectives_distil_coded_sets(tmp_path, script):
    short = ["--dataset", "digits", "--model", "ConvNetD1W32", "--device", "cpu", "--Iteration", "1", "--eval_it", "0"]
    short += ["--num_eval", "1", "--epoch_eval_train", "0", "--name", "run", "--save_path", tmp_path, *CODED]
    if script.startswith("TM"):
        experts = ["--dataset", "digits", "--model", "ConvNetD1W32", "--num_experts", "1", "--train_epochs", "2"]
        assert call("TM/buffer.py", *experts, "--buffer_path", tmp_path / "buffers", "--device", "cpu").code == 0
        short += ["--buffer_path", tmp_path / "buffers", "--syn_steps", "2", "--expert_epochs", "1"]
        short += ["--max_start_epoch", "1"]
    else:
        short += ["--batch_real", "16", "--outer_loop", "2", "--inner_loop", "1"]
    result = call(script, *short)
    assert result.code == 0, result.err
    path = next(tmp_path.glob("*/digits/bits1500/run/synset.safetensors"))
    assert len(load_synset(path)[0].payload) <= 1875


def test_float32_may_be_distilled_by_adam(tmp_path):
    finished(tmp_path, "--optimizer", "adam")
    state = checkpoint(run_folder(tmp_path))["synset"]["optimizer"]["state"][0]
    assert state["count"] == 2
    assert state["spread"].shape == (10, 1, 1, 16)
    assert load_synset(run_folder(tmp_path) / "synset.safetensors")[1]["format_version"] == 2


def test_a_run_that_diverges_says_so(tmp_path):
    words = [*TINY, *CODED, "--Iteration", "15", "--eval_it", "0", "--num_eval", "1", "--epoch_eval_train", "0"]
    words += ["--name", "run", "--save_path", tmp_path, "--lr_freq", "1e38"]
    assert_refused(call("DM/distill.py", *words), "lower --lr_freq")


def test_a_budget_that_cannot_be_met_is_refused(tmp_path):
    words = ["--save_path", tmp_path, "--storage", "coded", "--bits_per_class", "40"]
    assert_refused(call("DM/distill.py", *SHORT, *words), "40 bits per class do not hold", "give more bits")
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_number_of_images_that_trains_best(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "_TRIED_IMAGES", 5000)
    result = finished(tmp_path, "--storage", "coded", "--bits_per_class", "320", "--n", "auto")
    path = folder(tmp_path, 320)
    synset, metadata = load_synset(path / "synset.safetensors")
    tried = {int(count): accuracy for count, accuracy in metadata["tried_n"].items()}
    assert list(tried) == [10, 15, 20, 30]
    assert tried[synset.num_per_class] == max(tried.values())
    assert f"--n auto: {synset.num_per_class} images per class" in result.out
    assert (path / "log.txt").read_text().count("--n auto") == 1


def test_auto_is_for_coded_sets(tmp_path):
    words = ["--storage", "int8", "--n", "auto", "--save_path", tmp_path]
    assert_refused(call("DM/distill.py", *SHORT, *words), "--n auto is for --storage coded")


def test_a_resumed_run_takes_the_number_that_was_found_when_it_began(tmp_path, monkeypatch):
    """GPUs, and other versions of torch, might find another one, which would not fit the checkpoint."""
    monkeypatch.setattr(setup, "_TRIED_IMAGES", 500)
    words = ["--storage", "coded", "--bits_per_class", "320", "--n", "auto"]
    finished(tmp_path, *words)
    path = folder(tmp_path, 320)
    before = (path / "synset.safetensors").read_bytes()
    (path / "summary.json").unlink()  # as if it had been killed after its last checkpoint
    monkeypatch.setattr(setup, "try_counts", lambda *_: pytest.fail("tried again"))
    finished(tmp_path, *words)
    assert (path / "synset.safetensors").read_bytes() == before
    assert json.loads((path / "config.json").read_text())["tried_n"].keys() == {"10", "15", "20", "30"}
    finished(tmp_path, *words)  # a finished run does not try either


def unequal(path, counts):
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for c, count in enumerate(counts):
            (path / split / f"class{c}").mkdir(parents=True)
            for i in range(count):
                image = draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(image).save(path / split / f"class{c}" / f"{i}.png")
    return ["--dataset", f"folder:{path}", "--recipe", "CIFAR10", "--lr_freq", "0.1", "--batch_real", "3"]


def test_sets_hold_no_more_images_than_the_smallest_class_has(tmp_path):
    words = unequal(tmp_path / "images", (3, 12))
    finished(tmp_path / "a", *words, "--storage", "int8", "--msz_per_channel", 16)
    (file,) = (tmp_path / "a").rglob("synset.safetensors")
    assert load_synset(file)[0].num_per_class == 3


def test_auto_holds_back_as_many_images_of_each_class(tmp_path, monkeypatch):
    words = unequal(tmp_path / "images", (6, 30))
    original, seen = setup.evaluate_pool, []

    def evaluate_pool(pool, training, test, *rest, **named):
        if "title" in named:
            seen.append(torch.bincount(test.labels).tolist())
        return original(pool, training, test, *rest, **named)

    monkeypatch.setattr(setup, "evaluate_pool", evaluate_pool)
    monkeypatch.setattr(setup, "_TRIED_IMAGES", 50)
    finished(tmp_path / "a", *words, "--storage", "coded", "--n", "auto")
    assert seen
    assert all(counts == [1, 1] for counts in seen)
    alone = unequal(tmp_path / "one", (1, 30))
    assert_refused(
        call("DM/distill.py", *SHORT, *alone, "--storage", "coded", "--n", "auto", "--save_path", tmp_path / "b"),
        "one class has a single image", "give --n 1",
    )  # fmt: skip
