"""A network that diverged has no accuracy: None, counted beside the figures of the others, and never the best."""

import csv
import json
import re
from itertools import cycle

import numpy as np
import pytest
import torch

from common.config.command_line import parse
from common.datasets import load_dataset
from common.matching.step_size import StepSize
from common.networks import build_network
from common.report import pictures
from common.report.description import describe_set
from common.report.run_page import write_run_report
from common.robustness.conditions import Condition
from common.robustness.figures import baseline_errors, summarise
from common.robustness.tables import as_rows, as_table, as_text
from common.runs.loop import Distillation
from common.synset.file import load_synset, save_synset
from common.synset.open import open_synset
from common.system.errors import InputError, Stopped
from common.system.text import (
    best_by_network,
    best_of,
    in_percent,
    mean_and_std,
    percent,
    percent_with_std,
    point_of,
)
from common.training import pool
from common.training.coresets import trained_features
from common.training.evaluate import evaluate
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol, accuracy
from DM.distill import Options
from tests.authors_files import synthetic, write_results
from tests.command_line import COMMANDS, TINY, assert_refused, call, checkpoint, run_folder, shown
from tests.html_pages import words

QUICK = {"model": "ConvNetD1W16", "epochs": 1, "progress": False}
LOST = "with weights or outputs that are not finite"


@pytest.fixture(scope="module")
def digits():
    train, test = load_dataset("digits")
    return Batches(train.batch(torch.arange(40)), train.labels[:40]), test


def poison(patch, *numbers):
    """Of the networks that evaluations train from now on, those with these numbers, counted from 0, end with a NaN."""
    trained, train = [], pool.train

    def poisoned(network, *positional):
        train(network, *positional)
        if len(trained) in numbers:
            next(network.parameters()).data.view(-1)[0] = torch.nan
        trained.append(network)

    patch.setattr(pool, "train", poisoned)


# -- figures -------------------------------------------------------------------------------------------------------


def test_figures_are_of_the_networks_that_did_not_diverge():
    figures = mean_and_std([0.25, None, 0.75])
    assert figures == {"mean": 0.5, "std": 0.25, "n": 2, "diverged": 1}
    assert mean_and_std([None, None]) == {"mean": None, "std": None, "n": 0, "diverged": 2}
    assert "diverged" not in mean_and_std([0.5])
    assert point_of({"A": [0.5, None]}, "A") == {
        "network": "A", "mean": 0.5, "std": 0.0, "n": 1, "diverged": 1, "accuracies": [0.5, None],
    }  # fmt: skip


def test_how_they_are_written():
    some, none = mean_and_std([0.25, None, 0.75]), mean_and_std([None, None])
    assert in_percent(some) == "50.00 +- 25.00 %, 1 diverged"
    assert percent_with_std(some) == "50.00 ± 25.00, 1 diverged"
    assert in_percent(none) == percent_with_std(none) == "-, 2 diverged"
    assert percent(None) == percent(float("nan")) == "-"


def test_a_point_with_a_network_that_diverged_is_never_the_best():
    high = {"iteration": 1, **point_of({"A": [0.9, None], "B": [0.3, 0.3]}, "A")}
    low = {"iteration": 2, **point_of({"A": [0.5, 0.5], "B": [None, None]}, "A")}
    assert best_of([high, low]) is low
    assert best_of([high]) is None
    best = best_by_network([high, low])
    assert {name: (each["mean"], each["iteration"]) for name, each in best.items()} == {"A": (0.5, 2), "B": (0.3, 1)}
    assert best_by_network([high]).keys() == {"B"}


def test_figures_from_before_this_was_counted_are_of_networks_that_did_not_diverge():
    old = {"iteration": 0, "network": "A", "mean": 0.5, "std": 0.0, "n": 2, "accuracies": [0.5, 0.5]}
    assert best_of([old]) is old
    assert in_percent(old) == "50.00 +- 0.00 %"


def test_a_curve_has_a_gap_and_a_table_a_dash(tmp_path, whole_run):
    points = [{"iteration": n, **point_of({"A": [each], "B": [0.5]}, "B")} for n, each in enumerate([0.5, None, 0.6])]
    pictures.draw_curves(tmp_path / "curves.png", [], points)
    for table in ([[50.0, np.nan], [20.0, 10.0]], [[np.nan]]):
        pictures.draw_accuracies(tmp_path / "t.svg", np.array(table), ["a", "b"][: len(table)], ["c", "d"], "")
    assert (tmp_path / "curves.png").exists()


def test_a_file_says_how_many_diverged():
    metadata = {
        "channel": 1, "ipc": 1, "msz_per_channel": 16, "im_size": [8, 8], "num_classes": 10, "transform": "dct",
        "selection": "energy", "accuracy": point_of({"A": [0.5, None]}, "A"),
    }  # fmt: skip
    assert describe_set(metadata)["accuracy"] == "50.00 +- 0.00 %, 1 diverged (1 x A), measured on the test images"
    del metadata["accuracy"]["network"]  # as files of older versions
    assert describe_set(metadata)["accuracy"].endswith("1 diverged (1 network), measured on the test images")


def test_accuracies_of_the_authors_that_are_nan(tmp_path):
    images, labels = synthetic().get(need_copy=True)
    stored = {"ConvNet": [np.float64(0.5), np.float64("nan")], "AlexNet": [np.float64("nan")]}
    file = write_results(tmp_path / "res_DM.pt", (images, labels), accuracies=stored)
    _, metadata = open_synset(str(file))
    assert metadata["accuracy"]["accuracies"] == [0.5, None]
    assert metadata["accuracy"]["networks"]["AlexNet"]["mean"] is None
    json.dumps(metadata["accuracy"], allow_nan=False)


# -- networks ------------------------------------------------------------------------------------------------------


def spoil_weight(network):
    next(network.parameters()).data.view(-1)[-1] = torch.inf


def spoil_bias_before_relu(network):
    """Minus infinity, which the ReLU hides: outputs stay finite."""
    dict(network.named_parameters())["features.0.bias"].data[0] = -torch.inf


def spoil_statistics(network):
    """Divided by an infinite spread, images become zeros: outputs stay finite."""
    dict(network.named_buffers())["features.1.running_var"].fill_(torch.inf)


def spoil_scale(network):
    """Weights are finite, outputs overflow."""
    for each in network.parameters():
        each.data.mul_(1e30)


@pytest.mark.parametrize("spoil", [spoil_weight, spoil_bias_before_relu, spoil_statistics, spoil_scale])
def test_weights_statistics_or_outputs_that_are_not_finite(spoil, digits):
    network = build_network("ConvNetD1W16BN", 1, 10, (8, 8))
    assert 0 <= accuracy(network, digits[1]) <= 1
    spoil(network)
    assert accuracy(network, digits[1]) is None


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("model", ["ConvNetD1W16", "ConvNetD1W16BN"])
def test_of_several_networks_one_diverges(digits, together, model):
    """Alone, and as a row of stacked weights: the others are, bit for bit, what they are beside one that is well."""
    batches, test = digits
    bad = Batches(batches.images.clone(), batches.labels)
    bad.images[3] = torch.inf

    def accuracies(second):
        network = EvaluationNetwork(build_network(model, 1, 10, (8, 8)))
        protocol = EvaluationProtocol(3, 0.05, 16, "color_crop_flip")
        return evaluate_pool(
            {model: network}, lambda number: second if number == 1 else batches, test, protocol, 4, 0,
            dataset="digits", together=together, progress=False,
        )[model]  # fmt: skip

    well, spoilt = accuracies(batches), accuracies(bad)
    assert spoilt[1] is None
    assert [spoilt[0], *spoilt[2:]] == [well[0], *well[2:]]
    assert None not in well


@pytest.mark.parametrize("together", [1, 3])
def test_all_networks_diverge(digits, together):
    batches, test = digits
    networks = {name: EvaluationNetwork(build_network(name, 1, 10, (8, 8))) for name in ("ConvNetD1W16", "MLP")}
    given = (lambda number: batches, test, EvaluationProtocol(5, 1e30, 16, ""), 3, 0)
    named = {"dataset": "digits", "together": together, "progress": False}
    with pytest.raises(InputError, match=rf"all 6 networks diverged, {LOST}: lower --lr_net \(1e\+30\)"):
        evaluate_pool(networks, *given, **named)
    with pytest.raises(InputError, match=f"^all 3 networks diverged, {LOST}: do this$"):
        evaluate_pool({"MLP": networks["MLP"]}, *given, **named, lower=lambda: "do this")


def test_the_library_says_the_same(digits, monkeypatch):
    (images, labels), test = (digits[0].images, digits[0].labels), digits[1]
    with pytest.raises(InputError, match=r"the network diverged, .*: lower lr, --lr_net of the commands \(1e\+30\)"):
        evaluate((images, labels), test, networks=1, lr=1e30, **QUICK | {"epochs": 5})
    for lr in (float("inf"), float("nan"), 1e39):
        with pytest.raises(InputError, match="lr is "):
            evaluate((images, labels), test, lr=lr, **QUICK)
    with pytest.raises(InputError, match="images to train on are not finite"):
        evaluate((images * torch.nan, labels), test, **QUICK)
    whole = evaluate((images, labels), test, networks=3, **QUICK)
    poison(monkeypatch, 1)
    some = evaluate((images, labels), test, networks=3, **QUICK)
    assert some["accuracies"] == [whole["accuracies"][0], None, whole["accuracies"][2]]
    assert (some["n"], some["diverged"]) == (2, 1)
    assert "diverged" not in whole


def test_a_coreset_is_not_chosen_by_a_network_that_diverged(digits):
    train, _ = load_dataset("digits")
    network = build_network("ConvNetD1W16", 1, 10, (8, 8))
    with pytest.raises(InputError, match=r"features choose the images diverged: lower --lr_net \(1e\+30\)"):
        trained_features(network, train, EvaluationProtocol(1, 1e30, 256, ""), 1, 0)
    result = call(
        "DM/evaluate.py", "--baseline", "herding", "--coreset_epochs", 1, "--lr_net", 1e30, "--model", "ConvNetD1W16",
        "--device", "cpu",
    )  # fmt: skip
    assert_refused(result, "features choose the images diverged: lower --lr_net (1e+30)")


def test_a_file_whose_numbers_are_not_finite_is_refused(tmp_path):
    synset = synthetic()
    metadata = {"class_names": ["a", "b"]}
    file = save_synset(synset, tmp_path / "set.safetensors", metadata, torch.tensor(torch.inf))
    with pytest.raises(InputError, match="step_size that are not finite"):
        load_synset(file)
    synset.coefficients.data.view(-1)[0] = torch.nan
    with pytest.raises(InputError, match=r"coefficients that are not finite .*: its run diverged"):
        load_synset(save_synset(synset, file, metadata))


# -- commands ------------------------------------------------------------------------------------------------------

BASELINE = ["--baseline", "random", "--model", "ConvNetD1W16", "--epoch_eval_train", 1, "--device", "cpu"]


def test_evaluate_reports_networks_that_diverged(tmp_path, monkeypatch):
    poison(monkeypatch, 1)
    result = call("DM/evaluate.py", *BASELINE, "--num_eval", 3, "--output", tmp_path / "a.json")
    assert result.code == 0, result.err
    assert re.fullmatch(r"\d+\.\d\d \+- \d+\.\d\d %, 1 diverged \(2 x ConvNetD1W16\); evaluation .* s\n", result.out)
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["n"], found["diverged"], found["accuracies"][1]) == (2, 1, None)
    assert found["mean"] == pytest.approx(np.mean([found["accuracies"][0], found["accuracies"][2]]))
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["accuracy"] == "", row["diverged"]) for row in rows] == [(False, "0"), (True, "1"), (False, "0")]


def test_without_any_the_files_are_what_they_were(tmp_path):
    call("DM/evaluate.py", *BASELINE, "--num_eval", 1, "--output", tmp_path / "a.json")
    assert (tmp_path / "a.csv").read_text().startswith("network,number,seed,accuracy,seconds,augmentation\n")
    assert "diverged" not in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(("networks", "count"), [(["--model", "MLP"], 2), (["--models", "ConvNetD1W16,MLP"], 4)])
@pytest.mark.parametrize("at_once", [1, 2])
def test_evaluate_ends_where_all_diverge(tmp_path, networks, count, at_once):
    words = ["--baseline", "random", *networks, "--networks_at_once", at_once, "--num_eval", 2, "--device", "cpu"]
    how = ["--lr_net", 1e30, "--epoch_eval_train", 5, "--output", tmp_path / "a.json"]
    assert_refused(
        call("DM/evaluate.py", *words, *how), f"all {count} networks diverged, {LOST}: lower --lr_net (1e+30)"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_case_of_the_issue(tmp_path):
    """It said 10.00 % at the start, last and best, and ended with 0."""
    words = [*TINY, "--lr_net", "1e5", "--epoch_eval_train", 5, "--Iteration", 2, "--num_eval", 2, "--name", "run"]
    for _ in range(2):  # what is finished is not trained again, and says the same
        result = call("DM/distill.py", *words, "--save_path", tmp_path)
        assert_refused(result, "all 2 networks diverged", "lower --lr_net (100000)", "last good checkpoint is kept")
        assert "10.00" not in result.out + result.err
    folder = run_folder(tmp_path)
    assert checkpoint(folder)["unfinished"] == {"ConvNetD1W32": [None, None]}
    assert not (folder / "summary.json").exists()


RUN = [*TINY, "--Iteration", 2, "--eval_it", 1, "--num_eval", 2, "--epoch_eval_train", 0, "--track", "tensorboard"]


@pytest.mark.parametrize(
    ("diverging", "best"),
    [((2,), (0, 2)), ((0, 3, 5), ())],
    ids=["at one point", "at all points"],
)
def test_a_run_reports_networks_that_diverged(tmp_path, monkeypatch, whole_run, diverging, best):
    pytest.importorskip("tensorboard")
    poison(monkeypatch, *diverging)
    result = call("DM/distill.py", *RUN, "--name", "run", "--save_path", tmp_path)
    assert result.code == 0, result.err
    folder = run_folder(tmp_path)
    text = (folder / "summary.json").read_text() + (folder / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    summary = json.loads((folder / "summary.json").read_text())
    points = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    points = [entry["evaluation"] for entry in points if "evaluation" in entry]
    counts = [sum(number // 2 == point for number in diverging) for point in range(3)]
    assert [point.get("diverged", 0) for point in points] == counts
    assert [point["n"] for point in points] == [2 - count for count in counts]
    middle = f"iteration 1: accuracy {in_percent(points[1])} (1 network)"
    assert ", 1 diverged" in middle
    assert middle in result.err + result.out
    _, metadata = load_synset(folder / "synset.safetensors")
    assert metadata["accuracy"] == points[2]
    read = words((folder / "report.html").read_text())
    if best:
        assert summary["best_on_test"]["iteration"] in best
        assert (folder / "synset_best.safetensors").exists()
        assert "best on test" in read
        return
    assert summary["best_on_test"] is None
    assert not (folder / "synset_best.safetensors").exists()
    assert "best on test: none, for in every evaluation a network diverged" in result.err + result.out
    assert "1 network diverged" in read
    assert "None is best on test: in every evaluation a network diverged." in read
    again = call("DM/distill.py", *RUN, "--name", "run", "--save_path", tmp_path, "--export")
    assert_refused(again, "no best set to --export: in every evaluation a network diverged")


def test_a_pool_reports_a_kind_of_network_that_diverged_altogether(tmp_path, monkeypatch):
    """The first of two kinds stands for the run; the run goes on while the other has figures."""
    poison(monkeypatch, 0, 2, 4)
    flags = ["--eval_mode", "C", "--num_eval", 1]
    flags = [*TINY, "--Iteration", 2, "--eval_it", 1, "--epoch_eval_train", 0, *flags, "--name", "run"]
    result = call("DM/distill.py", *flags, "--save_path", tmp_path)
    assert result.code == 0, result.err
    folder = run_folder(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    first, second = summary["last"]["networks"]
    assert summary["last"]["network"] == first
    assert (summary["last"]["mean"], summary["last"]["diverged"]) == (None, 1)
    assert summary["best_on_test"] is None
    assert summary["best_on_test_by_network"].keys() == {second}
    assert f"{first}: last -, 1 diverged, best on test none" in result.err + result.out
    page = words(write_run_report(folder).read_text())
    assert f"{first} -, 1 diverged - {second}" in page
    for entry in (summary["start"], summary["last"]):
        assert entry["networks"][second]["mean"] is not None


def test_an_evaluation_that_is_stopped_goes_on_after_a_network_that_diverged(tmp_path, monkeypatch, whole_run):
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, 0, 3)
        whole = call("DM/distill.py", *RUN, "--name", "run", "--save_path", tmp_path / "whole")
    assert whole.code == 0, whole.err
    original, trained = pool.train, []

    def stopping(network, *positional):
        if len(trained) == 1:
            raise Stopped(15, "in a test")
        original(network, *positional)
        next(network.parameters()).data.view(-1)[0] = torch.nan
        trained.append(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "train", stopping)
        assert call("DM/distill.py", *RUN, "--name", "run", "--save_path", tmp_path / "cut").code == 143
    assert checkpoint(run_folder(tmp_path / "cut"))["unfinished"] == {"ConvNetD1W32": [None]}
    poison(monkeypatch, 2)  # of those that are left: the second of the second point
    assert call("DM/distill.py", *RUN, "--name", "run", "--save_path", tmp_path / "cut").code == 0
    found = [json.loads((run_folder(tmp_path / each) / "summary.json").read_text()) for each in ("whole", "cut")]
    assert found[0]["start"] == found[1]["start"]
    assert found[0]["last"] == found[1]["last"]
    assert found[0]["start"]["diverged"] == 1


def test_a_learned_step_size_is_named(tmp_path):
    """Networks are trained with it, so it is not --lr_net that has to be lowered."""
    words = [*TINY, "--Iteration", "1", "--num_eval", "1", "--epoch_eval_train", "5", "--save_path", str(tmp_path)]
    options, sources = parse(Options, "DM", words)
    with Distillation(options, sources, "DM") as run:
        run.keep(step_size=StepSize(1e20, 1e-3, run.device))
        with pytest.raises(InputError) as refused:
            next(iter(run))
    assert "lower --lr_lr (0.001) or --lr_teacher (1e+20)" in str(refused.value)
    assert "--lr_net" not in str(refused.value)
    options, sources = parse(Options, "DM", [*words, "--eval_protocol", "glad"])
    with Distillation(options, sources, "DM") as run, pytest.MonkeyPatch.context() as patch:
        poison(patch, 0)
        with pytest.raises(InputError, match="--eval_protocol dc and a lower --lr_net"):
            next(iter(run))


def test_a_set_that_is_far_outside_is_told(tmp_path):
    """No network could learn from it, whatever --lr_net is."""
    words = [*TINY, "--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 1, "--save_path", tmp_path]
    assert_refused(
        call("DM/distill.py", *words, "--lr_freq", 1e30), "the network diverged", ": lower --lr_freq (1e+30), for"
    )


def test_the_network_that_dc_trains_between_updates(tmp_path):
    """The loss that is NaN after it would have named --lr_freq alone."""
    words = [*TINY, "--Iteration", 12, "--num_eval", 1, "--epoch_eval_train", 0, "--name", "run"]
    loops = ["--outer_loop", 2, "--inner_loop", 10, "--lr_net", 1e10]
    result = call("DC/distill.py", *words, *loops, "--save_path", tmp_path)
    assert_refused(result, "the network that iteration", "trains is not finite: lower --lr_net (1e+10) or --lr_freq")


# -- robustness ----------------------------------------------------------------------------------------------------

NOISE, FOG = Condition("noise", 1), Condition("fog", 1)


def test_robustness_of_the_networks_that_did_not_diverge(tmp_path):
    """The second diverged; the third does on fog alone."""
    clean, tested = [0.8, None, 0.6], {NOISE: [0.4, None, 0.5], FOG: [0.2, None, None]}
    found = summarise(clean, tested, {NOISE: 0.5, FOG: 0.5})
    assert (found["n"], found["clean"]["diverged"]) == (2, 1)
    assert found["clean"]["mean"] == pytest.approx(0.7)
    noise, fog = found["conditions"]
    assert (noise["n"], noise["diverged"], fog["n"], fog["diverged"]) == (2, 1, 1, 2)
    assert found["mean"]["accuracies"] == [pytest.approx(0.3), None, None]
    assert found["relative_drop"] == pytest.approx(1 - 0.3 / 0.8)
    assert found["mce"]["networks"] == [pytest.approx((0.6 + 0.8) / 2 / 0.5), None, None]
    assert found["mce"]["by_kind"] == {"noise": pytest.approx(1.1), "fog": pytest.approx(1.6)}
    json.dumps(found, allow_nan=False)
    result = found | {"network": "A", "target": "T", "target_stats": "train", "options": {"relative_to": "b"}}
    assert "70.00 +- 10.00 %, 1 diverged (2 x A)" in as_text(result)
    rows = as_rows(result)
    assert [(row["accuracy"], row["diverged"]) for row in rows[:3]] == [(0.8, 0), (None, 1), (0.6, 0)]
    assert "diverged" not in as_rows({**result, "clean": {"accuracies": [0.5]}, "conditions": []})[0]


def test_a_condition_under_which_all_diverge_has_no_figure(tmp_path):
    found = summarise([0.8], {NOISE: [0.4], FOG: [None]}, {NOISE: 0.5, FOG: 0.5})
    result = found | {"network": "A", "target": "T", "target_stats": "train", "options": {"relative_to": "b"}}
    assert np.isnan(as_table(result)[0]).tolist() == [[False], [True]]
    lines = {line.split()[0]: line.split()[1:] for line in as_text(result).splitlines() if line.split()}
    assert lines["noise"] == ["40.00", "120.00"]
    assert lines["fog"] == ["-", "-"]
    assert found["relative_drop"] is None
    assert found["mce"]["mean"] is None
    stored = result | {"images": {}}
    (tmp_path / "results.json").write_text(json.dumps(stored))

    class Target:
        name, parts = "T", {NOISE: None, FOG: None}

    with pytest.raises(InputError, match="no error under fog 1, where all of its networks diverged"):
        baseline_errors(tmp_path / "results.json", Target(), "train")


# -- options -------------------------------------------------------------------------------------------------------


def options_with_floats():
    """(command, flag) for every option of every command whose help says that it takes a FLOAT."""
    for command in COMMANDS:
        text = shown(command)
        subcommands = re.findall(r"^[│ ]\s+• (\w+)", text, re.MULTILINE) or [""]
        for subcommand in subcommands:
            whole = f"{command} {subcommand}".strip()
            for line in (shown(whole) if subcommand else text).splitlines():
                if found := re.match(r"[│ ] (--\w+)(, --[\w-]+)* .*\bFLOAT\b", line):
                    yield whole, found[1]


def test_every_number_of_every_command_has_to_be_finite(tmp_path):
    asked = list(options_with_floats())
    flags = {flag for _, flag in asked}
    assert {"--lr_net", "--lr_freq", "--mom_freq", "--lr_teacher", "--lr_lr", "--mom", "--l2", "--mem_gb"} <= flags
    file = tmp_path / "there-is-none"
    needed = {
        "-m common.pretrained convert": [file, "--output", file], "-m common.pretrained check": [file],
        "-m common.pretrained import": [file, "--output", file],
        "-m common.pretrained export": [file, "--to", f"folder:{file}"],
    }  # fmt: skip
    for (command, flag), value in zip(asked, cycle(("inf", "nan", "1e39")), strict=False):
        script, *words = command.split()
        if script == "-m":
            script = f"{words.pop(0).replace('.', '/')}/__main__.py"
        result = call(script, *words, *needed.get(command, []), f"{flag}={value}")
        assert_refused(result, f"{flag} {float(value)} is not finite in float32: give another")
