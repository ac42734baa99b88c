"""The published tables: every cell is there, its commands are ones the scripts take, and what came of them is told."""

import csv
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from common.config.command_line import parse, parse_buffer, parse_plain
from common.config.options import BufferOptions
from common.costs.estimate import RATES
from common.datasets.presence import is_there
from common.robustness.options import RobustnessOptions
from common.runs.finished import write_finished
from common.system.errors import InputError, Stopped
from common.system.files import write_json
from common.system.scripts import Script
from reproduction import jobs, listing, results, sweep, tabulate
from reproduction.cells import experts, folder_of, steps
from reproduction.jobs import CellJob, is_finished, read_record, record_file, write_record
from reproduction.page import STATES
from reproduction.plan import Plan, images_of, parse_images
from reproduction.programs import program
from reproduction.tables import TABLES, Cell, select
from tests.command_line import assert_refused, call
from tests.conftest import ROOT

CELLS = [cell for table in TABLES.values() for cell in table.cells]
SMALL = Cell("dm-lowres", "DM", "MNIST", 1)
# Long enough to be interrupted in the middle.
LONG = replace(SMALL, ipc=2, flags=("--Iteration", "200", "--checkpoint_every", "1", "--eval_it", "0"))


# -- which cells ---------------------------------------------------------------------------------------------------


def test_the_cells_of_the_published_tables_are_there():
    figures = {
        name: [cell.published["accuracy"] for cell in table.cells if cell.published] for name, table in TABLES.items()
    }
    assert {name: (len(TABLES[name].cells), len(each)) for name, each in figures.items()} == {
        "tm-lowres": (16, 16),
        "tm-imagenet128": (12, 12),
        "imagenet-abcde": (15, 15),
        "imagenet128": (10, 10),
        "dm-imagenet256": (6, 6),
        "dm-lowres": (7, 0),
        "dc-lowres": (7, 0),
        "3d-mnist": (1, 0),
        "corruption": (3, 0),
    }
    # Sums of the rows as printed, in the order DC, DM, TM where there are several.
    by_ipc = (
        82.2 + 95.8 + 84.6 + 60.6 + 34.6 + 19.2,
        97.6 + 89.1 + 89.5 + 70.3 + 42.7 + 24.2,
        90.3 + 75.8 + 47.8 + 26.4,
    )
    assert sum(figures["tm-lowres"]) == pytest.approx(sum(by_ipc))
    assert sum(figures["imagenet-abcde"]) == pytest.approx(245.9 + 263.5 + 310.4)
    assert sum(figures["imagenet128"]) == pytest.approx(
        49.1 + 26.1 + 30.0 + 28.7 + 39.7 + 56.2 + 31.0 + 33.4 + 33.3 + 42.7
    )
    assert sum(figures["dm-imagenet256"]) == pytest.approx(54.2 + 31.2 + 32.5 + 49.1 + 34.0 + 43.1)
    assert len({cell.name for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize(
    ("table", "queries", "names"),
    [
        ("tm-lowres", ["cifar10/1"], ["tm-lowres/CIFAR10/1"]),
        ("tm-lowres", ["mnist"], ["tm-lowres/MNIST/1", "tm-lowres/MNIST/10"]),
        (None, ["imagenet-abcde/a/1"], [f"imagenet-abcde/{each}/imagenet-a/1" for each in ("DC", "DM", "TM")]),
        ("imagenet-abcde", ["tm/b", "dc/e"], ["imagenet-abcde/DC/imagenet-e/1", "imagenet-abcde/TM/imagenet-b/1"]),
        ("tm-imagenet128", ["imagefruit/10"], ["tm-imagenet128/imagenet-fruits/10"]),
        (None, ["CIFAR10-C"], ["corruption/CIFAR10/CIFAR10-C/1"]),
    ],
)
def test_queries_name_cells(table, queries, names):
    assert [cell.name for cell in select(table, queries)] == names


def test_unknown_names_are_refused():
    assert_refused(call("reproduce.py", "list", "--table", "tm-lowre"), "tm-lowre", "did you mean tm-lowres")
    assert_refused(
        call("reproduce.py", "run", "--table", "3d-mnist", "--cells", "3d-mnist/50"), "3d-mnist/50", "3D-MNIST/1"
    )
    assert_refused(call("reproduce.py", "run", "--cells", "CIFAR10/1", "nothing"), "'nothing'", "reproduce.py list")
    assert_refused(
        call("reproduce.py", "run", "--table", "dm-lowres", "--images", "CIFAR10=elsewhere"),
        "CIFAR10=elsewhere",
        "folder:PATH",
    )
    assert_refused(call("reproduce.py", "list", "--images", "CIFAR=folder:x"), "CIFAR=folder:x", "NAME one of")
    assert_refused(call("reproduce.py", "run", "--nproc", "0"), "--nproc 0")


def test_words_of_no_effect_are_refused():
    assert_refused(call("reproduce.py", "run"), "every cell", "--table")
    assert_refused(
        call("reproduce.py", "run", "--table", "3d-mnist", "--partition", "gpu"), "--partition", "--launcher"
    )
    words = ["run", "--table", "3d-mnist", "--scale", "smoke"]
    assert_refused(call("reproduce.py", *words, "--data_path", "x"), "stand-in", "--data_path")
    assert_refused(call("reproduce.py", *words, "--images", "3D-MNIST=folder:x"), "stand-in", "--images")


@pytest.mark.parametrize("scale", ["smoke", "short", "full"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_commands_are_ones_that_the_scripts_take(cell, scale, tmp_path):
    plan = Plan(scale=scale, output=str(tmp_path), buffer_path=str(tmp_path / "experts"))
    todo = steps(cell, plan)
    scripts = program(cell.objective, cell.dataset)
    wanted = [scripts.buffer] * bool(scripts.buffer) + [scripts.script]
    assert [step.script for step in todo] == wanted + ["corruption-exp/evaluate.py"] * bool(cell.target)
    distillation = todo[len(wanted) - 1]
    options, sources = parse(scripts.options, cell.objective, distillation.words)
    assert options.ipc == cell.ipc
    assert str(distillation.product).startswith(str(tmp_path / scale))
    if scripts.buffer:
        buffer = parse_buffer(BufferOptions, cell.objective, todo[0].words)
        assert (buffer.model, buffer.dataset, buffer.buffer_path) == (
            options.model,
            options.dataset,
            options.buffer_path,
        )
        # What matching needs is what is trained.
        assert options.max_start_epoch - 1 + options.expert_epochs <= buffer.train_epochs
        assert experts(cell, plan) == (0, buffer.num_experts, False)
    if cell.target:
        asked = parse_plain(RobustnessOptions, todo[-1].words)
        assert (asked.target_dataset, asked.device) == (cell.target, options.device)
        assert Path(asked.synset) == distillation.product.with_name("synset.safetensors")
        assert asked.level == ("all" if cell.target == "CIFAR10.1" else "5")
    reduced = {"Iteration", "num_eval", "epoch_eval_train"} & {key for key, each in sources.items() if each == "flag"}
    assert bool(reduced) == (scale != "full")


def test_a_full_run_is_as_the_recipe_says():
    (cell,) = select("tm-lowres", ["cifar10/1"])
    buffer, distillation = steps(cell, Plan())
    assert buffer.words == ("--dataset", "CIFAR10", "--buffer_path", "buffers", "--wait", "True")
    where = ("--buffer_path", "buffers", "--save_path", "runs/reproduce/full", "--name", "tm-lowres")
    assert distillation.words == ("--dataset", "CIFAR10", "--ipc", "1", *where)


def test_machines_and_images_are_passed_on():
    (cell,) = select("dm-lowres", ["cifar10/1"])
    plan = Plan(device="cpu", precision="bf16", compile=True, no_download=True, images={"CIFAR10": "folder:tree"})
    words = dict(zip(steps(cell, plan)[0].words[::2], steps(cell, plan)[0].words[1::2], strict=True))
    asked = {"--dataset": "folder:tree", "--recipe": "CIFAR10", "--device": "cpu", "--precision": "bf16"}
    assert asked.items() <= words.items()
    assert words["--compile"] == words["--no_download"] == "True"
    assert folder_of(cell, plan) == Path("runs/reproduce/full/DM/folder-tree/ipc1/dm-lowres-CIFAR10")
    assert parse_images(["imagewoof=folder:x", "CIFAR10=hf:a/b"]) == {
        "imagenet-imagewoof": "folder:x",
        "CIFAR10": "hf:a/b",
    }


def test_a_dry_run_prints_and_runs_nothing(tmp_path):
    flags = ["--table", "corruption", "--cells", "CIFAR10-C", "--scale", "smoke", "--output", tmp_path]
    result = call("reproduce.py", "run", *flags, "--dry_run", "--nproc", 2)
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if line]
    assert lines[0] == "# corruption/CIFAR10/CIFAR10-C/1, scale smoke, generated images of 32 px"
    starts = [f"torchrun --standalone --nproc_per_node 2 {script}" for script in ("TM/buffer.py", "TM/distill.py")]
    assert [line.startswith(start) for line, start in zip(lines[1:], starts, strict=False)] == [True, True]
    assert lines[3].startswith("python corruption-exp/evaluate.py")
    assert not list(tmp_path.iterdir())


def test_presence_is_told_by_names(tmp_path):
    assert is_there("digits") is True
    assert is_there("hf:owner/name") is None
    places = {
        "MNIST": "MNIST/raw/train-images-idx3-ubyte.gz",
        "CIFAR10": "cifar-10-batches-py/data_batch_1",
        "Tiny": "tiny-imagenet-200.zip",
        "3D-MNIST": "full_dataset_vectors.h5",
    }
    for name, place in places.items():
        assert is_there(name, tmp_path) is False
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
        assert is_there(name, tmp_path) is True
    assert is_there("imagenet-imagenette", tmp_path) is False
    assert is_there(f"folder:{tmp_path}") is True


# -- what it costs -------------------------------------------------------------------------------------------------


def test_the_list_says_what_a_cell_takes(tmp_path):
    words = ["--table", "dm-lowres", "--cells", "MNIST/1", "CIFAR10/2", "--output", tmp_path, "--data_path", tmp_path]
    result = call("reproduce.py", "list", *words)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert "dm-lowres: Small images, DM" in lines[0]
    assert [line.split()[0] for line in lines[2:4]] == ["MNIST/1", "CIFAR10/2"]
    assert "tuned here" in lines[2]
    assert "64, 1e+06 (published)" in lines[3]
    assert all("missing" in line for line in lines[2:4])
    assert "assumed" in result.out


def test_experts_that_are_there_cost_nothing(tmp_path):
    (cell,) = select("tm-lowres", ["mnist/1"])
    plan = Plan(scale="smoke", output=str(tmp_path))
    options, _ = listing.options_of(cell, plan)
    assert listing.cost_of(cell, plan, options, "cpu").expert_flops > 0
    folder = tmp_path / "smoke" / "buffers" / "digits" / "ConvNetD1W16"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"expert_000{number}.safetensors").touch()
    assert experts(cell, plan) == (2, 2, False)
    assert listing.cost_of(cell, plan, options, "cpu").expert_flops == 0
    assert set(RATES) == {"cpu", "cuda"}


# -- runs ----------------------------------------------------------------------------------------------------------

ONE_OF_EACH = {
    "tm-lowres": "CIFAR10/1",
    "tm-imagenet128": "imagenette/1",
    "imagenet-abcde": "TM/a",
    "imagenet128": "DC/cats",
    "dm-imagenet256": "birds/1",
    "dm-lowres": "MNIST/10",
    "dc-lowres": "CIFAR10/10",
    "3d-mnist": "3D-MNIST/1",
    "corruption": "ImageNet-C",
}


def test_a_cell_of_each_table_runs_from_end_to_end(here, tmp_path):
    queries = [f"{table}/{cell}" for table, cell in ONE_OF_EACH.items()]
    result = call(
        "reproduce.py", "run", "--scale", "smoke", "--device", "cpu", "--output", tmp_path, "--cells", *queries
    )
    assert result.code == 0, result.err + result.out
    result = call("reproduce.py", "report", "--output", tmp_path)
    assert result.code == 0, result.err
    with (tmp_path / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["table"] for row in rows] == list(ONE_OF_EACH)
    markdown = (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    for row in rows:
        assert (row["scale"], row["state"]) == ("smoke", "finished")
        assert 0 <= float(row["mean"]) <= 100
        assert row["difference"] == ""  # stand-ins have nothing to do with what is published
        assert "generated" in row["images"] or "digits" in row["images"]
        assert row["command"].startswith("python ")
        assert row["command"] in markdown.replace("\n", " ") or row["command"] in markdown
        assert row["hardware"]
        assert row["version"]
    for shown, label in ((markdown, "scale smoke"), (result.out, "scale smoke"), (page, "scale: smoke")):
        assert shown.count(label) >= len(rows)
    links = re.findall(r'href="([^"]+report.html)"', page)
    assert len(links) == len(rows) - 1  # robustness has no page of its own
    assert all((tmp_path / link).is_file() for link in links)
    elsewhere = call("reproduce.py", "report", "--output", tmp_path, "--to", tmp_path / "results")
    assert elsewhere.code == 0
    assert "report.html" not in (tmp_path / "results" / "report.html").read_text()  # links would lead nowhere
    # Once more: everything is kept.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = call(
        "reproduce.py", "run", "--scale", "smoke", "--device", "cpu", "--output", tmp_path, "--cells", *queries
    )
    assert again.code == 0
    assert again.out.count("is finished, and kept") == len(queries)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before


def test_one_failing_cell_does_not_stop_the_rest(here, tmp_path):
    words = ["--table", "dm-lowres", "--device", "cpu", "--data_path", tmp_path / "nothing", "--no_download"]
    good, bad = Plan(scale="smoke", output=str(tmp_path)), Plan(output=str(tmp_path), no_download=True)
    bad = replace(bad, data_path=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="1 of 2 cells failed"):
        sweep.run_here([CellJob(SMALL, bad), CellJob(SMALL, replace(good, device="cpu"))])
    failed, finished = results.row_of(SMALL, bad), results.row_of(SMALL, good)
    assert (failed.state, finished.state) == ("failed", "finished")
    assert "MNIST" in failed.note
    assert "--no_download" in failed.note  # what to do about it
    result = call("reproduce.py", "run", "--cells", "MNIST/1", *words, "--output", tmp_path)
    assert_refused(result, "1 of 1 cells failed (dm-lowres/MNIST/1)", "report")
    report = call("reproduce.py", "report", "--output", tmp_path, "--table", "dm-lowres")
    assert "failed" in report.out
    assert "--no_download" in report.out


def test_nothing_to_report(tmp_path):
    assert_refused(call("reproduce.py", "report", "--output", tmp_path), "nothing has been run yet", str(tmp_path))


def change(folder, **entries):
    """Give a finished run another summary, as if it had ended so."""
    identity = json.loads((folder / "config.json").read_text())["identity"]
    write_finished(folder, json.loads((folder / "summary.json").read_text()) | entries, identity)


def test_a_summary_that_the_run_did_not_write_is_no_result(here, tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    CellJob(SMALL, plan)()
    assert is_finished(SMALL, plan)
    file = folder_of(SMALL, plan) / "summary.json"
    summary = json.loads((file).read_text())
    write_json(file, summary | {"last": summary["last"] | {"mean": 0.99}})
    assert not is_finished(SMALL, plan)
    row = results.row_of(SMALL, plan)
    assert (row.state, row.mean) == ("interrupted", None)
    assert "damaged or gone: run it again" in row.note
    CellJob(SMALL, plan)()
    assert results.row_of(SMALL, plan).mean == round(100 * summary["last"]["mean"], 2)


def test_results_of_another_version_are_kept_and_labelled(here, tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    CellJob(SMALL, plan)()
    change(folder_of(SMALL, plan), version="0.0.1-of-old")
    finished = read_record(SMALL, plan)
    # A signal after the results were written, and before the record said so.
    write_record(SMALL, plan, state="interrupted", reason="stopped by SIGTERM", script=1234)
    CellJob(SMALL, plan)()
    assert read_record(SMALL, plan) == finished
    row = results.row_of(SMALL, plan, "now")
    assert (row.state, row.version) == ("finished", "0.0.1-of-old")
    assert "made by another code version" in row.remarks
    assert "another" not in results.row_of(SMALL, plan, "0.0.1-of-old").remarks


def test_networks_that_diverged_stand_beside_the_figures(here, tmp_path, monkeypatch):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    CellJob(SMALL, plan)()
    folder = folder_of(SMALL, plan)
    whole = results.row_of(SMALL, plan)
    assert "diverged" not in tabulate.as_csv_rows([whole])[0]
    figures = {"mean": 0.5, "std": 0.25, "n": 2, "diverged": 1}
    last = json.loads((folder / "summary.json").read_text())["last"] | figures
    change(folder, last=last, best_on_test=last)
    row = results.row_of(SMALL, plan)
    assert (row.ours, row.n, row.diverged) == ("50.00 ± 25.00, 1 diverged", 2, 1)
    assert "1 diverged" in tabulate.as_markdown([row])
    assert tabulate.as_page_rows([row], tmp_path / "page.html")[0]["ours"] == row.ours
    assert [each["diverged"] for each in tabulate.as_csv_rows([row, whole])] == [1, 0]

    monkeypatch.setitem(TABLES, SMALL.table, replace(TABLES[SMALL.table], figure="best_on_test"))
    change(folder, last=last, best_on_test=None)
    row = results.row_of(SMALL, plan)
    assert (row.state, row.ours, row.mean, row.n, row.difference) == ("finished", "", None, None, None)
    assert "no best on test: a network diverged in every evaluation" in row.remarks
    assert "after the last update 1 of 3 networks diverged" in row.remarks
    assert tabulate.as_csv_rows([row])[0]["mean"] == ""


def test_cells_that_test_one_set_on_drifted_images_share_it(here, tmp_path):
    """It is made once, kept when one of them is run anew, and told of when it is newer than what was found with it."""
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    corrupted, new = select("corruption", ["CIFAR10-C", "CIFAR10.1"])
    CellJob(corrupted, plan)()
    synset = tmp_path / "smoke/TM/folder-cifar10/ipc1/tm-lowres-CIFAR10-standin/synset.safetensors"
    made = synset.stat().st_mtime_ns
    CellJob(new, plan)()
    results_file = folder_of(corrupted, plan) / "results.json"
    results_file.unlink()
    CellJob(corrupted, replace(plan, resume="never"))()
    assert results_file.exists()
    assert synset.stat().st_mtime_ns == made
    assert {row.state for row in results.collect([corrupted, new], [plan])} == {"finished"}
    assert "anew" not in results.row_of(corrupted, plan).note
    os.utime(synset)
    assert "made anew since" in results.row_of(corrupted, plan).note


def test_drifted_images_that_are_missing_are_told_before_anything_is_run(here, tmp_path):
    plan = Plan(output=str(tmp_path / "out"), data_path=str(tmp_path), no_download=True)
    (cell,) = select("corruption", ["CIFAR10-C"])
    with pytest.raises(InputError, match="CIFAR10-C is not in"):
        CellJob(cell, plan)()
    assert read_record(cell, plan)["state"] == "failed"
    (tmp_path / "cifar-10-batches-py").mkdir()
    listed = call("reproduce.py", "list", "--table", "corruption", "--cells", "CIFAR10-C", "--data_path", tmp_path)
    assert "CIFAR10-C missing" in listed.out


def test_results_may_be_moved(here, tmp_path):
    CellJob(SMALL, Plan(scale="smoke", output=str(tmp_path / "here"), device="cpu"))()
    (tmp_path / "here").rename(tmp_path / "there")
    row = results.row_of(SMALL, Plan(scale="smoke", output=str(tmp_path / "there")))
    assert (row.state, row.n) == ("finished", 1)


def test_a_cell_that_is_run_anew_starts_its_record_anew(here, tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    CellJob(SMALL, plan)()
    jobs.write_record(SMALL, plan, seconds=5000.0, interruptions=3, begun_by="0.0.1-of-old")
    assert {"interrupted 3 times", "begun by version 0.0.1-of-old"} <= set(results.row_of(SMALL, plan).note.split("; "))
    CellJob(SMALL, replace(plan, resume="never"))()
    row = results.row_of(SMALL, plan)
    assert row.seconds < 5000
    assert row.note == ""


def test_an_unforeseen_error_fails_its_cell_alone(here, monkeypatch, tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")

    def broken(*_):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "Script", broken)
        with pytest.raises(InputError, match="2 of 2 cells failed"):
            sweep.run_here([CellJob(SMALL, plan), CellJob(replace(SMALL, ipc=2), plan)])
    row = results.row_of(SMALL, plan)
    assert (row.state, row.note) == ("failed", "OSError: the disk is gone")


def test_a_killed_cell_is_told_as_interrupted(tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path))
    jobs.write_record(SMALL, plan, state="running")
    assert read_record(SMALL, plan)["state"] == "interrupted"
    with CellJob(SMALL, plan)._held():
        assert read_record(SMALL, plan)["state"] == "running"
        with pytest.raises(InputError, match="another process is at work on dm-lowres/MNIST/1"):
            CellJob(SMALL, plan)()


# -- processes -----------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_a_script_says_why_it_ended(quiet, tmp_path, capfd):
    script = Script("DM/distill.py", ["--dataset", "digit"])
    assert script.wait() == 2
    assert script.reason.startswith("there is no dataset 'digit', did you mean digits")
    assert "there is no dataset" in capfd.readouterr().err
    script.stop()  # it has ended: nothing happens


def test_two_cells_through_submitit_one_failing_one_interrupted(quiet, tmp_path):
    """A signal as a cluster sends it: the run saves, the job is queued again, and goes on where it was."""
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    bad = replace(plan, scale="full", no_download=True, data_path=str(tmp_path / "nothing"))
    executor = sweep._executor("local", sweep.Cluster(), tmp_path / "jobs", 0)
    good_job, bad_job = executor.submit(CellJob(LONG, plan)), executor.submit(CellJob(SMALL, bad))
    checkpoint = folder_of(LONG, plan) / "checkpoint.pt"
    wait_for(checkpoint.exists)
    wait_for(lambda: (folder_of(LONG, plan) / "checkpoint_previous.pt").exists())
    # SLURM's srun hands it to the task; the local executor's controller has one child, which is that.
    task = int(Path(f"/proc/{good_job.job_id}/task/{good_job.job_id}/children").read_text().split()[0])
    os.kill(task, signal.SIGUSR2)
    wait_for(lambda: read_record(LONG, plan)["state"] != "running")
    interrupted = results.row_of(LONG, plan)
    assert (interrupted.state, interrupted.note) == (
        "interrupted",
        "by the cluster, to be continued; interrupted once",
    )
    report = call("reproduce.py", "report", "--output", tmp_path, "--table", "dm-lowres")
    assert report.code == 0
    assert bad_job.exception() is not None
    failed = results.row_of(SMALL, bad)
    assert failed.state == "failed"
    assert "--no_download" in failed.note
    good_job.result()
    for job in (good_job, bad_job):  # else Python warns of processes that nobody has waited for
        job._process.wait()
    finished = results.row_of(LONG, plan)
    assert (finished.state, finished.note) == ("finished", "interrupted once")
    assert "resumed from iteration" in (folder_of(LONG, plan) / "log.txt").read_text()
    assert json.loads((folder_of(LONG, plan) / "summary.json").read_text())["last"]["iteration"] == 200
    text = tabulate.as_markdown([finished, failed, interrupted])
    assert all(f"| {state} |" in text for state in ("finished", "failed", "interrupted"))


def test_local_jobs_are_started_as_others_end(here, monkeypatch, tmp_path, capsys):
    started, running = [], []

    class Submitted:
        def __init__(self, job):
            self.job, self.job_id, self.error = job, str(len(started)), None
            self.paths = SimpleNamespace(stdout="out", stderr="err")
            started.append(job.cell.name)
            running.append(self)
            assert len(running) <= 2

        def done(self):
            running.remove(self)
            try:
                self.job()
            except InputError as error:
                self.error = error
            return True

        def exception(self):
            return self.error

    monkeypatch.setattr(sweep, "_executor", lambda *_: SimpleNamespace(submit=Submitted))
    monkeypatch.setattr(sweep, "_POLL", 0)
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    bad = replace(plan, scale="full", no_download=True, data_path=str(tmp_path / "nothing"))
    cells = [CellJob(SMALL, bad), CellJob(SMALL, plan), CellJob(replace(SMALL, ipc=2), plan)]
    with pytest.raises(InputError, match="1 of 3 cells failed"):
        sweep.run_local(cells, sweep.Cluster(parallel=2), tmp_path / "jobs")
    assert started == ["dm-lowres/MNIST/1", "dm-lowres/MNIST/1", "dm-lowres/MNIST/2"]
    assert capsys.readouterr().out.count(": finished") == 2


@pytest.mark.parametrize("launch", [sweep.run_local, sweep.submit_slurm])
def test_without_submitit_a_launcher_is_refused_in_a_sentence(tmp_path, monkeypatch, launch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"needs the package submitit: pip install 'submitit.* extra clusters"):
        launch([CellJob(SMALL, Plan(scale="smoke", output=str(tmp_path)))], sweep.Cluster(), tmp_path / "jobs")


def test_a_signal_to_the_sweep_saves_what_runs(quiet, tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    driver = (
        "from common.system.command import run_command\n"
        "from reproduction.jobs import CellJob\n"
        "from reproduction.plan import Plan\n"
        "from reproduction.sweep import run_here\n"
        "from reproduction.tables import Cell\n"
        f"job = CellJob({LONG!r}, {plan!r})\n"
        "run_command(lambda: run_here([job, job]))\n"
    )
    with subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        wait_for((folder_of(LONG, plan) / "checkpoint_previous.pt").exists)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "[2/2]" not in out
    assert read_record(LONG, plan)["state"] == "interrupted"
    assert not (folder_of(LONG, plan) / "summary.json").exists()


def test_a_stopped_script_is_an_interruption_not_a_failure(monkeypatch, tmp_path):
    class StoppedScript:
        pid = 1

        def __init__(self, *_):
            pass

        def wait(self):
            return 128 + signal.SIGTERM

    monkeypatch.setattr(jobs, "Script", StoppedScript)
    plan = Plan(scale="smoke", output=str(tmp_path))
    with pytest.raises(Stopped, match="SIGTERM"):
        CellJob(SMALL, plan)()
    assert (read_record(SMALL, plan)["state"], read_record(SMALL, plan)["interruptions"]) == ("interrupted", 1)


def test_a_job_array_is_submitted_to_slurm(monkeypatch, tmp_path):
    """With stand-ins for SLURM's commands: what would be submitted, and that finished cells are not."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": "exit 0", "sbatch": f"cp $1 {tmp_path}/script; echo Submitted batch job 77"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(stat.S_IRWXU)
    plan = Plan(scale="smoke", output=str(tmp_path / "out"))
    cluster = sweep.Cluster(parallel=2, gpus_per_node=1, partition="fast", timeout_min=90, mem_gb=8)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="cannot submit to SLURM"):
        sweep.submit_slurm([CellJob(SMALL, plan)], cluster, tmp_path / "jobs")
    monkeypatch.setenv("PATH", f"{commands}:{os.defpath}")
    (commands / "sbatch").rename(commands / "kept")
    (commands / "sbatch").write_text("#!/bin/sh\necho no such partition >&2; exit 1\n")
    (commands / "sbatch").chmod(stat.S_IRWXU)
    with pytest.raises(InputError, match=r"SLURM has not taken the jobs.*no such partition"):
        sweep.submit_slurm([CellJob(SMALL, plan)], cluster, tmp_path / "jobs")
    assert read_record(SMALL, plan)["state"] == "not started"
    (commands / "kept").replace(commands / "sbatch")
    done = replace(SMALL, ipc=10)
    folder = folder_of(done, plan)
    write_json(folder / "config.json", {"identity": {}})
    for name in ("synset.safetensors", "synset_best.safetensors", "metrics.jsonl"):
        (folder / name).write_text("")
    point = {"iteration": 0, "network": "A", "mean": 0.5, "std": 0.0, "n": 1, "accuracies": [0.5]}
    summary = {"file": "x", "file_bytes": 1, "seconds": 1.0, "version": "x", "budget": {"coefficient_bytes": 1}}
    write_finished(folder, dict.fromkeys(("start", "last", "best_on_test"), point) | summary, {})
    sweep.submit_slurm([CellJob(cell, plan) for cell in (SMALL, LONG, done)], cluster, tmp_path / "jobs")
    script = (tmp_path / "script").read_text()
    for line in (
        "--array=0-1%2",
        "--partition=fast",
        "--gpus-per-node=1",
        "--time=90",
        "--mem=8GB",
        "--signal=USR2@90",
    ):
        assert f"#SBATCH {line}" in script
    assert [read_record(cell, plan)["state"] for cell in (SMALL, LONG, done)] == ["queued", "queued", "not started"]
    assert not record_file(done, plan).exists()
    assert images_of(SMALL, plan).label


def test_the_page_knows_every_state():
    assert set(STATES) == set(get_args(jobs.State))


@pytest.mark.parametrize(
    ("figures", "told", "deviations"),
    [
        # sqrt(1.0^2 + 0.8^2) = 1.2806 %; over sets, sqrt(0.6^2 + 0.8^2) = 1.
        ({"mean": 59.6, "std": 1.0, "n": 5}, "-1.00 (0.8 s.d., within 2)", 1 / 1.64**0.5),
        ({"mean": 57.6, "std": 1.0, "n": 15, "sets": 3, "sets_std": 0.6}, "-3.00 (3.0 s.d., not within 2)", 3.0),
        ({"mean": 60.2, "std": 0.0, "n": 1}, "-0.40 (0.5 s.d., within 2)", 0.5),
    ],
)
def test_a_difference_is_told_in_standard_deviations(tmp_path, monkeypatch, figures, told, deviations):
    (cell,) = select("tm-lowres", ["cifar10/1"])
    parts = {"distillation_seconds": 3600.0, "evaluation_seconds": 1200.0, "seconds": 4800.0}
    nothing = {"bytes": 1, "paper_bytes": 1, "diverged": 0}
    monkeypatch.setattr(results, "_figures", lambda *_: {"sets": None, "sets_std": None} | nothing | parts | figures)
    row = results.row_of(cell, Plan(output=str(tmp_path)))
    assert row.deviations == pytest.approx(deviations)
    assert told in tabulate.as_markdown([row])
    page = tabulate.as_page_rows([row], tmp_path / "page.html")[0]
    assert page["difference"] == told
    assert page["time"] == "1 h 20 min (distillation 1 h, evaluation 20 min)"
    assert tabulate.as_csv_rows([row])[0]["within"] is row.within
    smoke = results.row_of(cell, Plan(output=str(tmp_path), scale="smoke"))
    assert (smoke.difference, smoke.deviations, smoke.within) == (None, None, None)


def test_a_summary_tells_the_seconds_of_its_parts(here, whole_run, tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    CellJob(SMALL, plan)()
    summary = json.loads((folder_of(SMALL, plan) / "summary.json").read_text())
    parts = summary["distillation_seconds"], summary["evaluation_seconds"]
    assert sum(parts) == pytest.approx(summary["seconds"], abs=0.11)
    assert parts[1] > 0
    row = results.row_of(SMALL, plan)
    assert (row.distillation_seconds, row.evaluation_seconds) == parts
    change(folder_of(SMALL, plan), distillation_seconds=None)  # of an older version
    assert results.row_of(SMALL, plan).distillation_seconds is None


def test_a_record_with_a_flipped_bit_is_refused(tmp_path):
    plan = Plan(scale="smoke", output=str(tmp_path), device="cpu")
    write_record(SMALL, plan, state="failed", reason="out of memory", seconds=12.5)
    assert read_record(SMALL, plan)["seconds"] == 12.5
    file = record_file(SMALL, plan)
    text = file.read_text()
    for changed in (text.replace("12.5", "13.5"), text.replace("out of", "out nf")):
        file.write_text(changed)
        with pytest.raises(InputError, match=r"is damaged .* remove it; the results of its runs are kept"):
            read_record(SMALL, plan)
    # Those of versions that wrote no checksum are believed.
    record = json.loads(text)
    del record["checksum"]
    file.write_text(json.dumps(record))
    assert read_record(SMALL, plan) == record
    write_record(SMALL, plan, state="finished")
    assert read_record(SMALL, plan)["state"] == "finished"
