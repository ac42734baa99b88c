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
