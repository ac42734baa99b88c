"""Training images that are held back: nothing learns from them, and they choose the best set."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from common.config.command_line import parse_buffer
from common.config.options import BufferOptions, DataOptions
from common.datasets import load_dataset
from common.images.sampling import hold_back
from common.synset.file import load_synset
from common.system.errors import InputError
from common.training import pool
from tests.command_line import SHORT, TINY, assert_refused, call, checkpoint, run_folder
from tests.expert_buffers import MODEL
from tests.image_sets import make_data, make_folder

pytestmark = pytest.mark.usefixtures("cache", "one_thread")

SHARE = ["--validation_share", 0.2]
THREE = [*TINY, "--Iteration", 2, "--eval_it", 1, "--num_eval", 2, "--epoch_eval_train", 0, "--name", "run", *SHARE]


# -- the split ---------------------------------------------------------------------------------------------------


def test_a_share_of_every_class_is_held_back():
    data = make_data((5, 20, 2))
    rest, held = hold_back(data, 0.2, 0)
    assert [len(each) for each in held.class_indices] == [1, 4, 1]
    assert [len(each) for each in rest.class_indices] == [4, 16, 1]
    assert rest.rows is not None
    assert held.rows is not None
    assert sorted([*rest.rows.tolist(), *held.rows.tolist()]) == list(range(len(data)))
    assert torch.equal(rest.rows.sort().values, rest.rows)
    assert rest.images is data.images  # nothing is copied
    assert torch.equal(held.batch(slice(1, 3)), data.batch(held.rows[1:3]))
    assert torch.equal(rest.batch(torch.tensor([[3], [0]])), data.batch(rest.rows[torch.tensor([[3], [0]])]))
    assert torch.equal(rest.labels, data.labels[rest.rows])


def test_the_seed_decides_which():
    data = make_data((50, 50))
    again, other = hold_back(data, 0.2, 0)[1], hold_back(data, 0.2, 1)[1]
    first = hold_back(data, 0.2, 0)[1]
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    assert len({data.fingerprint, first.fingerprint, other.fingerprint}) == 3
    assert first.fingerprint == again.fingerprint


def test_at_least_one_image_remains():
    rest, held = hold_back(make_data((2, 3)), 0.99, 0)
    assert ([len(each) for each in rest.class_indices], len(held)) == ([1, 1], 3)
    with pytest.raises(InputError, match=r"class 'class 1' has 1 training image, .* give --validation_share 0"):
        hold_back(make_data((5, 1)), 0.1, 0)


def test_a_subset_of_a_subset():
    data = make_data((6, 6))
    some = data.subset(torch.tensor([9, 4, 2, 7]))
    few = some.subset(torch.tensor([3, 0]))
    assert torch.equal(few.batch(slice(None)), data.batch(torch.tensor([7, 9])))
    assert few.labels.tolist() == data.labels[[7, 9]].tolist()
    assert few.fingerprint == data.subset(torch.tensor([7, 9])).fingerprint


@pytest.mark.parametrize("words", [["--validation_share", 1], ["--validation_share", -0.1], ["--validation_seed", -1]])
@pytest.mark.parametrize("script", ["DM/distill.py", "TM/buffer.py"])
def test_what_is_no_share_is_refused(script, words):
    assert_refused(call(script, *words), words[0])


# -- nothing learns from them ------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(monkeypatch):
    """From here on the images of digits that are held back are all white."""

    def load(self):
        train, test = load_dataset(self.dataset)
        held = hold_back(train, SHARE[1], 0)[1].rows
        images = train.images.clone()
        images[held] = 255
        return dataclasses.replace(train, images=images), test

    return lambda: monkeypatch.setattr(DataOptions, "load", load)


@pytest.mark.parametrize(
    ("script", "more"), [("DM/distill.py", []), ("DM/distill.py", ["--storage", "coded"]), ("DC/distill.py", [])]
)
def test_a_set_does_not_depend_on_them(tmp_path, spoilt, script, more):
    def distilled(name):
        result = call(script, *SHORT, *SHARE, *more, "--save_path", tmp_path / name)
        assert result.code == 0, result.err
        (file,) = (tmp_path / name).rglob("summary.json")
        summary = json.loads(file.read_text())
        return load_synset(file.parent / "synset.safetensors")[0].decode(), summary["last"]

    images, last = distilled("plain")
    spoilt()
    other_images, other_last = distilled("spoilt")
    assert torch.equal(images, other_images)
    assert last["accuracies"] == other_last["accuracies"]
    assert last["validation"]["accuracies"] != other_last["validation"]["accuracies"]


def buffer(path, *more):
    words = ["--dataset", "digits", "--model", MODEL, "--num_experts", 1, "--train_epochs", 1, "--device", "cpu"]
    return call("TM/buffer.py", *words, "--buffer_path", path, *more)


def test_experts_do_not_depend_on_them(tmp_path, spoilt):
    assert buffer(tmp_path / "plain", *SHARE).code == 0
    spoilt()
    assert buffer(tmp_path / "spoilt", *SHARE).code == 0
    assert buffer(tmp_path / "whole").code == 0
    plain, other, whole = (
        load_file(tmp_path / name / "digits" / MODEL / "expert_0000.safetensors")["trajectory"]
        for name in ("plain", "spoilt", "whole")
    )
    assert torch.equal(plain, other)
    assert not torch.equal(plain, whole)


def test_experts_of_other_images_are_refused(tmp_path):
    def distil(path, *more):
        steps = ["--syn_steps", 1, "--expert_epochs", 1, "--max_start_epoch", 1, "--lr_lr", 1e-5]
        words = [*SHORT, "--buffer_path", path, "--save_path", tmp_path / "runs", *steps, *more]
        return call("TM/distill.py", *[each for each in words if each not in ("--batch_real", "16")], "--model", MODEL)

    whole, reduced = tmp_path / "whole", tmp_path / "reduced"
    assert buffer(whole).code == buffer(reduced, *SHARE).code == 0
    assert_refused(distil(whole, *SHARE), "they have been trained on the images that --validation_share holds back")
    assert_refused(distil(reduced), "they have not been trained on the images that --validation_share holds back")
    assert_refused(
        distil(reduced, *SHARE, "--validation_seed", 1), "--validation_seed 0 there, 1 now", "made for something else"
    )
    assert_refused(buffer(whole, *SHARE), "they have been trained on the images that --validation_share holds back")
    done = distil(reduced, *SHARE)
    assert done.code == 0, done.err


# -- they choose the best set ------------------------------------------------------------------------------------


def scripted(monkeypatch, by_evaluation, stop_at=None):
    """Networks have these accuracies, (test, held back) by evaluation; call `stop_at`, counted from 0, raises."""
    calls = []

    def accuracy(network, data, forward=None, on_batch=lambda: None):
        calls.append(len(data))
        if stop_at == len(calls) - 1:
            raise InputError("stopped here")
        test, held = by_evaluation[(len(calls) - 1) // 4]  # two networks, each tested on both
        return held if data.rows is not None else test

    monkeypatch.setattr(pool, "accuracy", accuracy)
    return calls


def test_the_best_set_is_the_best_on_them(tmp_path, monkeypatch, whole_run):
    scripted(monkeypatch, [(0.5, 0.3), (0.6, 0.9), (0.7, 0.2)])
    result = call("DM/distill.py", *THREE, "--save_path", tmp_path)
    assert result.code == 0, result.err
    folder = run_folder(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    found = {key: (summary[key]["iteration"], summary[key]["mean"]) for key in ("last", "best_on_test")}
    assert found == {"last": (2, 0.7), "best_on_test": (2, 0.7)}
    chosen = summary["best_on_validation"]
    assert (chosen["iteration"], chosen["mean"], chosen["validation"]["mean"]) == (1, 0.6, 0.9)
    metadata = load_synset(folder / "synset_best.safetensors")[1]
    assert metadata["accuracy"]["iteration"] == 1
    assert metadata["validation"] == {"validation_share": 0.2, "validation_seed": 0}
    assert load_synset(folder / "synset.safetensors")[1]["accuracy"]["iteration"] == 2
    assert "best on validation: 60.00 +- 0.00 % (2 x ConvNetD1W32, 1 update)" in result.out
    page = (folder / "report.html").read_text()
    for label, mean in {"last": "70.00", "best on validation": "60.00", "best on test": "70.00"}.items():
        assert re.search(rf'<dt>{label}</dt>\s*<dd><span class="mean">{mean}</span>', page), label
    again = call("DM/distill.py", *THREE, "--save_path", tmp_path)
    assert "is finished" in again.out


def test_a_stop_between_both_tests_loses_nothing(tmp_path, monkeypatch):
    accuracies = [(0.5, 0.3), (0.6, 0.9), (0.7, 0.2)]
    scripted(monkeypatch, accuracies, stop_at=3)  # the second network has been tested on the test images alone
    assert_refused(call("DM/distill.py", *THREE, "--save_path", tmp_path), "stopped here")
    state = checkpoint(run_folder(tmp_path))
    assert state["unfinished"] == {"ConvNetD1W32": [0.5]}
    assert state["unfinished_on_held"] == {"ConvNetD1W32": [0.3]}
    calls = scripted(monkeypatch, [accuracies[0], *accuracies])
    calls += [0, 0]  # the tests of the first network
    assert call("DM/distill.py", *THREE, "--save_path", tmp_path).code == 0
    metrics = map(json.loads, (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines())
    points = [each["evaluation"] for each in metrics if "evaluation" in each]
    assert [len(point["validation"]["accuracies"]) for point in points] == [2, 2, 2]


def test_seeds_show_what_was_chosen(tmp_path):
    words = [*SHORT, *SHARE, "--seeds", "0,1", "--save_path", tmp_path]
    result = call("DM/distill.py", *words)
    assert result.code == 0, result.err
    folder = tmp_path / "DM" / "digits" / "ipc1" / "run-seeds"
    found = json.loads((folder / "seeds.json").read_text())
    assert found["best_on_validation"]["n"] == 2
    assert "best on validation" in (folder / "report.html").read_text()


def test_several_networks_at_once_are_tested_on_both(tmp_path):
    words = [*THREE, "--networks_at_once", 2, "--save_path", tmp_path / "together"]
    assert call("DM/distill.py", *words).code == 0
    assert call("DM/distill.py", *THREE, "--save_path", tmp_path / "alone").code == 0
    together, alone = (
        json.loads((run_folder(tmp_path / name) / "summary.json").read_text())["last"] for name in ("together", "alone")
    )
    assert together["validation"]["accuracies"] == pytest.approx(alone["validation"]["accuracies"], abs=0.02)


# -- the default -------------------------------------------------------------------------------------------------


def test_images_of_ones_own_are_held_back_unless_a_recipe_is_borrowed(tmp_path):
    images = make_folder(tmp_path / "images", count=10)
    quick = ["--Iteration", 0, "--num_eval", 1, "--epoch_eval_train", 0, "--save_path", tmp_path / "runs"]
    result = call("DM/distill.py", "--dataset", f"folder:{images}", *quick)
    assert result.code == 0, result.err
    assert "2 of the 20 training images, 10 % of each class, are held back" in result.out + result.err
    (file,) = (tmp_path / "runs").rglob("config.json")
    options = json.loads(file.read_text())["options"]
    assert options["validation_share"] == {"value": 0.1, "source": "rule: docs/recipes.md"}
    for words, share in (([], 0.1), (["--recipe", "CIFAR10"], 0.0), (["--validation_share", "0"], 0.0)):
        assert parse_buffer(BufferOptions, "TM", ["--dataset", f"folder:{images}", *words]).validation_share == share
    assert parse_buffer(BufferOptions, "TM", ["--dataset", "CIFAR10"]).validation_share == 0
