"""The loop that scripts write their updates into: what it keeps, and how it is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from common.config.command_line import parse
from common.disk.locks import take_lock
from common.matching.step_size import StepSize
from common.runs.loop import Distillation
from common.system.errors import InputError, ProcessLost
from DM.distill import Options
from tests.command_line import call
from tests.conftest import ROOT
from tests.outcomes import metrics_of

KILLS = 5
SETTING = [
    "--dataset", "digits", "--model", "ConvNetD1W16", "--device", "cpu", "--eval_it", 3, "--num_eval", 1,
    "--epoch_eval_train", 0, "--checkpoint_every", 2,
]  # fmt: skip
# Updates beyond the last kill; of DC two in an iteration.
SCRIPTS = {
    "DM": ["--Iteration", 7, "--batch_real", 8],
    "DC": ["--Iteration", 4, "--batch_real", 8, "--method", "DSA", "--outer_loop", 2, "--inner_loop", 1],
    "TM": ["--Iteration", 7, "--syn_steps", 2, "--max_start_epoch", 2, "--expert_epochs", 1, "--lr_teacher", 0.05],
}
EVALUATED = ["--device", "cpu", "--num_eval", 1, "--epoch_eval_train", 0]
EXPERTS = ["--dataset", "digits", "--model", "ConvNetD1W16", "--device", "cpu", "--num_experts", 3, "--train_epochs", 2]

# For each number n up to KILLS a run named n: SIGKILL right after its n-th update, then the same command again. Each in
# a fork of this process, which has paid for the imports by the run that is never killed, 0.
DRIVER = """
import os, runpy, signal, sys
from types import SimpleNamespace
import pytest, tqdm
from common.matching.step_size import StepSize
from common.runs.loop import Distillation
from tests.forks import forked
from tests.left_out import leave_out

kills, script, *flags = sys.argv[1:]
patch = pytest.MonkeyPatch()
leave_out(patch)
tqdm.tqdm.monitor_interval = 0  # no thread of its own, which a fork would lose
update, calls = Distillation.update, []

def run(name):
    sys.argv = [script, *flags, "--name", str(name)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    return 0

def in_a_fork(name, killed_after):
    def counted(*positional, **named):
        update(*positional, **named)
        calls.append(None)
        if len(calls) == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def action():
        Distillation.update = counted
        code = run(name)
        sys.stdout.flush()
        return SimpleNamespace(code=code)

    return forked(action).code

assert run(0) == 0
sys.stdout.flush()
for n in range(1, int(kills) + 1):
    assert in_a_fork(n, n) == -signal.SIGKILL, n
    assert in_a_fork(n, None) == 0, n
"""


@pytest.mark.parametrize("objective", SCRIPTS)
def test_a_kill_after_any_update_changes_nothing(tmp_path, objective):
    """All that learns is in the checkpoint: the set, its momentum, TM's step size and the order of its experts."""
    words = [*SETTING, *SCRIPTS[objective], "--save_path", tmp_path]
    if objective == "TM":
        assert call("TM/buffer.py", *EXPERTS, "--buffer_path", tmp_path / "buffers").code == 0
        words += ["--buffer_path", tmp_path / "buffers"]
    command = [sys.executable, "-c", DRIVER, KILLS, ROOT / f"{objective}/distill.py", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("resumed from iteration") == KILLS
    never_killed, *killed = (outcome(tmp_path / objective / "digits/ipc1" / str(n)) for n in range(KILLS + 1))
    for n, each in enumerate(killed, 1):
        assert each == never_killed, f"after a kill that followed update {n}"


def outcome(folder):
    """Synthetic sets, byte for byte, and metrics but for the time they took."""
    sets = {name: (folder / name).read_bytes() for name in ("synset.safetensors", "synset_best.safetensors")}
    return {**sets, "metrics": metrics_of(folder)}


# -- leaving the block -------------------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path):
    words = [*SETTING, "--Iteration", 6, "--save_path", tmp_path, "--name", "run", "--checkpoint_every", 1]
    return parse(Options, "DM", [str(word) for word in words])


def update(run, iteration, size=1.0):
    """An objective of its own: images get darker."""
    synthetic = run.synthetic(0, run.draws(iteration))
    run.update(synthetic, torch.full_like(synthetic, size), torch.tensor(float(iteration)))


def make(options, body):
    """A run whose loop has this body."""
    with Distillation(*options, "DM") as run:
        for iteration in run:
            body(run, iteration)


def is_free(folder):
    lock = take_lock(folder / ".lock", "the run folder", "--save_path")
    if lock is not None:
        lock.release()
    return lock is not None


def test_a_break_is_a_kill_and_the_same_command_goes_on(options, tmp_path):
    folder, made = tmp_path / "DM/digits/ipc1/run", []
    with Distillation(*options, "DM") as run:
        for iteration in run:
            assert not is_free(folder)
            update(run, iteration)
            made.append(iteration)
            if iteration == 3:
                break  # the checkpoint is of three updates: that of this iteration is not saved any more
        assert run.summary is None
    assert is_free(folder)
    with Distillation(*options, "DM") as run:
        for iteration in run:
            update(run, iteration)
            made.append(iteration)
    assert made == [0, 1, 2, 3, 3, 4, 5]
    assert run.summary["last"]["iteration"] == 6
    with Distillation(*options, "DM") as run:
        assert list(run) == []  # finished
    assert run.summary["last"]["iteration"] == 6


def test_evaluations_tell_how_fast_the_run_is(options, tmp_path):
    """Old ones had no such entry, and nothing reads it."""
    make(options, update)
    lines = [json.loads(line) for line in (tmp_path / "DM/digits/ipc1/run/metrics.jsonl").read_text().splitlines()]
    first, *others = (line["measured"] for line in lines if "evaluation" in line)
    assert "updates_per_second" not in first  # there was none
    for each in others:
        assert each["updates_per_second"] > 0
    for each in (first, *others):
        assert each["images_per_second"] > 0
        assert 0 < each["evaluation_share"] < 1
        assert each["peak_memory_bytes"]["cpu"] > 0


def test_an_error_in_the_body_leaves_nothing_open(options, tmp_path):
    with pytest.raises(ZeroDivisionError):
        make(options, lambda run, iteration: update(run, iteration / 0))
    assert is_free(tmp_path / "DM/digits/ipc1/run")


def test_a_lost_process_is_told_with_what_is_kept(options):
    def lose(run, iteration):
        raise ProcessLost("connection closed")

    with pytest.raises(ProcessLost, match="the last checkpoint is kept"):
        make(options, lose)


def test_nothing_is_written_before_the_loop(options, tmp_path):
    with Distillation(*options, "DM"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_body_without_an_update_is_refused(options):
    with pytest.raises(RuntimeError, match="no update"):
        make(options, lambda run, iteration: None)


def test_a_loss_that_is_not_finite_ends_the_run(options):
    with pytest.raises(InputError, match="lower --lr_freq"):
        make(options, lambda run, iteration: update(run, iteration, float("nan")))


def nested(depth):
    """A list in a list in a list ..."""
    return [nested(depth - 1)] if depth else []


class Counter:
    """State of an objective of one's own."""

    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_what_is_given_to_keep_is_restored(options):
    for last in (3, None):
        counter = Counter()
        with Distillation(*options, "DM") as run:
            run.keep(counter=counter)
            for iteration in run:
                assert counter.count == iteration
                update(run, iteration)
                counter.count += 1
                if iteration == last:
                    break
    assert counter.count == 6


def test_a_checkpoint_without_what_is_kept_is_refused(options):
    with Distillation(*options, "DM") as run:
        for iteration in run:
            update(run, iteration)
            if iteration == 1:
                break
    with Distillation(*options, "DM") as run:
        run.keep(counter=Counter())
        with pytest.raises(InputError, match="has no counter"):
            next(iter(run))


def begun(options, **kept):
    """A run with three updates, which was given these objects to keep."""
    with Distillation(*options, "DM") as run:
        run.keep(**kept)
        for iteration in run:
            update(run, iteration)
            if iteration == 3:
                break


def resume(options, **kept):
    with Distillation(*options, "DM") as run:
        run.keep(**kept)
        next(iter(run))


class Sourced(Counter):
    """What an objective reads beside the images."""

    def as_metadata(self):
        return {}

    def check(self, metadata):
        pass


def test_a_source_has_a_state(options):
    """Without one a resumed run could not tell it from none at all."""
    source = Sourced()
    source.state_dict = lambda: None
    with Distillation(*options, "DM") as run:
        run.keep(source=source)
        with pytest.raises(TypeError, match="the state of source"):
            next(iter(run))


def test_a_checkpoint_with_more_than_is_kept_is_refused(options):
    begun(options, counter=Counter(), teacher=Counter())
    with pytest.raises(InputError, match="has teacher, which the script must give to `keep`"):
        resume(options, counter=Counter())
    with pytest.raises(InputError, match="has counter, which the script must give"):
        resume(options)
    resume(options, counter=Counter(), teacher=Counter())


@pytest.mark.parametrize("name", ["step_size", "source"])
def test_a_run_that_was_begun_without_a_step_size_or_source_is_refused(options, name):
    begun(options)
    given = {"step_size": StepSize(0.1, 0.1, torch.device("cpu")), "source": Sourced()}[name]
    with pytest.raises(InputError, match=f"has no {name}, which the script gives to `keep`"):
        resume(options, **{name: given})


@pytest.mark.parametrize(
    "state",
    [np.float64(1.0), {"a": np.zeros(2)}, Path("x"), [print], Counter(), nested(200)],
    ids=lambda state: str(type(state)),
)
def test_a_state_that_no_checkpoint_can_hold_is_refused_before_the_first_update(options, state):
    counter = Counter()
    counter.count = state
    with Distillation(*options, "DM") as run:
        run.keep(counter=counter)
        with pytest.raises(TypeError, match="the state of counter, which `keep` was given, cannot be saved"):
            next(iter(run))


def test_a_state_of_plain_values_comes_back_as_it_was(options):
    state = {"a": torch.arange(3), 1: [None, 2.5, ("x", True)], "b": b"bytes"}
    counter = Counter()
    counter.count = state
    begun(options, counter=counter)
    counter = Counter()
    resume(options, counter=counter)
    assert torch.equal(counter.count.pop("a"), state.pop("a"))
    assert counter.count == state


def test_what_is_kept_is_given_once_and_before_the_loop(options):
    with Distillation(*options, "DM") as run:
        run.keep(counter=Counter())
        with pytest.raises(RuntimeError, match="call `keep` once"):
            run.keep(other=Counter())
    with Distillation(*options, "DM") as run:
        for _ in run:
            with pytest.raises(RuntimeError, match="before the loop"):
                run.keep(counter=Counter())
            break


def test_a_run_is_looped_over_once_and_inside_its_block(options):
    with Distillation(*options, "DM") as run:
        iterations = iter(run)
        update(run, next(iterations))
        with pytest.raises(RuntimeError, match="loop over a Distillation once"):
            next(iter(run))
    for late in (lambda: next(iterations), lambda: next(iter(run)), lambda: update(run, 1), run.__enter__, run.keep):
        with pytest.raises(RuntimeError, match=r"block|inside the loop"):
            late()


def test_a_run_outside_its_block_is_refused_before_it_takes_the_folder(options, tmp_path):
    run = Distillation(*options, "DM")
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        next(iter(run))
    with pytest.raises(RuntimeError, match="known once the loop has begun"):
        _ = run.folder
    with run:
        with pytest.raises(RuntimeError, match="call `update` inside the loop"):
            update(run, 0)
        assert not list(tmp_path.iterdir())
        next(iter(run))
        assert run.folder == tmp_path / "DM/digits/ipc1/run"


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (1.0, "a float"),
        (torch.tensor(1), "a tensor [] of int64"),
        (torch.ones(3), "a tensor [3] of float32"),
        (torch.ones((), requires_grad=True) * 1, "with a graph"),
        (torch.tensor(1j), "complex64"),
    ],
)
def test_a_loss_is_a_scalar_tensor_without_a_graph(options, loss, told):
    with pytest.raises(TypeError, match="give a floating-point tensor") as refused:
        make(options, lambda run, iteration: run.update(run.synset.decode(), run.synset.decode().detach(), loss))
    assert told in str(refused.value)


@pytest.mark.parametrize("gradient", [1.0, torch.ones(2)])
def test_a_gradient_is_like_the_images(options, gradient):
    with pytest.raises(TypeError, match="like the images"):
        make(options, lambda run, iteration: run.update(run.synset.decode(), gradient, torch.ones(())))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"x": 3}, "a int as x"),
        ({"x": None}, "a NoneType as x"),
        ({"x": torch.ones(2)}, r"a tensor \[2\] of float32 as x"),
        ({"step_size": Counter()}, "a Counter as step_size: give a StepSize"),
        ({"source": Counter()}, "a Counter as source"),
    ],
)
def test_what_cannot_be_kept_is_refused_at_once(options, given, told):
    with Distillation(*options, "DM") as run, pytest.raises(TypeError, match=told):
        run.keep(**given)


def test_a_finished_run_gives_back_what_was_kept(options):
    for _ in range(2):
        counter = Counter()
        with Distillation(*options, "DM") as run:
            run.keep(counter=counter)
            for iteration in run:
                update(run, iteration)
                counter.count += 1
        assert counter.count == 6
    before = {path: path.read_bytes() for path in run.folder.iterdir() if path.suffix in (".pt", ".jsonl")}
    assert len(before) == 3
    (run.folder / "checkpoint.pt").write_bytes(b"")
    with Distillation(*options, "DM") as run:
        run.keep(counter=Counter())
        assert list(run) == []
    assert "no readable checkpoint: counter is as it was before the run" in (run.folder / "log.txt").read_text()
    assert {path.name for path, content in before.items() if path.read_bytes() != content} == {"checkpoint.pt"}


@pytest.mark.parametrize("name", ["", "../x", "/x", "a/b/c", "a/", "."])
def test_an_objective_is_the_name_of_a_folder(options, name):
    with pytest.raises(InputError, match="names no objective"):
        Distillation(*options, name)


def test_an_objective_of_ones_own_has_a_name_of_its_own(tmp_path, options):
    with pytest.raises(InputError, match="PIX has no recipes: give --msz_per_channel and --lr_freq"):
        parse(Options, "PIX", ["--dataset", "digits"])
    with pytest.raises(InputError, match="PIX has no recipes: leave out --recipe"):
        parse(Options, "PIX", ["--dataset", "digits", "--recipe", "MNIST"])
    words = [
        *SETTING,
        "--Iteration",
        2,
        "--save_path",
        tmp_path,
        "--name",
        "run",
        "--lr_freq",
        1,
        "--msz_per_channel",
        8,
    ]
    with Distillation(*parse(Options, "PIX", [str(word) for word in words]), "PIX") as run:
        for iteration in run:
            update(run, iteration)
    assert (tmp_path / "PIX/digits/ipc1/run/synset.safetensors").exists()
    assert call("DM/evaluate.py", "--synset", tmp_path / "PIX/digits/ipc1/run/synset.safetensors", *EVALUATED).code == 0


def test_several_updates_of_an_iteration_are_one_loss(options, tmp_path):
    with Distillation(*options, "DM") as run:
        for iteration in run:
            update(run, iteration)
            update(run, iteration + 1)
    lines = (tmp_path / "DM/digits/ipc1/run/metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses == [iteration + 0.5 for iteration in range(6)]
    with safe_open(tmp_path / "DM/digits/ipc1/run/synset.safetensors", framework="pt") as file:
        assert file.get_tensor("coefficients").isfinite().all()
