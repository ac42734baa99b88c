"""`ablate.py`: every transform with every rule at one budget, and what it writes."""

import csv
import json

import pytest
from PIL import Image

import ablate
from common import frequency
from common.synset.file import load_synset
from common.training.stored_real import describe_storage
from tests.command_line import InThisProcess, assert_refused, call

QUICK = ["--Iteration", 1, "--num_eval", 1, "--epoch_eval_train", 0, "--batch_real", 8, "--model", "ConvNetD1W32"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("ablation")
    with pytest.MonkeyPatch.context() as patch:
        # In this process: each start of a script would import torch anew.
        patch.setattr("common.system.scripts.Script", InThisProcess)
        result = call(
            "ablate.py", "--transforms", "dft", "dwt", "--selections", "energy", "low", "--output", path, *QUICK,
            "--stored_as", "png", "webp", "--no_count_headers",
        )  # fmt: skip
    assert result.code == 0, result.err
    with (path / "DM_digits_ipc1.csv").open() as file:
        return path, list(csv.DictReader(file)), result.out


def test_each_variant_is_a_row_at_the_same_budget_and_step(table):
    path, rows, _ = table
    rows = rows[:5]
    names = [(row["transform"], row["selection"]) for row in rows]
    assert names == [("dft", "energy"), ("dft", "low"), ("dwt", "energy"), ("dwt", "low"), ("identity", "all")]
    for row in rows:
        assert int(row["k"]) * int(row["n"]) == 64
        assert 0 <= float(row["mean"]) <= 1
        assert row["version"]
        assert "DM/distill.py" in row["command"]
        synset, metadata = load_synset(
            path / f"DM/digits/ipc1/{row['transform']}-{row['selection']}/synset.safetensors"
        )
        assert metadata["transform"] == row["transform"]
        assert synset.coefficients.numel() == 10 * 64
    steps = {row["transform"]: float(row["lr_freq"]) for row in rows[:4]}
    orthonormal = 256 / frequency.orthonormal_scale((8, 8)).median().item() ** 2
    assert steps["dwt"] == pytest.approx(orthonormal)
    assert steps["dft"] == pytest.approx(orthonormal * 64 / 2)


def test_real_images_in_files_are_rows_at_as_many_bytes(table):
    path, rows, shown = table
    assert [row["stored_as"] for row in rows] == ["-"] * 5 + ["png", "webp"]
    for row in rows[5:]:
        assert float(row["budget_bytes"]) == 64 * 4
        assert 0 < float(row["bytes_without_headers"]) <= 64 * 4
        assert row["count_headers"] == "False"
        assert (row["transform"], row["selection"], row["k"], row["networks"], row["epochs"]) == (
            "files", "random", "-", "1", "0",
        )  # fmt: skip
        assert "DM/evaluate.py" in row["command"]
        told = json.loads((path / f"DM_digits_ipc1_{row['stored_as']}.json").read_text())
        assert told["network"] == "ConvNetD1W32"
        assert float(row["mean"]) == pytest.approx(told["mean"], abs=1e-4)
        assert describe_storage(told["storage"]) in shown


def test_the_table_and_the_picture_are_shown(table):
    path, rows, shown = table
    for row in rows:
        assert f"{100 * float(row['mean']):.2f}" in shown
    assert str(path / "DM_digits_ipc1_masks.png") in shown
    assert shown.splitlines()[-1] == f"next: python -m common.report gallery {path}"
    with Image.open(path / "DM_digits_ipc1_masks.png") as image:
        assert len(image.convert("L").getcolors()) > 10


def test_a_cell_without_a_recipe_is_refused(tmp_path):
    result = call("ablate.py", "--ipc", 7, "--output", tmp_path / "out")
    assert_refused(result, "no recipe for DM on digits at ipc 7", "--msz_per_channel and --lr_freq")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--transform", "dct"], "--transform is decided by the table"),
        (["--selection=low"], "--selection is decided by the table"),
        (["--name", "mine"], "--name is decided by the table"),
        (["--selections"], "there is nothing to compare"),
        (["--no_count_headers"], "give --stored_as, too"),
    ],
    ids=str,
)
def test_flags_that_would_change_a_variant_are_refused(tmp_path, flags, part):
    assert_refused(call("ablate.py", *flags, "--output", tmp_path / "out"), part)
    assert not (tmp_path / "out").exists()


def test_a_failing_run_ends_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("common.system.scripts.Script", InThisProcess)
    result = call("ablate.py", "--output", tmp_path, *QUICK, "--model", "ConvNte")
    assert_refused(result, "DM/distill.py ended with exit code 2")


def test_networks_that_diverged_have_columns_of_their_own():
    well = {"mean": 0.5, "std": 0.25, "start_mean": 0.125, "start_diverged": 0, "diverged": 0}
    ill = {"mean": None, "std": None, "start_mean": 0.125, "start_diverged": 1, "diverged": 2}
    assert ablate.without_empty_counts([well]) == [{"mean": 0.5, "std": 0.25, "start_mean": 0.125}]
    assert ablate.without_empty_counts([well, ill]) == [well, ill]
    assert ablate._cell(well) == "50.00 +- 25.00 (12.50)"
    assert ablate._cell(ill) == "-, 2 diverged (12.50, 1 diverged)"
