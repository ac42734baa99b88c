"""gpu.py: the same stages on a CPU with tiny settings, one of them stopped and gone on with."""

import importlib.metadata
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.system import scripts
from kit import stages as module
from kit.stages import STATE, SUMMARY, Kit, Record
from tests.command_line import InThisProcess, assert_refused, call

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread", "cache")


def script(path, words):
    """In this process, but for pytest, which would run inside itself."""
    return scripts.Script(path, words) if Path(path).is_absolute() else InThisProcess(path, words)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What a call leaves that has time for all stages."""
    path = tmp_path_factory.mktemp("kit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRED_CACHE", str(path / "cache"))
        patch.setattr(module, "Script", script)
        patch.syspath_prepend(scripts.ROOT / "benchmarks")
        patch.setattr("reproduction.jobs.Script", InThisProcess)
        result = call("gpu.py", "--device", "cpu", "--scale", "smoke", "--output", path / "gpu")
    assert result.code == 0, result.err
    return path / "gpu", result.out


def test_every_stage_is_finished_and_said_to_be(done):
    folder, shown = done
    state = json.loads((folder / STATE).read_text())
    names = ["tests", "steps", "trajectory", "dm", "coded", "tm-lowres/MNIST/1", "dm-lowres/MNIST/1"]
    assert list(state["stages"]) == names
    assert {record["state"] for record in state["stages"].values()} == {"finished"}
    assert {record["hardware"]["device"] for record in state["stages"].values()} == {"cpu"}
    assert all(record["version"] for record in state["stages"].values())
    assert "everything is done" in shown
    summary = (folder / SUMMARY).read_text()
    for name in names:
        assert f"| {name} | finished |" in summary
    assert " skipped |" in summary  # the tests of GPUs, here
    last = json.loads((folder / "runs/DM/digits/ipc1/coded/summary.json").read_text())["last"]["mean"]
    assert f"{100 * last:.2f} +- " in summary
    assert "median_s" in (folder / "steps.json").read_text()
    assert "## Small images, TM" in summary


def test_a_second_call_starts_nothing(done, monkeypatch):
    folder, _ = done
    monkeypatch.setattr(module, "Script", lambda *_: pytest.fail("it is finished"))
    result = call("gpu.py", "--device", "cpu", "--scale", "smoke", "--output", folder)
    assert result.code == 0
    assert "everything is done" in result.out


def test_a_folder_of_another_scale_is_refused(done):
    with pytest.raises(Exception, match="holds a kit of scale smoke: give another --output"):
        Kit(done[0], CPU, "full")


def only(kit, name, *more):
    """The kit with this stage alone, with further words."""
    (stage,) = (stage for stage in kit.stages if stage.name == name)
    kit.stages = [replace(stage, words=(*stage.words, *more))]
    return kit


def test_a_stage_beyond_its_time_is_stopped_and_goes_on(tmp_path, monkeypatch):
    """By a signal to a process of its own, which saves."""
    monkeypatch.setattr(module, "_LEAST", 0)
    monkeypatch.setattr(module, "_GRACE", 0)
    saved = tmp_path / "runs/DM/digits/ipc2/dm/checkpoint_previous.pt"

    class Waiting(scripts.Script):
        """Whose time is over once it has saved twice, however busy the machine."""

        def ask_to_stop(self):
            while not saved.exists():
                time.sleep(0.01)
            super().ask_to_stop()

    monkeypatch.setattr(module, "Script", Waiting)
    long = ("--Iteration", "40", "--checkpoint_every", "2")
    kit = only(Kit(tmp_path, CPU, "smoke"), "dm", *long)
    kit.work(0.01)
    assert kit.records["dm"].state == "stopped"
    assert [stage.name for stage in kit.left] == ["dm"]
    folder = saved.parent
    monkeypatch.setattr(module, "Script", InThisProcess)
    again = only(Kit(tmp_path, CPU, "smoke"), "dm", *long)
    assert again.records["dm"].calls == 1
    again.work(10)
    assert again.records["dm"].state == "finished"
    assert again.records["dm"].calls == 2
    assert again.records["dm"].seconds > kit.records["dm"].seconds
    assert "resumed from iteration" in (folder / "log.txt").read_text()
    assert json.loads((folder / "summary.json").read_text())["last"]["iteration"] == 40


def test_a_stage_that_fails_is_told_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Script", InThisProcess)
    monkeypatch.syspath_prepend(scripts.ROOT / "benchmarks")
    kit = Kit(tmp_path, CPU, "smoke")
    steps, dm = (stage for stage in kit.stages if stage.name in ("steps", "dm"))
    kit.stages = [replace(dm, words=(*dm.words, "--ipc", "0")), steps]
    kit.work(10)
    assert kit.records["dm"].state == "failed"
    assert kit.records["dm"].said.startswith("--ipc 0 is too small")
    assert kit.records["steps"].state == "finished"
    assert "| dm | failed |" in (tmp_path / SUMMARY).read_text()


def test_what_cannot_go_on_needs_more_time(tmp_path, monkeypatch):
    class Late:
        def __init__(self, *_):
            self._ended = module.threading.Event()

        def wait(self):
            self._ended.wait(60)
            return 143

        def ask_to_stop(self):
            self._ended.set()

    monkeypatch.setattr(module, "_LEAST", 0)
    monkeypatch.setattr(module, "_GRACE", 0)
    monkeypatch.setattr(module, "Script", Late)
    kit = only(Kit(tmp_path, CPU, "smoke"), "steps")
    kit.work(0.001)
    assert kit.records["steps"].state == "failed"
    assert "give more --minutes" in kit.records["steps"].said


def test_the_quickest_of_the_published_cells_come_first(tmp_path, monkeypatch):
    """After TM on CIFAR-10; those whose images are missing come last."""
    worth = {"imagenet128/DC/imagenet-cats/1": (False, False, 1.0), "tm-lowres/SVHN/1": (False, False, 2.0)}
    monkeypatch.setattr(Kit, "_worth", lambda self, cell: worth.get(cell.name, (True, False, 0.0)))
    names = [stage.name for stage in Kit(tmp_path, CPU).stages]
    first = names.index("tm-lowres/CIFAR10/1")
    assert names[:first] == ["tests", "steps", "trajectory", "dm", "coded"]
    assert names[first + 1 : first + 3] == list(worth)
    assert len(names) == first + 77


def test_without_an_accelerator_the_full_scale_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("reproduction.listing.cost_of", lambda *_: SimpleNamespace(flops=0))  # which takes seconds
    assert_refused(call("gpu.py", "--device", "cpu", "--output", tmp_path / "gpu"), "--scale smoke")
    listed = call("gpu.py", "--device", "cpu", "--dry_run", "--output", tmp_path / "gpu")  # that is for any machine
    assert (listed.code, listed.err) == (0, "")
    assert re.search(r"^tm-lowres/CIFAR10/1 +to do$", listed.out, re.MULTILINE)
    assert not (tmp_path / "gpu").exists()


def test_missing_packages_are_named_in_one_sentence(monkeypatch):
    there = list(importlib.metadata.distributions())
    lacking = [each for each in there if each.name.lower() not in ("kornia", "scikit-learn")]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: lacking)
    result = call("gpu.py", "--help")
    assert_refused(result, "lacks scikit-learn, kornia: run make install", "docs/many-machines.md")


def test_a_damaged_state_is_told(tmp_path):
    (tmp_path / STATE).write_text('{"scale": "smoke", "cells": [], "stages": {"dm": 3}}')
    result = call("gpu.py", "--device", "cpu", "--scale", "smoke", "--output", tmp_path)
    assert_refused(result, STATE, "remove it")


def test_a_stage_that_was_not_begun_is_to_do(tmp_path):
    kit = Kit(tmp_path, CPU, "smoke")
    assert kit.records["dm"] == Record()
    assert {row[1] for row in kit.table()} == {"to do"}
