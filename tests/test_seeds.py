"""--seeds: several distillations as one thing, and what their sets have in common."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest

from common.config.seeds import parse_seeds
from common.runs import loop
from common.system.errors import InputError, Stopped
from common.system.text import mean_and_std, over_sets, sets_in_percent
from reproduction import results
from reproduction.cells import folder_of
from reproduction.jobs import CellJob, is_finished
from reproduction.plan import Plan
from reproduction.tables import Cell, select
from tests.command_line import TINY, assert_refused, call
from tests.html_pages import HOSTILE, page, words

WORDS = [*TINY, "--Iteration", 4, "--eval_it", 2, "--num_eval", 2, "--epoch_eval_train", 1]
SMALL = Cell("dm-lowres", "DM", "MNIST", 1)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-4", [0, 1, 2, 3, 4]), ("0,2,5-7", [0, 2, 5, 6, 7]), ("7-7, 1", [7, 1]), ("00", [0])],
)
def test_lists_of_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    ["", "a", "1-", "-1", "3-1", "0-4,4", "1,,2", "0-1000", "1.5", "٣", "0-99999999", "1-2-3", "0-999,1000-1001"],
)
def test_what_is_no_list_of_seeds_is_refused(text):
    with pytest.raises(InputError, match="--seeds"):
        parse_seeds(text)
    assert_refused(call("DM/distill.py", *WORDS, f"--seeds={text}"), "--seeds")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("3-1", "--seeds 3-1 is an empty range, its first number is above its last: give 1-3"),
        ("0, 7-5", "--seeds 7-5 is an empty range, its first number is above its last: give 5-7"),
        ("0-1000", "--seeds 0-1000 is a range of 1,001: give 1 to 1,000 seeds"),
    ],
)
def test_what_is_wrong_with_a_range_is_told(text, told):
    with pytest.raises(InputError) as refused:
        parse_seeds(text)
    assert str(refused.value) == told


def test_figures_over_sets():
    """Of three sets with means 0.5, 0.6 and 0.7 and variances 0.01, 0 and 0.01; the last lost a network."""
    points = [mean_and_std(each) for each in ([0.4, 0.6], [0.6, 0.6], [0.8, 0.6, None])]
    figures = over_sets(points)
    assert figures["means"] == pytest.approx([0.5, 0.6, 0.7])
    assert figures["mean"] == pytest.approx(0.6)
    assert figures["std"] == pytest.approx(math.sqrt(0.02 / 3))
    assert figures["within"] == {"std": pytest.approx(math.sqrt(0.02 / 3)), "n": 6, "diverged": 1}
    assert sets_in_percent(figures) == "60.00 +- 8.16 % over 3 sets; 6 networks, 1 diverged, +- 8.16 within a set"
    alone = over_sets(points[:1])
    assert (alone["std"], alone["n"]) == (None, 1)  # one set has no deviation
    assert sets_in_percent(alone) == "50.00 % over 1 set; 2 networks, +- 10.00 within a set"
    single = over_sets([mean_and_std([0.4]), mean_and_std([0.6])])
    assert single["within"] == {"std": None, "n": 2}  # one network per set has no deviation within a set
    assert sets_in_percent(single) == "50.00 +- 10.00 % over 2 sets; 2 networks"


# -- distilling ----------------------------------------------------------------------------------------------------


def outcome(folder):
    """What a run computed: sets byte for byte, and evaluations."""
    points = [json.loads(line).get("evaluation") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(folder / name).read_bytes() for name in ("synset.safetensors", "synset_best.safetensors")], points


def test_each_run_is_that_of_its_seed(tmp_path):
    """By name and without one: the sets of --seeds 1,0 are those of --seed 1 and --seed 0, and go on as theirs."""
    result = call("DM/distill.py", *WORDS, "--seeds", "1,0", "--name", "n", "--save_path", tmp_path)
    assert result.code == 0, result.err
    folder = tmp_path / "DM/digits/ipc1"
    assert sorted(each.name for each in folder.iterdir()) == ["n-seed0", "n-seed1", "n-seeds"]
    for seed in (0, 1):
        alone = ["--seed", seed, "--name", f"n-seed{seed}"]
        assert call("DM/distill.py", *WORDS, *alone, "--save_path", tmp_path / "alone").code == 0
        assert outcome(folder / f"n-seed{seed}") == outcome(tmp_path / "alone/DM/digits/ipc1" / f"n-seed{seed}")
        again = call("DM/distill.py", *WORDS, *alone, "--save_path", tmp_path)
        assert "is finished" in again.out
    one = call("DM/distill.py", *WORDS, "--seed", 1, "--save_path", tmp_path / "unnamed")
    (made,) = (tmp_path / "unnamed/DM/digits/ipc1").iterdir()
    assert one.code == 0
    result = call("DM/distill.py", *WORDS, "--seeds", "0-1", "--save_path", tmp_path / "unnamed")
    assert f"{made} is finished" in result.out
    names = sorted(each.name for each in made.parent.iterdir())
    assert len(names) == 3
    assert [name for name in names if name.endswith("-seeds")]
    assert len({outcome(folder / f"n-seed{seed}")[0][0] for seed in (0, 1)}) == 2


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    path = tmp_path_factory.mktemp("three")
    result = call("DM/distill.py", *WORDS, "--seeds", "0-2", "--name", "n", "--save_path", path)
    assert result.code == 0, result.err
    return result.out, path


@pytest.fixture
def made(three, tmp_path):
    """The folder of the sets of three seeds, to change as a test likes."""
    shutil.copytree(three[1], tmp_path, dirs_exist_ok=True)
    return tmp_path / "DM/digits/ipc1"


def test_the_summary_is_of_the_sets_and_of_their_networks(three):
    printed, folder = three[0], three[1] / "DM/digits/ipc1"
    summary = json.loads((folder / "n-seeds/seeds.json").read_text())
    assert summary["seeds"] == [0, 1, 2]
    runs = [json.loads((folder / name / "summary.json").read_text()) for name in summary["runs"].values()]
    for key in ("start", "last", "best_on_test"):
        means = [np.mean(run[key]["accuracies"]) for run in runs]
        figures = summary[key]
        assert figures["means"] == pytest.approx(means)
        assert (figures["mean"], figures["std"], figures["n"]) == (
            pytest.approx(np.mean(means)), pytest.approx(np.std(means)), 3,
        )  # fmt: skip
        within = np.sqrt(np.mean([np.var(run[key]["accuracies"]) for run in runs]))
        assert figures["within"] == {"std": pytest.approx(within), "n": 6}
        assert sets_in_percent(figures) in printed
    assert str(folder / "n-seeds/seeds.json") in printed
    assert summary["paper_bytes"] == [run["budget"]["coefficient_bytes"] for run in runs]
    assert summary["bytes"] == [run["budget"]["coefficient_bytes"] + run["budget"]["position_bytes"] for run in runs]


def test_the_page_says_what_each_number_is_over(made):
    folder = made
    text = page(folder / "n-seeds/report.html")
    summary = json.loads((folder / "n-seeds/seeds.json").read_text())
    told = words(text)
    last = summary["last"]
    assert f"{100 * last['mean']:.2f} ± {100 * last['std']:.2f} %" in told
    assert f"± {100 * last['within']['std']:.2f} % over the networks of a set" in told
    assert "over 3 sets, 6 networks in all" in told
    for seed in range(3):
        assert f'href="../n-seed{seed}/report.html"' in text
    assert re.search(r"python DM/distill.py .*--seeds 0,1,2", told)
    assert "--seed 0" not in told
    assert "--name n " in told + " "
    (folder / "n-seeds/report.html").unlink()
    again = call("common/report/__main__.py", "html", folder / "n-seeds")
    assert again.code == 0
    assert words_of(folder / "n-seeds/report.html") == told


def test_texts_of_the_summary_are_text(made):
    folder = made
    file = folder / "n-seeds/seeds.json"
    config = json.loads((folder / "n-seed0/config.json").read_text())
    config["options"]["model"]["value"] = HOSTILE
    (folder / "n-seed0/config.json").write_text(json.dumps(config))
    assert call("common/report/__main__.py", "html", folder / "n-seeds").code == 0
    page(folder / "n-seeds/report.html")
    for broken in ("{}", "[]", "", '{"runs": {"a": "n-seed0"}}', '{"runs": [1]}', "[" * 100_000):
        file.write_text(broken)
        refused = call("common/report/__main__.py", "html", folder / "n-seeds")
        assert_refused(refused, "seeds.json ", ": remove it, and distil again with --seeds")
    file.write_text('{"runs": {"0": "../../gone"}}')
    assert_refused(call("common/report/__main__.py", "html", folder / "n-seeds"), "gone is not the folder of a run")


def test_more_seeds_are_added_to_those_that_are_there(made, tmp_path):
    folder = made
    before = outcome(folder / "n-seed0")
    result = call("DM/distill.py", *WORDS, "--seeds", "0,3", "--name", "n", "--save_path", tmp_path)
    assert "n-seed0 is finished" in result.out
    assert outcome(folder / "n-seed0") == before
    assert json.loads((folder / "n-seeds/seeds.json").read_text())["seeds"] == [0, 1, 2, 3]
    other = call("DM/distill.py", *WORDS, "--seeds", 5, "--lr_freq", 3, "--name", "n", "--save_path", tmp_path)
    assert "left out: seed 0, seed 1, seed 2, seed 3, of other options or not finished" in other.out
    assert json.loads((folder / "n-seeds/seeds.json").read_text())["seeds"] == [5]


def test_a_summary_that_was_changed_is_not_believed(made, tmp_path):
    """The figures over sets are those of the runs, whatever seeds.json says; a run that is not whole is no set."""
    folder = made
    file = folder / "n-seeds/seeds.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps(before | {"last": before["last"] | {"mean": 0.99}}))
    assert call("common/report/__main__.py", "html", folder / "n-seeds").code == 0
    assert f"{100 * before['last']['mean']:.2f}" in words_of(folder / "n-seeds/report.html")
    assert "99.00" not in words_of(folder / "n-seeds/report.html")
    lost = folder / "n-seed1/summary.json"
    lost.write_text(lost.read_text().replace('"mean": 0.', '"mean": 0.9', 1))
    result = call("DM/distill.py", *WORDS, "--seeds", 0, "--name", "n", "--save_path", tmp_path)
    assert "left out: seed 1, of other options or not finished" in result.out
    assert json.loads(file.read_text())["seeds"] == [0, 2]


def test_a_stopped_run_of_several_goes_on(tmp_path, monkeypatch):
    """The second of three is stopped: the first is kept, and so is its page; the same command makes the rest."""
    asked = [*WORDS, "--seeds", "0-2", "--name", "n", "--checkpoint_every", 1]
    assert call("DM/distill.py", *asked, "--save_path", tmp_path / "never").code == 0
    update, calls = loop.Distillation.update, []

    def stopped(*positional, **named):
        calls.append(None)
        if len(calls) == 7:
            raise Stopped(15, "")
        update(*positional, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Distillation, "update", stopped)
        assert call("DM/distill.py", *asked, "--save_path", tmp_path).code == 143
    folder = tmp_path / "DM/digits/ipc1"
    assert json.loads((folder / "n-seeds/seeds.json").read_text())["seeds"] == [0]
    assert not (folder / "n-seed2").exists()
    result = call("DM/distill.py", *asked, "--save_path", tmp_path)
    assert "n-seed0 is finished" in result.out
    assert "resumed from iteration 2" in result.out
    for seed in range(3):
        assert outcome(folder / f"n-seed{seed}") == outcome(tmp_path / "never/DM/digits/ipc1" / f"n-seed{seed}")


def test_the_networks_of_a_pool_have_figures_each(tmp_path):
    words = [*WORDS, "--eval_mode", "C", "--model", "ConvNetD1W16BN", "--num_eval", 1, "--seeds", "0,1", "--name", "n"]
    result = call("DM/distill.py", *words, "--save_path", tmp_path)
    assert result.code == 0, result.err
    folder = tmp_path / "DM/digits/ipc1"
    summary = json.loads((folder / "n-seeds/seeds.json").read_text())
    runs = [json.loads((folder / f"n-seed{seed}/summary.json").read_text()) for seed in (0, 1)]
    assert len(summary["networks"]) == 2
    for name, each in summary["networks"].items():
        assert each["last"]["means"] == [run["last"]["networks"][name]["mean"] for run in runs]
        assert each["best_on_test"]["means"] == [run["best_on_test_by_network"][name]["mean"] for run in runs]
        assert name in words_of(folder / "n-seeds/report.html")


def words_of(path):
    return words(page(path))


def test_seed_and_seeds_exclude_each_other(tmp_path):
    result = call("DM/distill.py", *WORDS, "--seed", 1, "--seeds", "0-1", "--save_path", tmp_path)
    assert_refused(result, "--seed 1 and --seeds 0-1 both say which seeds")


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("DC/distill.py", ["--outer_loop", 1, "--inner_loop", 1, "--batch_real", 8]),
        (
            "ImageNet-abcde/distill.py",
            ["--objective", "DM", "--msz_per_channel", 16, "--lr_freq", 1, "--eval_mode", "S"],
        ),
    ],
)
def test_every_objective_takes_seeds(tmp_path, script, flags):
    words = [*TINY, "--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 0, *flags]
    result = call(script, *words, "--seeds", "3,4", "--name", "n", "--save_path", tmp_path)
    assert result.code == 0, result.err
    (file,) = tmp_path.rglob("seeds.json")
    assert json.loads(file.read_text())["seeds"] == [3, 4]


# -- tables --------------------------------------------------------------------------------------------------------


def test_a_cell_of_several_sets_stands_in_the_tables(here, tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu", seeds="0-1")
    CellJob(SMALL, plan)()
    assert is_finished(SMALL, plan)
    assert is_finished(SMALL, Plan(scale="smoke", output=str(tmp_path), device="cpu", seeds="1"))
    assert not is_finished(SMALL, Plan(scale="smoke", output=str(tmp_path), device="cpu", seeds="0-2"))
    assert not is_finished(SMALL, Plan(scale="smoke", output=str(tmp_path), device="cpu"))
    summary = json.loads((folder_of(SMALL, plan) / "seeds.json").read_text())
    row = results.row_of(SMALL, Plan(scale="smoke", output=str(tmp_path)))
    last = summary["last"]
    assert (row.state, row.sets, row.n) == ("finished", 2, last["within"]["n"])
    assert (row.last_mean, row.last_sets_std) == (round(100 * last["mean"], 2), round(100 * last["std"], 2))
    assert last["within"] == {"std": None, "n": 2}  # one network per set
    told = f"{100 * last['mean']:.2f} ± {100 * last['std']:.2f} over 2 sets"
    assert row.ours == told
    result = call("reproduce.py", "report", "--output", tmp_path)
    assert told in result.out
    assert told in words_of(tmp_path / "report.html")
    (line,) = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert (line["sets"], float(line["sets_std"])) == ("2", row.sets_std)
    assert "seeds/report.html" in (tmp_path / "report.html").read_text()


def test_drifted_images_are_tested_with_each_set(here, tmp_path):
    (cell,) = select("corruption", ["CIFAR10.1"])
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu", seeds="0-1")
    CellJob(cell, plan)()
    tests = [json.loads(file.read_text()) for file in sorted(folder_of(cell, plan).glob("seed*/results.json"))]
    assert len(tests) == 2
    row = results.row_of(cell, Plan(scale="smoke", output=str(tmp_path)))
    assert row.sets == 2
    assert row.mean == round(100 * np.mean([test["mean"]["mean"] for test in tests]), 2)
    assert "over 2 sets" in row.note
    shutil.rmtree(folder_of(cell, plan) / "seed1")
    assert not is_finished(cell, plan)
    assert results.row_of(cell, Plan(scale="smoke", output=str(tmp_path))).mean is None


def test_reproduce_refuses_what_is_no_list_of_seeds(tmp_path):
    words = ["--table", "dm-lowres", "--output", tmp_path]
    assert_refused(call("reproduce.py", "run", *words, "--seeds", "4-0"), "--seeds 4-0 is an empty range")
    dry = call("reproduce.py", "run", *words, "--seeds", "0-4", "--dry_run", "--cells", "MNIST/1")
    assert "--seeds 0-4" in dry.out
