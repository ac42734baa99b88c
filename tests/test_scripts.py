"""What knows where the scripts lie."""

import importlib
import signal
import subprocess
import sys
import time

import pytest

from common.system import scripts
from common.system.progress import ON_TERMINAL
from common.system.scripts import (
    ROOT,
    VOXELS,
    Script,
    buffer_script,
    distill_script,
    installed,
    load_script,
    typed_python,
)
from DM import distill as dm
from tests.command_line import assert_refused, call


@pytest.mark.parametrize("objective", ["DM", "DC", "TM", "ImageNet-abcde/DM", "ImageNet-abcde/DC", "ImageNet-abcde/TM"])
def test_an_objective_has_its_script(objective):
    script, *flags = distill_script(objective)
    assert (ROOT / script).is_file()
    assert flags == (["--objective", objective.rpartition("/")[2]] if "/" in objective else [])
    if objective.endswith("TM"):
        assert (ROOT / buffer_script(objective)).is_file()
    assert (ROOT / VOXELS).is_file()


def test_the_interpreter_is_told_as_a_user_types_it(tmp_path, monkeypatch):
    own = tmp_path / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)  # as an environment's interpreter is a link to the system's
    other = tmp_path / "other" / "python"
    other.parent.mkdir()
    other.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setenv("PATH", str(other.parent))
    monkeypatch.chdir(tmp_path)
    assert typed_python() == ".venv/bin/python"
    monkeypatch.chdir(other.parent)
    assert typed_python() == str(own)  # `python` would be another
    monkeypatch.setenv("PATH", str(own.parent))
    assert typed_python() == "python"


def test_a_script_whose_folder_cannot_be_imported_is_loaded_once():
    module = load_script("ImageNet-abcde/distill.py")
    assert issubclass(module.DM, dm.Options)
    assert load_script("ImageNet-abcde/distill.py") is module


@pytest.mark.parametrize("script", ["3D-MNIST/distill.py", "ImageNet-abcde/distill.py", "ImageNet-abcde/buffer.py"])
def test_an_environment_that_was_installed_before_is_told_what_to_do(monkeypatch, script):
    """The packages DM, DC and TM are then not found."""
    for name in ("DM", "DC", "TM"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(call(script, "--help"), "run make install")


def test_any_other_package_that_is_missing_is_pythons_own_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), installed():
        importlib.import_module("no_such_package")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_script_behind_a_pipe_draws_bars_where_they_are_seen(monkeypatch, tmp_path, terminal):
    code = "import sys; from common.system.progress import draws_bars; sys.exit(3 if draws_bars() else 4)"
    (tmp_path / "script.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(ON_TERMINAL, raising=False)
    monkeypatch.setattr(scripts, "ROOT", tmp_path)
    monkeypatch.setattr(scripts, "draws_bars", lambda: terminal)
    assert Script("script.py", []).wait() == (3 if terminal else 4)


CHILD = """
import signal, sys, time
from pathlib import Path

def save(number, frame):
    time.sleep(0.5)
    Path(sys.argv[1], "saved").touch()
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, save)
Path(sys.argv[1], "begun").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_script_that_runs_save_first(tmp_path, number):
    (tmp_path / "child.py").write_text(CHILD)
    code = (
        "from common.system.command import run_command\n"
        "from common.system.scripts import run_script\n"
        f"run_command(lambda: run_script({str(tmp_path / 'child.py')!r}, {str(tmp_path)!r}))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 128 + number
    assert (tmp_path / "saved").exists()
    assert "finished runs and the last checkpoint are kept, the same command continues" in said
