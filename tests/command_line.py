"""Commands run in this process, and what their runs leave."""

import contextlib
import io
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ROOT

# Seconds, not minutes; what a test does not care about.
TINY = ["--dataset", "digits", "--model", "ConvNetD1W32", "--batch_real", "16", "--device", "cpu"]
SHORT = [*TINY, "--Iteration", "2", "--eval_it", "0", "--num_eval", "1", "--epoch_eval_train", "0", "--name", "run"]

# All commands that print help.
COMMANDS = [
    "DM/distill.py", "DC/distill.py", "TM/distill.py", "TM/buffer.py", "3D-MNIST/distill.py",
    "ImageNet-abcde/distill.py --objective DM", "ImageNet-abcde/distill.py --objective DC",
    "ImageNet-abcde/distill.py --objective TM", "ImageNet-abcde/buffer.py", "DM/evaluate.py", "DC/evaluate.py",
    "TM/evaluate.py", "3D-MNIST/evaluate.py", "ImageNet-abcde/evaluate.py", "corruption-exp/evaluate.py", "ablate.py",
    "compare.py", "reproduce.py", "gpu.py", "-m common.report", "-m common.pretrained",
]  # fmt: skip


def call(script, *words):
    """Run a script in this process as `python script words` would: its exit code and what it printed."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [str(ROOT / script), *map(str, words)])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


class InThisProcess:
    """A script run without a process of its own, which would import torch anew."""

    pid = 1

    def __init__(self, script, words, nproc=1):
        assert nproc == 1
        self._result = call(script, *words)
        print(self._result.out)

    def wait(self):
        return self._result.code

    def stop(self):
        raise AssertionError("it has ended")

    @property
    def reason(self):
        return self._result.err.strip().splitlines()[-1].removeprefix("error: ")


def run_folder(save_path, dataset="digits", ipc=1, name="run"):
    return save_path / "DM" / dataset / f"ipc{ipc}" / name


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def checkpoint(folder, name="checkpoint.pt"):
    return torch.load(folder / name, weights_only=True)["state"]


def assert_refused(result, *parts):
    """Exit code 2 and one sentence on stderr that says these things."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err + result.out
    sentences = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, result.err
    for part in parts:
        assert part in sentences[0]


def shown(command):
    """What a command shows when it is asked for help, run in this process."""
    words = command.split()
    if words[0] == "-m":
        words[:2] = [f"{words[1].replace('.', '/')}/__main__.py"]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "300")  # so that a flag and its other names share a line
        patch.setattr(sys, "argv", [*words, "--help"])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    assert not end.value.code, f"{command} --help ended with {end.value.code}"
    return out.getvalue()
