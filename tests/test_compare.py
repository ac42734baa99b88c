"""`compare.py`: rows of an experiment, searched alike, distilled with the same seeds, compared by paired tests."""

import csv
import json
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

import compare
from common.config.experiment import Row, read_experiment
from common.report.record import read_run
from tests.command_line import InThisProcess, assert_refused, call
from tests.conftest import ROOT

EXPERIMENT = """
title = "digits"
objective = "DM"
dataset = "digits"
seeds = "3-5"
[flags]
model = "ConvNetD1W32"
Iteration = 2
batch_real = 8
num_eval = 1
eval_it = 0
epoch_eval_train = 3
[search]
seed = 100
validation_share = 0.2
[[rows]]
name = "float32"
lr_freq = [256, 0.001]
[[rows]]
name = "8 bits"
flags = { storage = "int8", optimizer = "adam" }
lr_freq = [0.1, 1e-9]
against = ["float32"]
[[rows]]
name = "8 bits at start"
runs = "8 bits"
point = "start"
against = ["float32"]
"""


def written(folder, text=EXPERIMENT):
    path = folder / "two.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.system.scripts.Script", InThisProcess)
        result = call("compare.py", written(path), "--output", path)
    assert result.code == 0, result.err
    tables = []
    for part in ("", "_search", "_claims"):
        with (path / f"two{part}.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    return path, *tables, result.out


def test_each_row_takes_the_step_that_its_search_found_best(made):
    _, rows, search, *_ = made
    assert [(entry["row"], float(entry["lr_freq"])) for entry in search] == [
        ("float32", 256), ("float32", 0.001), ("8 bits", 0.1), ("8 bits", 1e-9),
    ]  # fmt: skip
    for row in rows[:2]:
        mine = [entry for entry in search if entry["row"] == row["row"]]
        best = max(mine, key=lambda entry: float(entry["validation"]))
        assert float(row["lr_freq"]) == float(best["lr_freq"])
        assert all("--seed 100" in entry["command"] for entry in mine)


def test_means_are_those_of_the_sets_and_the_test_is_paired(made):
    path, rows, _, claims, shown = made
    accuracies = {}
    for name, folder, point in [("float32", "float32", "last"), ("8 bits", "8-bits", "last"),
                                ("8 bits at start", "8-bits", "start")]:  # fmt: skip
        runs = [read_run(path / f"DM/digits/ipc1/{folder}-seed{seed}") for seed in (3, 4, 5)]
        assert [run.option("seed") for run in runs] == [3, 4, 5]
        accuracies[name] = np.array([run.summary[point]["mean"] for run in runs])
    for row in rows:
        mine = accuracies[row["row"]]
        assert float(row["mean"]) == pytest.approx(mine.mean(), abs=1e-5)
        assert float(row["std"]) == pytest.approx(mine.std(), abs=1e-5)
        assert f"{100 * mine.mean():.2f}" in shown
    assert (rows[0]["bytes"], rows[0]["paper_bytes"]) == ("3200", "2560")  # with and without 16 positions a class
    assert int(rows[1]["bytes"]) <= 2560 < int(rows[1]["paper_bytes"])
    assert [row["updates"] for row in rows] == ["2", "2", "0"]
    assert [(claim["row"], claim["against"]) for claim in claims] == [
        ("8 bits", "float32"), ("8 bits at start", "float32")
    ]  # fmt: skip
    p = [stats.ttest_rel(accuracies[claim["row"]], accuracies["float32"]).pvalue for claim in claims]
    for claim, each in zip(claims, p, strict=True):
        differences = accuracies[claim["row"]] - accuracies["float32"]
        assert float(claim["difference"]) == pytest.approx(differences.mean(), abs=1e-5)
        assert float(claim["standard_error"]) == pytest.approx(differences.std(ddof=1) / 3**0.5, abs=1e-5)
        assert float(claim["p"]) == pytest.approx(each, rel=0.05)
    corrected = sorted([min(1, 2 * min(p)), min(1, max(max(p), 2 * min(p)))])
    assert sorted(float(claim["p_holm"]) for claim in claims) == pytest.approx(corrected, rel=0.05)


def test_running_it_again_makes_nothing_anew(made, monkeypatch):
    path, *_ = made
    before = {file: file.stat().st_mtime_ns for file in path.rglob("synset.safetensors")}
    monkeypatch.setattr(subprocess, "run", None)
    result = call("compare.py", path / "two.toml", "--output", path, "--run", "False")
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == f"next: python -m common.report gallery {path}"
    assert {file: file.stat().st_mtime_ns for file in path.rglob("synset.safetensors")} == before


def test_a_missing_run_is_named(tmp_path):
    result = call("compare.py", written(tmp_path), "--output", tmp_path, "--run", "False")
    assert_refused(result, "no row of the experiment is finished")
    assert f"row 'float32' is left out: {tmp_path / 'DM/digits/ipc1/float32-seed3'}" in result.out + result.err


def test_the_rows_that_are_there_are_tabulated(made, tmp_path):
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "DM/digits/ipc1/float32-seed4")
    result = call("compare.py", tmp_path / "two.toml", "--output", tmp_path, "--run", "False")
    assert result.code == 0, result.err
    with (tmp_path / "two.csv").open() as file:
        assert [row["row"] for row in csv.DictReader(file)] == ["8 bits", "8 bits at start"]
    assert "row 'float32' is left out" in result.out + result.err


def test_steps_that_look_alike_have_runs_of_their_own():
    row = Row(name="a", lr_freq=(1e5, 0.1234567, 0.12345671))
    assert [compare._search_name(row, value) for value in row.lr_freq] == [
        "a-lr100000", "a-lr0.1234567", "a-lr0.12345671",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ('seeds = "3-5"', 'seeds = "3"', "from two seeds on"),
        ('against = ["float32"]', 'against = ["float"]', "no row 'float'"),
        ("lr_freq = [256, 0.001]", "lr_freq = [256]", "as many values of lr_freq"),
        ('runs = "8 bits"', 'runs = "8 bits"\nlr_freq = [1.0, 2.0]', "has no flags of its own"),
        ('name = "8 bits"', 'name = "float32"', "no row '8 bits'"),
        ('name = "8 bits at start"', 'name = "float32"', "two rows of one name"),
        ('name = "8 bits at start"', 'name = "8-bits"', "in which a space and a hyphen are the same"),
        ('title = "digits"', "", "title: Field required"),
        ('point = "start"', 'point = "best"', "rows.2.point: Input should be 'start' or 'last'"),
        ("seed = 100", "seed = 4", "a seed that is not one of 3-5"),
        ("validation_share = 0.2", "", "by the images that the rows are tested on: give it validation_share"),
        ("Iteration = 2", "bits_per_class = 4096", "bits_per_class is no flag of a row"),
        ("[search]", "[serch]", "serch: Extra inputs are not permitted"),
        ("[search]", "[search", "not a TOML file"),
        ('name = "8 bits"', 'name = "../8"', "rows.1.name"),
    ],
)  # fmt: skip
def test_an_experiment_that_cannot_be_run_is_refused(tmp_path, before, after, part):
    assert before in EXPERIMENT
    path = written(tmp_path, EXPERIMENT.replace(before, after, 1))
    assert_refused(call("compare.py", path, "--output", tmp_path / "out"), part)
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_not_there_is_refused(tmp_path):
    result = call("compare.py", written(tmp_path), "--rows", "int8", "--output", tmp_path / "out")
    assert_refused(result, "there is no row 'int8': the rows are float32, 8 bits, 8 bits at start")


def test_a_step_that_diverges_is_the_worst_of_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr("common.system.scripts.Script", InThisProcess)
    text = EXPERIMENT.split("[[rows]]")[0].replace('seeds = "3-5"', 'seeds = "3"')
    text += '[[rows]]\nname = "a"\nlr_freq = [1e37, 256]\n[[rows]]\nname = "a at start"\nruns = "a"\npoint = "start"\n'
    result = call("compare.py", written(tmp_path, text), "--rows", "a at start", "a", "--output", tmp_path)
    assert result.code == 0, result.err
    assert "lr_freq 1e+37 of row 'a' counts as the worst" in result.out
    assert read_run(tmp_path / "DM/digits/ipc1/a-seed3").option("lr_freq") == 256
    assert not list(tmp_path.rglob("a-at-start*"))
    assert call("compare.py", written(tmp_path, text), "--output", tmp_path, "--run", "False").code == 0
    assert "a,1e+37,-,-,-" in (tmp_path / "two_search.csv").read_text()


def test_rows_are_for_making_runs(tmp_path):
    result = call("compare.py", written(tmp_path), "--rows", "float32", "--run", "False", "--output", tmp_path / "out")
    assert_refused(result, "--rows says which runs to make")


def test_all_experiments_of_this_repository_can_be_read():
    files = sorted((ROOT / "experiments").glob("*.toml"))
    assert files
    for file in files:
        assert read_experiment(file).rows


def test_holm_corrects_by_the_number_of_comparisons_left():
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.9, 0.6]) == [1, 1]
    assert compare.holm([]) == []


def test_a_paired_comparison_takes_out_what_the_seeds_have_in_common():
    ours, theirs = [0.51, 0.62, 0.73], [0.50, 0.60, 0.70]
    found = compare.paired(ours, theirs)
    assert found.difference == pytest.approx(0.02)
    assert found.error == pytest.approx(0.01 / 3**0.5)
    # t = 0.02 / (0.01 / sqrt 3) = 3.464 on 2 degrees of freedom
    assert found.p == pytest.approx(1 - 3.4641016 / (3.4641016**2 + 2) ** 0.5, rel=1e-4)
    assert compare.paired([0.5, 0.6], [0.5, 0.6]).p == 1
    assert compare.paired([0.6, 0.7], [0.5, 0.6]).p == 1  # nothing to judge it by
    assert compare.paired([0.1 * 3, 0.2 * 3], [0.3, 0.6]).p == 1


def test_a_set_whose_networks_all_diverged_is_not_compared(made, tmp_path):
    path, *_ = made
    shutil.copytree(path / "DM", tmp_path / "DM")
    summary = tmp_path / "DM/digits/ipc1/8-bits-seed4/summary.json"
    told = json.loads(summary.read_text())
    told["last"] |= {"mean": None, "std": None, "n": 0, "diverged": 1, "accuracies": [None]}
    summary.write_text(json.dumps(told))
    result = call("compare.py", written(tmp_path), "--output", tmp_path, "--run", "False")
    assert_refused(result, "8-bits-seed4: every network diverged, so row '8 bits' cannot be compared")
