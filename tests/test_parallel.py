"""Several processes on a CPU do what one does: the same sets, experts and accuracies; and they end together.

Jobs are started for real, by torchrun. What they run is in parallel_cases.py.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command_line import checkpoint
from tests.conftest import ROOT
from tests.parallel_cases import CASES, UPDATES, distil, folder_of, run_all

BY_TWO = [name for name in CASES if not name.endswith("two")]
BY_THREE = ["dm-two", "dc-two", "tm", "tm-batches"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]

pytestmark = pytest.mark.usefixtures("one_thread")


def environment(path: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FRED_CACHE": str(path / "cache")}


def job(path: Path, processes: int, folder: str, names: list[str]) -> subprocess.CompletedProcess[str]:
    """The cases as a job, with results in a folder of `path`."""
    words = [
        *TORCHRUN,
        processes,
        ROOT / "tests/parallel_cases.py",
        path / folder,
        path / "one/buffers",
        path / "images",
    ]
    return subprocess.run(
        list(map(str, [*words, *names])),
        env=environment(path), capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """With images of two classes, and everything as one process makes it."""
    path = tmp_path_factory.mktemp("parallel")
    draws = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for name in ("a", "b"):
            folder = path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draws.integers(256, size=(8, 8), dtype=np.uint8)).save(folder / f"{i}.png")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRED_CACHE", str(path / "cache"))
        names = ["experts", "experts-bn", *CASES]
        names.insert(names.index("dm-float32") + 1, "evaluation")
        run_all(path / "one", path / "one/buffers", path / "images", names)
    torch.set_num_threads(before)
    return path


@pytest.fixture(scope="module")
def two(path):
    """Two processes; the last run ends when one of them is killed."""
    return job(
        path, 2, "two", ["experts", "dm-float32", "evaluation", *[n for n in BY_TWO if n != "dm-float32"], "killed"]
    )


@pytest.fixture(scope="module")
def three(path):
    """Three processes; the last run is refused by the first of them."""
    return job(path, 3, "three", [*BY_THREE, "conflict"])


def assert_alike(path: Path, folder: str, name: str) -> None:
    """The run of a case ends as in one process, but for the order of sums."""
    kind = CASES[name][0]
    tolerance = 1e-8 if kind == torch.float64 else 1e-5
    one, several = (folder_of(path / each, name) for each in ("one", folder))
    expected, found = checkpoint(one), checkpoint(several)
    assert found["iteration"] == UPDATES
    wanted, got = (state["synset"]["coefficients"] for state in (expected, found))
    assert got.dtype == kind
    assert (got - wanted).norm() <= tolerance * wanted.norm()
    momenta = [state["synset"]["optimizer"]["state"][0]["momentum_buffer"] for state in (expected, found)]
    assert momenta[0].norm() > 0
    assert (momenta[1] - momenta[0]).norm() <= tolerance * momenta[0].norm()
    if expected["step_size"] is not None:
        torch.testing.assert_close(found["step_size"], expected["step_size"], rtol=tolerance, atol=0)
    lines = [
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (one, several)
    ]
    losses = [[line["loss"] for line in each if "loss" in line] for each in lines]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    accuracies = [[line["evaluation"]["accuracies"] for line in each if "evaluation" in line] for each in lines]
    assert len(accuracies[0]) == 2
    assert accuracies[1] == accuracies[0]
    config = json.loads((several / "config.json").read_text())
    assert config["hardware"]["processes"] == {"two": 2, "three": 3}[folder]


@pytest.mark.parametrize("name", BY_TWO)
def test_two_processes_make_the_set_that_one_makes(path, two, name):
    assert_alike(path, "two", name)


@pytest.mark.parametrize("name", BY_THREE)
def test_three_processes_make_the_set_that_one_makes(path, three, name):
    """Of two classes one of them has none to match."""
    assert_alike(path, "three", name)


def test_the_work_is_shared(path, two, three):
    """Synthetic images that each process matched: half of them, but where batch statistics forbid it."""

    def counts(folder, name):
        return json.loads((path / folder / f"{name}.json").read_text())

    for name in BY_TWO:
        (total,) = counts("one", name)
        halves = [total / 2, total / 2]
        # Seven images are cut into three and four.
        unlike = {"dm-bn": [total, 0], "tm-bn": [total, 0], "tm-batches": [total * 3 / 7, total * 4 / 7]}
        assert counts("two", name) == unlike.get(name, halves), name
    (total,) = counts("one", "dm-two")
    assert counts("three", "dm-two") == [total / 2, total / 2, 0]


def test_an_expert_is_the_same_whoever_trained_it(path, two):
    one, several = (path / each / "buffers/digits/ConvNetD1W16ASwish" for each in ("one", "two"))
    files = sorted(file.name for file in one.glob("expert_*"))
    assert files == [f"expert_{number:04d}.safetensors" for number in range(3)]
    for name in files:
        assert (one / name).read_bytes() == (several / name).read_bytes()


def test_an_evaluation_has_the_same_accuracies(path, two):
    expected, found = (json.loads((path / each / "evaluation.json").read_text()) for each in ("one", "two"))
    assert len(set(expected["accuracies"])) > 1
    assert found["accuracies"] == expected["accuracies"]
    assert len(found["seconds"][found["network"]]) == 5
    assert found["hardware"]["processes"] == 2


def test_one_process_speaks_for_all(two):
    assert two.stdout.count("iteration 0: accuracy") == len(BY_TWO) + 1
    assert two.stdout.count("ConvNetD1W16BN normalises over the batch, which is not shared on a CPU") == 1


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_two_gpus_make_the_set_that_a_cpu_makes(path):
    """By NCCL; batch statistics are put together."""
    names = ["dm", "dm-bn", "dc", "tm"]
    result = job(path, 2, "gpus", [f"cuda-{name}" for name in names])
    assert result.returncode == 0, result.stderr
    for name in names:
        wanted, found = (checkpoint(folder_of(path / each, name))["synset"]["coefficients"] for each in ("one", "gpus"))
        assert (found - wanted).norm() <= 1e-6 * wanted.norm(), name
        counts = json.loads((path / "gpus" / f"{name}.json").read_text())
        assert counts[0] == counts[1], name


# -- the end of one is the end of all ----------------------------------------------------------------------------


def test_when_a_process_is_killed_another_job_goes_on(path, two):
    """Killed in update 4; one process continues from the last checkpoint, and ends as if nothing had happened."""
    assert two.returncode != 0
    (said,) = [line for line in two.stderr.splitlines() if "another process of this job has ended" in line]
    kept = ": another process of this job has ended: the last checkpoint is kept, the same command continues"
    # What reaches the survivor first, the broken connection or torchrun's SIGTERM, begins its sentence.
    assert said.startswith((f"error{kept}", f"stopped by SIGTERM{kept}"))
    assert "parallel.py" not in two.stderr  # no traceback of ours
    folder = folder_of(path / "two/killed", "dm-float32")
    assert checkpoint(folder)["iteration"] == 2
    distil("dm-float32", path / "two/killed", "--checkpoint_every", 2)
    assert "resumed from iteration 2" in (folder / "log.txt").read_text()
    wanted = checkpoint(folder_of(path / "one", "dm-float32"))["synset"]["coefficients"]
    assert (checkpoint(folder)["synset"]["coefficients"] - wanted).norm() <= 1e-5 * wanted.norm()


def test_what_the_first_process_refuses_ends_the_others(three):
    errors = [line for line in three.stderr.splitlines() if "error: " in line]
    assert three.returncode != 0
    (first,) = [
        line for line in errors if "belongs to a run with another configuration (--seed 0 there, 1 now)" in line
    ]
    assert "rank" not in first
    for number in (1, 2):
        (other,) = [line for line in errors if f"rank {number}: " in line]
        assert "error: another process of this job has ended" in other
    assert "parallel.py" not in three.stderr


def test_sigterm_stops_all_with_everything_saved(tmp_path):
    """Of a job that a shell script started."""
    words = ["--model", "ConvNetD1W16", "--batch_real", 8, "--device", "cpu", "--Iteration", 1_000_000, "--eval_it", 0]
    words += ["--num_eval", 1, "--epoch_eval_train", 0, "--checkpoint_every", 10, "--name", "run"]
    started = {"NPROC": "2", "DATASET": "digits", "PYTHON": sys.executable, "SAVE_PATH": str(tmp_path)}
    metrics = tmp_path / "DM/digits/ipc1/run/metrics.jsonl"
    with subprocess.Popen(
        ["sh", str(ROOT / "DM/scripts/run_DM_FreD.sh"), *map(str, words)],
        env=environment(tmp_path) | started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not metrics.exists() or "loss" not in metrics.read_text():
                assert time.monotonic() < deadline
                assert job.poll() is None
                time.sleep(0.05)
            job.send_signal(signal.SIGTERM)
            out, err = job.communicate(timeout=60)
        finally:
            job.kill()
    assert job.returncode != 0
    assert "SIGTERM: saving, then stopping" in out
    said = [line for line in err.splitlines() if "stopped by SIGTERM: everything is saved" in line]
    assert len([line for line in said if "rank 1: " in line]) == 1
    assert len(said) == 2
    losses = [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()[1:]]
    assert losses == list(range(checkpoint(metrics.parent)["iteration"]))
    assert len(losses) >= 10
