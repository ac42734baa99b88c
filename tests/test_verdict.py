"""Ours beside the published figure, and DD-Ranking's scores, with values computed by hand."""

import json
import math

import pytest

from common.datasets import load_dataset
from common.report import scores, verdict
from common.report.verdict import Cell, Verdict, compared, describe, in_words, judge, judge_networks, short
from common.synset.file import save_synset
from common.synset.synset import SynSet, SynSetArgs
from reproduction.tables import TABLES
from tests.command_line import call


def test_a_difference_in_standard_deviations_of_both():
    """3-4-5: (0.3, 0.4) make 0.5, of which 0.8 is 1.6 and 1.2 is 2.4."""
    published = {"accuracy": 60.0, "std": 0.4}
    near, far = judge(59.2, 0.3, "5 networks", published), judge(61.2, 0.3, "5 networks", published)
    assert near == (pytest.approx(-0.8), pytest.approx(1.6), True, "ours over 5 networks and theirs")
    assert far[:3] == (pytest.approx(1.2), pytest.approx(2.4), False)
    assert in_words(near) == "-0.80 points, 1.6 standard deviations (ours over 5 networks and theirs): within 2"
    assert in_words(far).endswith(": not within 2")
    assert (short(near), short(far)) == ("-0.80 (1.6 s.d., within 2)", "+1.20 (2.4 s.d., not within 2)")


def test_a_deviation_that_is_not_known_is_said():
    only_ours = judge(59.0, 0.5, "3 sets", {"accuracy": 60.0})
    assert only_ours == (-1.0, 2.0, True, "ours over 3 sets, theirs is not published")
    assert judge(59.0, None, "1 network", {"accuracy": 60.0, "std": 0.5}) == (-1.0, 2.0, True, "theirs")
    neither = judge(59.0, None, "1 network", {"accuracy": 60.0})
    assert neither == Verdict(-1.0, None, None, "")
    assert in_words(neither) == "-1.00 points; no standard deviation is known to judge it by"
    assert short(neither) == "-1.00"
    one = {"mean": 0.59, "std": 0.0, "n": 1}  # the population deviation of one network is 0, and says nothing
    assert judge_networks(one, {"accuracy": 60.0}).deviations is None
    assert judge_networks({"mean": None, "std": None, "n": 0}, {"accuracy": 60.0}) is None


AS_PUBLISHED = {"epochs": 1000, "lr": 0.02, "batch": 256, "strategy": "color_crop_cutout_flip_scale_rotate"}
FIGURES = {"mean": 0.607, "std": 0.003, "n": 5}


def test_an_evaluation_as_published_is_compared():
    found = compared(Cell("TM", "CIFAR10", 1, 32), "ConvNetD3", AS_PUBLISHED, FIGURES)
    assert (found["accuracy"], found["differently"]) == (60.6, [])
    assert found["difference"] == pytest.approx(0.1)
    assert found["deviations"] == pytest.approx(0.1 / math.hypot(0.3, found["std"]))
    assert found["within"] is True
    line = describe(found)
    assert line.startswith("60.6 +- 0.8 % is published (README of the authors' repository, TM")
    assert line.endswith("): +0.10 points, 0.1 standard deviations (ours over 5 networks and theirs): within 2")


@pytest.mark.parametrize(
    ("network", "changed", "told"),
    [
        ("ConvNetD4", {}, "the network is ConvNetD4 and theirs ConvNetD3"),
        ("ConvNetD3", {"epochs": 10}, "epochs is 10 and theirs 1000"),
        ("ConvNetD3", {"batch": 8}, "batch is 8 and theirs 256"),
        ("ConvNetD3", {"kind": "glad"}, "kind is glad and theirs dc"),
        ("ConvNetD3", {"strategy": "color_crop"}, "the augmentation is another one"),
        ("ConvNetD3", {"strategy": "", "augmentation": "cutmix"}, "the augmentation is another one"),
    ],
)
def test_another_evaluation_is_not(network, changed, told):
    found = compared(Cell("TM", "CIFAR10", 1, 32), network, AS_PUBLISHED | changed, FIGURES)
    assert found["differently"] == [told]
    assert "difference" not in found
    assert describe(found).endswith(f"not compared, for {told}")


def test_cells_without_a_published_figure_have_no_verdict():
    assert compared(None, "ConvNetD3", AS_PUBLISHED, FIGURES) is None
    assert compared(Cell("DM", "CIFAR10", 1, 32), "ConvNetD3", AS_PUBLISHED, FIGURES) is None
    assert compared(Cell("TM", "imagenet-a", 1, 999), "ConvNetD5", AS_PUBLISHED, FIGURES) is None


def test_every_published_cell_of_the_tables_can_be_matched():
    """The two read the same figures: what a table compares with is what an evaluation is compared with."""
    cells = [cell for table in TABLES.values() for cell in table.cells if cell.published]
    assert len(cells) > 40
    for cell in cells:
        size = cell.image_size or {"imagenet": 128}.get(cell.dataset.partition("-")[0], 32)
        found = compared(Cell(cell.objective, cell.dataset, cell.ipc, size), "none", AS_PUBLISHED, FIGURES)
        assert (found["accuracy"], found["source"]) == (cell.published["accuracy"], cell.published["source"])


def digits_set(folder, objective="DM", **changed):
    train, test = load_dataset("digits")
    synset = SynSet(SynSetArgs(1, 10, (8, 8), "cpu", 2, 16, 1.0, 0.5, **changed))
    synset.init(train, train.labels, train.class_indices)
    about = {"dataset": "digits", "network": "ConvNetD1W16", "mean": list(test.mean), "std": list(test.std)}
    about |= {"objective": objective, "evaluation": AS_PUBLISHED | {"epochs": 3}}
    return save_synset(synset, folder / "set.safetensors", about)


def test_the_command_compares_a_set_of_a_published_cell(tmp_path, monkeypatch):
    figures = {"accuracy": 50.0, "std": 0.5, "source": "a table"}
    asked = []
    monkeypatch.setattr(verdict.recipes, "published", lambda *cell: asked.append(cell) or figures)
    file, output = digits_set(tmp_path), tmp_path / "result.json"
    command = ["DM/evaluate.py", "--synset", file, "--num_eval", 2, "--device", "cpu", "--output", output]
    result = call(*command)
    assert result.code == 0, result.err
    assert asked == [("DM", "digits", 2, 8)]
    told = "50.0 +- 0.5 % is published (a table): not compared, for the network is ConvNetD1W16 and theirs ConvNetD3, "
    assert f"{told}epochs is 3 and theirs 300" in result.out
    assert "difference" not in json.loads(output.read_text())["published"]

    monkeypatch.setattr(verdict, "_differently", lambda *_: [])
    result = call(*command)
    found = json.loads(output.read_text())
    difference = 100 * found["mean"] - 50
    n = abs(difference) / math.hypot(100 * found["std"], 0.5)
    assert found["published"]["deviations"] == pytest.approx(n)
    told = f"{difference:+.2f} points, {n:.1f} standard deviations (ours over 2 networks and theirs): not within 2"
    assert f"50.0 +- 0.5 % is published (a table): {told}" in result.out
    # Of another dataset, in pixels, or of no known objective a set is of no cell.
    asked.clear()
    call(*command, "--dataset", "digits")
    assert asked
    asked.clear()
    digits_set(tmp_path, transform="identity")
    assert "is published" not in call(*command).out
    digits_set(tmp_path, objective=None)
    assert "is published" not in call(*command).out
    assert not asked


# -- scores -------------------------------------------------------------------------------------------------------


def test_the_label_robust_score_of_dd_ranking():
    """w 0.5, IOR 0.3, HLR 0.3: alpha 0, (1 - 1/e) / (e - 1/e) = 0.63212 / 2.35040 = 26.894 %."""
    assert scores.label_robust_score(0.6, 0.6, 0.3, 0.9) == pytest.approx(26.894, abs=1e-3)
    # As good as all images, and random ones worth nothing: alpha 0.5, (1.64872 - 0.36788) / 2.35040.
    assert scores.label_robust_score(1.0, 1.0, 0.0, 1.0) == pytest.approx(54.494, abs=1e-3)
    # IOR alone, 0.2: (1.22140 - 0.36788) / 2.35040; and HLR alone, 0.4: (0.67032 - 0.36788) / 2.35040.
    assert scores.label_robust_score(0.5, 0.4, 0.3, 0.8, weight=1.0) == pytest.approx(36.314, abs=1e-3)
    assert scores.label_robust_score(0.5, 0.4, 0.3, 0.8, weight=0.0) == pytest.approx(12.868, abs=1e-3)


def test_the_augmentation_robust_score_of_dd_ranking():
    """w 0.5, differences 0.2 and 0.0: beta 0.1, (1.10517 - 0.36788) / 2.35040 = 31.369 %."""
    assert scores.augmentation_robust_score(0.5, 0.3, 0.4, 0.4) == pytest.approx(31.369, abs=1e-3)
    assert scores.augmentation_robust_score(1.0, 0.0, 1.0, 0.0) == pytest.approx(100)
    assert scores.augmentation_robust_score(0.0, 1.0, 0.0, 1.0) == pytest.approx(0, abs=1e-9)


def test_scores_are_of_the_references_that_are_there():
    syn = {"mean": 0.6}
    random, full, plain, both = {"mean": 0.3}, {"mean": 0.9}, {"mean": 0.25}, {"mean": 0.45}
    assert scores.worth(syn, {}, False) == {}
    assert scores.worth(syn, {"random": random}, False) == {"gain": pytest.approx(30)}
    found = scores.worth(syn, {"random": random, "full": full}, False)
    assert found == {
        "gain": pytest.approx(30), "share_of_full": pytest.approx(200 / 3), "lrs": pytest.approx(26.894, abs=1e-3),
    }  # fmt: skip
    every = {"random": random, "random_unaugmented": plain, "unaugmented": both}
    # Differences 0.3 and 0.2: beta 0.25, (1.28403 - 0.36788) / 2.35040.
    assert scores.worth(syn, every, False)["ars"] == pytest.approx(38.978, abs=1e-3)
    # Random images have no soft labels of the same teacher.
    assert scores.worth(syn, every | {"full": full}, True).keys() == {"gain", "share_of_full"}
    assert scores.worth({"mean": None}, every, False) == {}
    assert scores.worth(syn, {"random": {"mean": None}}, False) == {}
    assert verdict.WITHIN == 2
