"""Herding and k centres: what defines them, and the baselines that train on what they choose."""

import csv
import itertools
import json

import pytest
import torch

from common.system.errors import InputError
from common.system.seeds import generator
from common.training.coresets import herding, k_center
from tests.command_line import assert_refused, call

pytestmark = pytest.mark.usefixtures("one_thread")

FEATURES = torch.randn(40, 5, generator=generator(0, "features"), dtype=torch.float64)
CLASSES = [torch.arange(0, 26, 2), torch.arange(1, 26, 2), torch.arange(26, 40)]  # of 13, 13 and 14 images


def plain(rows, ipc, score):
    """The greedy choice of one class, an image at a time. score: (rows, chosen, candidate) -> what is least."""
    chosen = []
    for _ in range(ipc):
        rest = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(min(rest, key=lambda i: score(rows, chosen, i)))
    return chosen


def off_mean(rows, chosen, i):
    return (rows[[*chosen, i]].mean(dim=0) - rows.mean(dim=0)).norm().item()


def near_the_centre_then_far(rows, chosen, i):
    if not chosen:
        return (rows[i] - rows.mean(dim=0)).norm().item()
    return -(rows[chosen] - rows[i]).norm(dim=1).min().item()


@pytest.mark.parametrize(("rule", "score"), [(herding, off_mean), (k_center, near_the_centre_then_far)])
@pytest.mark.parametrize("ipc", [1, 2, 13])
def test_the_choice_is_that_of_the_plain_algorithm(rule, score, ipc):
    chosen = rule(FEATURES, CLASSES, ipc)
    assert chosen.shape == (3, ipc)
    for row, indices in zip(chosen, CLASSES, strict=True):
        expected = plain(FEATURES[indices], ipc, score)
        assert row.tolist() == indices[expected].tolist()


@pytest.mark.parametrize("rule", [herding, k_center])
def test_a_class_with_too_few_images_is_refused(rule):
    with pytest.raises(InputError, match="a class has 13 images, but 14 of each"):
        rule(FEATURES, CLASSES, 14)


def test_herding_is_nearer_to_the_mean_than_chance():
    rows = FEATURES[CLASSES[0]]
    best = (FEATURES[herding(FEATURES, CLASSES, 3)[0]].mean(dim=0) - rows.mean(dim=0)).norm()
    every = [(rows[list(some)].mean(dim=0) - rows.mean(dim=0)).norm() for some in itertools.combinations(range(13), 3)]
    assert best < torch.stack(every).median()


BASELINE = ["--model", "ConvNetD1W16", "--ipc", 2, "--num_eval", 2, "--epoch_eval_train", 3, "--device", "cpu"]


@pytest.mark.parametrize("baseline", ["herding", "kcenter"])
def test_baselines_train_on_what_is_chosen(tmp_path, baseline):
    output = tmp_path / "result.json"
    flags = [*BASELINE, "--baseline", baseline, "--coreset_epochs", 8, "--output", output]
    assert call("DM/evaluate.py", *flags).code == 0
    first = json.loads(output.read_text())
    assert first["n"] == 2
    assert call("DM/evaluate.py", *flags).code == 0
    assert json.loads(output.read_text())["accuracies"] == first["accuracies"]
    assert call("DM/evaluate.py", *flags, "--coreset_epochs", 0).code == 0  # by random features: another choice
    assert json.loads(output.read_text())["accuracies"] != first["accuracies"]


def test_networks_by_name_and_a_row_for_each(tmp_path):
    output = tmp_path / "result.json"
    flags = ["--baseline", "random", "--num_eval", 2, "--epoch_eval_train", 1, "--device", "cpu", "--output", output]
    result = call("DM/evaluate.py", *flags, "--models", "ConvNetD1W16, MLP", "--seed", 5)
    assert result.code == 0, result.err
    networks = json.loads(output.read_text())["networks"]
    assert list(networks) == ["ConvNetD1W16", "MLP"]
    with (tmp_path / "result.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["network"], row["number"], row["seed"]) for row in rows] == [
        ("ConvNetD1W16", "0", "5"), ("ConvNetD1W16", "1", "5"), ("MLP", "0", "5"), ("MLP", "1", "5"),
    ]  # fmt: skip
    assert [float(row["accuracy"]) / 100 for row in rows] == pytest.approx(
        [each for name in networks for each in networks[name]["accuracies"]]
    )
    assert all(float(row["seconds"]) > 0 for row in rows)
    together = call("DM/evaluate.py", *flags, "--models", "ConvNetD1W16", "--seed", 5, "--networks_at_once", 2)
    assert together.code == 0, together.err
    again = json.loads(output.read_text())
    assert again["accuracies"] == pytest.approx(networks["ConvNetD1W16"]["accuracies"], abs=0.01)
    assert len(set(again["seconds"]["ConvNetD1W16"])) == 1  # half of the time of both
    assert_refused(call("DM/evaluate.py", *flags, "--models", "MLP", "--eval_mode", "C"), "leave out --eval_mode")
    assert_refused(call("DM/evaluate.py", *flags, "--models", "MLP,ConvNet5"), "There is no network 'ConvNet5'")
