"""TM/buffer.py: it trains the experts that are missing, keeps whole ones whatever ends it, shares them with others."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from common.config.command_line import parse_buffer
from common.config.options import BufferOptions
from common.datasets import load_dataset
from common.experts import train as experts
from common.experts.folder import describe, expert_file
from common.experts.open import open_buffer
from common.experts.train import ExpertProtocol, train_expert
from common.networks import build_network
from common.training import train as training
from common.training.train import accuracy
from tests.command_line import assert_refused, call
from tests.conftest import ROOT
from tests.expert_buffers import MODEL, truncate

pytestmark = pytest.mark.usefixtures("one_thread")

COMMAND = [
    "--dataset", "digits", "--model", MODEL, "--num_experts", 2, "--train_epochs", 2, "--lr_teacher", 0.01,
    "--device", "cpu",
]  # fmt: skip


def train(path, *flags):
    return call("TM/buffer.py", *COMMAND, "--buffer_path", path, *flags)


def written(path):
    folder = path / "digits" / MODEL
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A buffer that nothing happened to, and what its making printed."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("trained")
    result = train(path, "--test_every", 1)
    assert result.code == 0, result.err
    return path, result


def test_the_command_trains_the_experts(trained):
    path, result = trained
    data, test = load_dataset("digits")
    network = build_network(MODEL, 1, 10, (8, 8))
    protocol = ExpertProtocol(2, 2, 256, 0.01, 0.0, 0.0, False, "color_crop_cutout_flip_scale_rotate", 0)
    buffer = open_buffer(path / "digits" / MODEL, describe(data, MODEL, network), 2)
    assert len(buffer) == 2
    expected = train_expert(network, data, protocol, 1)
    assert torch.equal(load_file(path / "digits" / MODEL / "expert_0001.safetensors")["trajectory"], expected)
    tested = 100 * accuracy(network, test)
    assert f"after 1 epoch, {tested:.2f} % after 2 epochs" in result.out.splitlines()[-2]
    given = f"--dataset digits --model {MODEL} --buffer_path {path}"
    assert result.out.splitlines()[-1] == f"next: python TM/distill.py {given}"
    assert result.out.splitlines()[-2].startswith("expert 1: ")
    batches = 2 * (2 * 6 + 2)  # 2 experts, 2 epochs of 6 batches, 2 test passes
    assert f"expert 1: 100%| {batches}/{batches} batch [" in result.err


def test_the_command_again_trains_only_what_is_missing(trained, tmp_path, monkeypatch):
    path = shutil.copytree(trained[0], tmp_path / "copy")
    original, numbers = experts.expert_epochs, []

    def counted(network, data, protocol, number, *rest):
        numbers.append(number)
        return original(network, data, protocol, number, *rest)

    monkeypatch.setattr(experts, "expert_epochs", counted)
    assert "2 of 2 experts are in" in train(path).out
    assert numbers == []
    expert_file(path / "digits" / MODEL, 0).unlink()
    assert "1 of 2 experts are in" in train(path, "--test_every", 1).out
    assert numbers == [0]
    assert written(path) == written(trained[0])
    truncate(expert_file(path / "digits" / MODEL, 1))
    assert "is damaged: training this expert again" in train(path, "--test_every", 1).err
    assert written(path) == written(trained[0])
    assert train(path, "--num_experts", 3).code == 0
    assert numbers == [0, 1, 2]
    assert {name: content for name, content in written(path).items() if "0002" not in name} == written(trained[0])


def test_two_processes_share_the_experts(trained, tmp_path, monkeypatch):
    """First another one trains expert 0 all the time; then it saves expert 1 before this one comes to it."""
    path = shutil.copytree(trained[0], tmp_path / "copy")
    folder = path / "digits" / MODEL
    original, numbers = experts.expert_epochs, []
    expert_file(folder, 0).unlink()

    def counted(network, data, protocol, number, *rest):
        numbers.append(number)
        shutil.copy(expert_file(trained[0] / "digits" / MODEL, 1), expert_file(folder, 1))
        return original(network, data, protocol, number, *rest)

    with (folder / ".expert_0000.lock").open("w") as lock, (folder / ".lock").open("w") as shared:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(shared, fcntl.LOCK_SH)
        monkeypatch.setattr(experts, "expert_epochs", lambda *_: pytest.fail("is another's"))
        assert "expert 0: left to another process" in train(path, "--test_every", 1).out
    expert_file(folder, 1).unlink()
    monkeypatch.setattr(experts, "expert_epochs", counted)
    result = train(path, "--test_every", 1)
    assert "expert 1: left to another process" in result.out
    assert numbers == [0]
    assert written(path) == written(trained[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_whole_experts(trained, tmp_path, monkeypatch, number):
    """In the second epoch of the second expert."""
    original, calls = experts.train_epoch, []

    def counted(*positional, **named):
        calls.append(None)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return original(*positional, **named)

    with monkeypatch.context() as patch:
        patch.setattr(experts, "train_epoch", counted)
        result = train(tmp_path, "--test_every", 1)
    assert result.code == 128 + number
    assert f"stopped by {number.name}: finished experts are kept, the same command trains the others" in result.err
    assert set(written(tmp_path)) == {"manifest.json", "expert_0000.safetensors"}
    assert train(tmp_path, "--test_every", 1).code == 0
    assert written(tmp_path) == written(trained[0])


def test_a_signal_ends_the_test_of_an_expert(tmp_path, monkeypatch):
    original, calls = training.accuracy, []

    def tested(network, data, forward, on_batch):
        def after_batch():
            calls.append(None)
            os.kill(os.getpid(), signal.SIGTERM)
            on_batch()

        return original(network, data, forward, after_batch)

    monkeypatch.setattr(training, "accuracy", tested)
    monkeypatch.setattr(training, "test_batch", lambda im_size: 8)
    result = train(tmp_path)
    assert result.code == 128 + signal.SIGTERM
    assert len(calls) == 1
    assert "stopped by SIGTERM" in result.err


KILLER = """
import os, runpy, signal, sys
written, original = [], os.fsync

def killing(file):
    written.append(file)
    if len(written) == 5:  # two files and their folder's entries are done: the second expert's file has no name yet
        os.kill(os.getpid(), signal.SIGKILL)
    original(file)

os.fsync = killing
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_sigkill_while_a_file_is_written(trained, tmp_path):
    words = [
        sys.executable,
        "-c",
        KILLER,
        ROOT / "TM/buffer.py",
        *COMMAND,
        "--buffer_path",
        tmp_path,
        "--test_every",
        1,
    ]
    result = subprocess.run(
        list(map(str, words)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    folder = tmp_path / "digits" / MODEL
    assert {file.name for file in folder.glob("*.safetensors")} == {"expert_0000.safetensors"}
    assert len(list(folder.glob(".*.tmp"))) == 1
    assert train(tmp_path, "--test_every", 1).code == 0
    assert written(tmp_path) == written(trained[0])


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--num_experts", 0], ["--num_experts 0 is too small"]),
        (["--num_experts", 10**12], ["--num_experts 1000000000000 is too large: give 1,000,000 at most"]),
        (["--num_experts", 10**12, "--dry_run"], ["--num_experts 1000000000000 is too large"]),
        (
            ["--image_size", 2**63 - 1, "--dry_run"],
            ["--image_size must be from 1 to ", "not 9,223,372,036,854,775,807"],
        ),
        (["--test_every", -1], ["--test_every -1 is too small"]),
        (["--keep_epochs", 3], ["--keep_epochs 3 is more than the --train_epochs 2"]),
        (["--lr_teacher", "nan"], ["--lr_teacher nan is not finite"]),
        (["--dsa_strategy", "turn"], ["not a DSA strategy"]),
        (["--model", "ConvNte"], ["There is no network 'ConvNte'"]),
        (["--dataset", "digit"], ["there is no dataset 'digit'"]),
        (["--device", "abacus"], ["device 'abacus'"]),
        (["--lr_teacher", 0.02, "--no_dsa"], ["0.01 there, 0.02 now", "--dsa_strategy", "there, none now"]),
        (["--buffer_path", ROOT / "LICENSE"], ["cannot write to", "choose another --buffer_path"]),
    ],
    ids=str,
)
def test_the_command_refuses_in_a_sentence(trained, flags, parts):
    before = written(trained[0])
    assert_refused(train(trained[0], *flags), *parts)
    assert written(trained[0]) == before


def test_the_published_experts_are_the_default_and_recipes_change_them():
    published = parse_buffer(BufferOptions, "TM", ["--dataset", "CIFAR10"])
    assert (published.model, published.num_experts, published.train_epochs) == ("ConvNetD3", 100, 50)
    assert (published.lr_teacher, published.batch_train, published.mom, published.l2) == (0.01, 256, 0.0, 0.0)
    assert published.dsa
    assert not published.decay
    assert parse_buffer(BufferOptions, "TM", ["--dataset", "Tiny"]).model == "ConvNetD4"
    assert parse_buffer(BufferOptions, "TM", []).num_experts < 100
    assert parse_buffer(BufferOptions, "TM", ["--num_experts", "7"]).num_experts == 7


def test_waiting_for_an_expert_that_another_process_trains(trained, tmp_path, monkeypatch):
    """The others are trained first, and the command ends when all are there."""
    path = tmp_path / "buffers"
    shutil.copytree(trained[0], path)
    folder, original, numbers = path / "digits" / MODEL, experts.expert_epochs, []
    for number in (0, 1):
        expert_file(folder, number).unlink()
    lock = (folder / ".expert_0000.lock").open("w")
    shared = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    fcntl.flock(shared, fcntl.LOCK_SH)

    def counted(network, data, protocol, number, *rest):
        numbers.append(number)
        return original(network, data, protocol, number, *rest)

    def finish_the_other(seconds):
        shutil.copy(expert_file(trained[0] / "digits" / MODEL, 0), expert_file(folder, 0))
        lock.close()

    monkeypatch.setattr(experts, "expert_epochs", counted)
    monkeypatch.setattr("common.experts.folder.time.sleep", finish_the_other)
    result = train(path, "--test_every", 1, "--wait")
    shared.close()
    assert result.code == 0, result.err
    assert numbers == [1]
    assert written(path) == written(trained[0])
