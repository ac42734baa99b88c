"""A run that is killed, stopped or damaged ends as one that was left alone."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import common.runs.folder
import common.training.pool
from common.config.options import DistillOptions
from common.matching import distribution
from common.runs.folder import Run
from common.system.errors import InputError
from common.system.files import UNREADABLE, write_atomically, write_json
from tests.command_line import TINY, call, checkpoint, run_folder
from tests.conftest import ROOT
from tests.outcomes import metrics_of, summary_of

UPDATES, NETWORKS = 12, 2
SETTING = [
    *TINY, "--Iteration", UPDATES, "--eval_it", 4, "--num_eval", NETWORKS, "--epoch_eval_train", 3,
    "--checkpoint_every", 3, "--name", "run",
]  # fmt: skip
# Runs DM/distill.py in a process of its own and sends itself a signal when `function` of `module` is entered for the
# `count`-th time. Pictures and report are left out, for speed.
DRIVER = """
import importlib, os, runpy, sys
import pytest
from tests.left_out import leave_out
module, function, count, number, *sys.argv = sys.argv[1:]
module = importlib.import_module(module)
original, calls = getattr(module, function), []

def counted(*positional, **named):
    calls.append(None)
    if len(calls) == int(count):
        os.kill(os.getpid(), int(number))
    return original(*positional, **named)

setattr(module, function, counted)
patch = pytest.MonkeyPatch()
leave_out(patch)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """What the run ends with when nothing happens to it."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("reference")
    result = call("DM/distill.py", *SETTING, "--save_path", path)
    assert result.code == 0, result.err
    return outcome(run_folder(path))


def outcome(folder):
    """Everything that a run leaves but the time it took."""
    content = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    tensors = {
        f"{file} {key}": value.numpy().tobytes()
        for file in ("synset", "synset_best")
        for key, value in load_file(folder / f"{file}.safetensors").items()
    }
    momentum = content["synset"]["optimizer"]["state"][0]["momentum_buffer"]
    return {
        "tensors": tensors,
        "momentum": momentum.numpy().tobytes(),
        "coefficients": content["synset"]["coefficients"].numpy().tobytes(),
        "iteration": content["iteration"],
        "metrics": metrics_of(folder),
        "summary": summary_of(folder),
    }


def killed(tmp_path, module, function, count):
    """The run in a process of its own, which sends itself SIGKILL when it enters the function."""
    number = int(signal.SIGKILL)
    words = [DRIVER, module, function, count, number, ROOT / "DM/distill.py", *SETTING, "--save_path", tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == -number, result.stderr


def signalled(save_path, module, function, count, number):
    """The run in this process, which gets the signal when `function` is entered for the `count`-th time."""
    original, calls = getattr(module, function), []

    def counted(*positional, **named):
        calls.append(None)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return original(*positional, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, function, counted)
        return call("DM/distill.py", *SETTING, "--save_path", save_path)


def resume(tmp_path):
    result = call("DM/distill.py", *SETTING, "--save_path", tmp_path)
    assert result.code == 0, result.err
    assert list(run_folder(tmp_path).glob(".*.tmp")) == []
    return result


def test_the_reference_has_all_its_parts(never_stopped):
    losses = [line["iteration"] for line in never_stopped["metrics"] if "loss" in line]
    points = [line["evaluation"]["iteration"] for line in never_stopped["metrics"] if "evaluation" in line]
    assert losses == list(range(UPDATES))
    assert points == [0, 4, 8, 12]
    assert never_stopped["iteration"] == UPDATES
    assert {"synset coefficients", "synset positions"} <= set(never_stopped["tensors"])


# -- stopped for real --------------------------------------------------------------------------------------------


def test_sigkill_between_updates(tmp_path, never_stopped):
    """Killed in update 8 (index 7); the last checkpoint is that of iteration 6."""
    killed(tmp_path, "common.matching.distribution", "match", 8)
    folder = run_folder(tmp_path)
    assert checkpoint(folder)["iteration"] == 6
    assert not (folder / "summary.json").exists()
    # Resumed in another fresh process, which the reference was not either.
    command = [sys.executable, ROOT / "DM/distill.py", *SETTING, "--save_path", tmp_path]
    again = subprocess.run(
        list(map(str, command)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "resumed from iteration 6" in again.stdout
    assert outcome(folder) == never_stopped


def test_sigkill_within_an_evaluation_keeps_the_finished_network(tmp_path, never_stopped):
    """Killed as the second network of the evaluation after 4 updates begins: the first one's accuracy is kept."""
    killed(tmp_path, "common.training.pool", "train", NETWORKS + 2)
    state = checkpoint(run_folder(tmp_path))
    assert state["iteration"] == 4
    first = never_stopped["metrics"][5]["evaluation"]["accuracies"][:1]
    assert state["unfinished"] == {"ConvNetD1W32": first}
    trained = []
    original = common.training.pool.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common.training.pool, "train", lambda *a, **k: (trained.append(1), original(*a, **k))[1])
        assert "resumed from iteration 4" in resume(tmp_path).out
    assert len(trained) == 1 + 2 * NETWORKS  # not the first network of this evaluation, then those after 8 and 12
    assert outcome(run_folder(tmp_path)) == never_stopped


@pytest.mark.parametrize(
    ("number", "module", "function", "count", "iteration", "unfinished"),
    [
        (signal.SIGTERM, distribution, "match", 6, 6, 0),  # in update 6: it is finished and kept
        (signal.SIGINT, distribution, "match", 2, 2, 0),
        (signal.SIGTERM, common.training.pool, "train", NETWORKS + 2, 4, 1),
    ],
)
def test_signals_lose_nothing(tmp_path, never_stopped, number, module, function, count, iteration, unfinished):
    stopped = signalled(tmp_path, module, function, count, number)
    assert stopped.code == 128 + number
    assert f"stopped by {number.name}" in stopped.err
    assert not (run_folder(tmp_path) / "summary.json").exists()
    state = checkpoint(run_folder(tmp_path))
    assert (state["iteration"], sum(map(len, state["unfinished"].values()))) == (iteration, unfinished)
    losses = [line for line in (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert len(losses) == iteration
    assert f"resumed from iteration {iteration}" in resume(tmp_path).out
    assert outcome(run_folder(tmp_path)) == never_stopped


def test_sigterm_from_outside_and_a_second_process(tmp_path):
    """A long run under way: a second process is refused, SIGTERM ends the first one with everything saved."""
    words = [*TINY, "--Iteration", 1_000_000, "--eval_it", 0, "--num_eval", 1, "--epoch_eval_train", 0]
    words = [str(word) for word in [*words, "--checkpoint_every", 5, "--name", "run", "--save_path", tmp_path]]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "DM/distill.py"), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as first:  # fmt: skip
        try:
            folder = run_folder(tmp_path)
            deadline = time.monotonic() + 60
            while not (folder / "metrics.jsonl").exists() or "loss" not in (folder / "metrics.jsonl").read_text():
                assert time.monotonic() < deadline
                assert first.poll() is None
                time.sleep(0.05)
            second = call("DM/distill.py", *words, "--Iteration", 1)
            assert second.code == 2
            assert "another process is at work" in second.err
            first.send_signal(signal.SIGTERM)
            out, err = first.communicate(timeout=30)
        finally:
            first.kill()
    assert first.returncode == 143, err
    assert "saving, then stopping" in out
    losses = [json.loads(line)["iteration"] for line in (folder / "metrics.jsonl").read_text().splitlines()[1:]]
    assert losses == list(range(checkpoint(folder)["iteration"]))


# -- killed anywhere ---------------------------------------------------------------------------------------------


def test_killed_at_any_write(tmp_path, monkeypatch):
    """What lies on disk at each flush is what SIGKILL could leave there; every one of them ends as the whole run."""
    words = [
        *TINY, "--Iteration", 2, "--eval_it", 0, "--num_eval", 2, "--epoch_eval_train", 0, "--checkpoint_every", 1,
        "--name", "run",
    ]  # fmt: skip
    folder = run_folder(tmp_path / "whole")
    original, left = os.fsync, []

    def snapshot(file):
        original(file)
        left.append(tmp_path / str(len(left)))
        shutil.copytree(tmp_path / "whole", left[-1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", snapshot)
        assert call("DM/distill.py", *words, "--save_path", tmp_path / "whole").code == 0
    whole = outcome(folder)
    assert len(left) > 30
    for path in left:
        result = call("DM/distill.py", *words, "--save_path", path)
        assert result.code == 0, (path, result.err)
        assert "damaged" not in result.out
        assert outcome(run_folder(path)) == whole, path


# -- damaged checkpoints -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run folder with two checkpoints, stopped by SIGTERM after 7 updates; copied, never changed."""
    path = tmp_path_factory.mktemp("stopped")
    torch.set_num_threads(1)
    assert signalled(path, distribution, "match", 7, signal.SIGTERM).code == 143
    return path


@pytest.fixture
def folder(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    folder = run_folder(tmp_path)
    assert checkpoint(folder)["iteration"] == 7
    assert checkpoint(folder, "checkpoint_previous.pt")["iteration"] == 6
    return folder


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def flip_a_byte(path):
    """In the middle of the stored coefficients, where no format would notice."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def flag_as_folder(path):
    """One bit of the zip directory, on which torch.load would return whatever the memory held."""
    content = bytearray(path.read_bytes())
    name = content.rindex(b"/data/0")
    start = content.rindex(b"PK\x01\x02", 0, name)
    content[start + 38] |= 0x10  # external attributes
    path.write_bytes(content)


DAMAGE = {
    "flipped byte": flip_a_byte,
    "folder flag": flag_as_folder,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "code": lambda path: torch.save(Evil(path.parent / "ran"), path),
    "old pickle": lambda path: path.write_bytes(pickle.dumps(Evil(path.parent / "ran"))),
    "other content": lambda path: torch.save(torch.zeros(3), path),
    "a number": lambda path: torch.save(3, path),
    "other keys": lambda path: torch.save({"state": {}}, path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, never_stopped, damage):
    damage(folder / "checkpoint.pt")
    result = resume(folder.parents[3])
    assert "checkpoint.pt is damaged" in result.out
    assert "trying the one before it" in result.out
    assert "resumed from iteration 6" in result.out
    assert not (folder / "ran").exists()
    assert outcome(folder) == never_stopped


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_two_damaged_checkpoints_stop_the_run(folder, damage):
    damage(folder / "checkpoint.pt")
    flip_a_byte(folder / "checkpoint_previous.pt")
    for _ in range(2):  # nor does it start over when it is tried again
        result = call("DM/distill.py", *SETTING, "--save_path", folder.parents[3])
        assert result.code == 2
        assert "no readable checkpoint" in result.err
        assert "Traceback" not in result.err
        assert not (folder / "ran").exists()


def test_the_good_checkpoint_outlives_a_crash_at_the_next_save(folder, never_stopped):
    """With the newest one damaged, the next save must not put it in the place of the good one before a new one is."""
    flip_a_byte(folder / "checkpoint.pt")
    original = os.fsync
    with pytest.MonkeyPatch.context() as patch:

        def crash(file):
            original(file)
            if (folder / "checkpoint_previous.pt").stat().st_mtime_ns != before:
                raise KeyboardInterrupt

        before = (folder / "checkpoint_previous.pt").stat().st_mtime_ns
        patch.setattr(os, "fsync", crash)
        call("DM/distill.py", *SETTING, "--save_path", folder.parents[3])
    resume(folder.parents[3])
    assert outcome(folder) == never_stopped


def test_lost_metrics_are_noticed(folder):
    (folder / "metrics.jsonl").write_text("")
    result = call("DM/distill.py", *SETTING, "--save_path", folder.parents[3])
    assert result.code == 2
    assert "metrics.jsonl is shorter" in result.out


def test_any_flipped_byte_is_noticed_or_harmless(folder):
    """Wherever a byte of the file is wrong, reading gives the state that was written, or one of the known errors."""
    path, metrics = folder / "checkpoint.pt", folder / "metrics.jsonl"
    whole = path.read_bytes()
    good = common.runs.folder._read_checkpoint(path, metrics)["state"]
    refused = 0
    for position in [*range(0, len(whole), 7), *range(whole.index(b"PK\x01\x02"), len(whole))]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            state = common.runs.folder._read_checkpoint(path, metrics)["state"]
        except UNREADABLE:
            refused += 1
        else:
            assert torch.equal(state["synset"]["coefficients"], good["synset"]["coefficients"])
            assert torch.equal(state["synset"]["positions"], good["synset"]["positions"])
            assert {k: v for k, v in state.items() if k != "synset"} == {k: v for k, v in good.items() if k != "synset"}
    assert refused > 500


# -- divergence --------------------------------------------------------------------------------------------------


def worse(loss, gradient, kind):
    return {
        "loss": lambda: (loss * torch.nan, gradient),
        "gradient": lambda: (loss, gradient * torch.inf),  # the next loss would be the first to show it
        "step": lambda: (loss, gradient),
    }[kind]()


@pytest.mark.parametrize(("kind", "lr_freq"), [("loss", 1), ("gradient", 1), ("step", 1e30)])
def test_divergence_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, kind, lr_freq):
    original, calls = distribution.match, []

    def diverging(*positional):
        calls.append(None)
        loss, gradient = original(*positional)
        return worse(loss, gradient, kind) if len(calls) >= 3 else (loss, gradient)

    monkeypatch.setattr(distribution, "match", diverging)
    words = [*TINY, "--Iteration", 9, "--num_eval", 1, "--epoch_eval_train", 0, "--checkpoint_every", 1]
    for _ in range(2):
        result = call("DM/distill.py", *words, "--lr_freq", lr_freq, "--name", "run", "--save_path", tmp_path)
        assert result.code == 2
        assert "lower --lr_freq" in result.err
        assert "last good checkpoint is kept" in result.err
        state = checkpoint(run_folder(tmp_path))
        assert state["synset"]["coefficients"].isfinite().all()
        assert kind == "step" or state["iteration"] == 2
        assert "NaN" not in (run_folder(tmp_path) / "metrics.jsonl").read_text()
        assert not (run_folder(tmp_path) / "summary.json").exists()


# -- files -------------------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(error):
        def write(temporary):
            temporary.write_text("half of the ne")
            raise error

        return write

    with pytest.raises(InputError, match=r"cannot write .*file: No space left on device"):
        write_atomically(path, fail(OSError(28, "No space left on device")))
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, fail(ZeroDivisionError()))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan(tmp_path, value):
    write_json(tmp_path / "a.json", {"mean": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"mean": value})
    assert json.loads((tmp_path / "a.json").read_text()) == {"mean": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_no_runs_configuration(tmp_path):
    options = DistillOptions(save_path=str(tmp_path), name="run")
    sources = dict.fromkeys(vars(options), "default")
    for content in ("", "{", "[]", "3", "{}", '{"identity": 1}'):
        folder = run_folder(tmp_path)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"config.json .*: restore the file, give another --name"):
            Run(options, sources, "DM", torch.device("cpu"), {})
        assert (folder / "config.json").read_text() == content
