"""What surrounds a program: variables of batch systems, shell scripts that are copied, modules that a system lacks."""

import os
import shutil
import subprocess
import sys

import pytest

from common.datasets import load_dataset
from common.system import command, parallel, scripts
from common.system.errors import InputError
from tests.command_line import assert_refused, call
from tests.conftest import ROOT

SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/scripts/*.sh"))
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


# -- variables of several processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "launch"),
    [
        ({}, (0, 0, 1, 1)),
        ({"RANK": "", "WORLD_SIZE": ""}, (0, 0, 1, 1)),
        ({"RANK": "0", "WORLD_SIZE": " "}, (0, 0, 1, 1)),
        ({"RANK": "", "WORLD_SIZE": "4"}, (0, 0, 1, 1)),
        ({"WORLD_SIZE": "4"}, (0, 0, 1, 1)),  # of a batch system
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 3, 4, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 1, 4, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "", "LOCAL_WORLD_SIZE": ""}, (3, 3, 4, 4)),
    ],
)
def test_a_variable_that_is_empty_counts_as_unset(environment, variables, launch):
    environment(**variables)
    assert parallel.launch() == parallel.Launch(*launch)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "0", "WORLD_SIZE": "two"}, "the variable WORLD_SIZE=two is no number of processes"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "the variable RANK=-1 is no number of processes"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 fit no job"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0 fit no job"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but MASTER_ADDR and MASTER_PORT, where they meet, are not set"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "1"},
            "but MASTER_ADDR, where they",
        ),
    ],
)
def test_variables_that_fit_no_job_are_told(environment, capsys, variables, told):
    environment(**variables)
    with pytest.raises(SystemExit) as end:
        command.run_command(lambda: None, several=True)
    assert end.value.code == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith("error: ")
    assert told in sentence
    assert sentence.endswith("start with torchrun, or unset RANK for a single process\n")


# -- shell scripts -----------------------------------------------------------------------------------------------------


def start(script, cwd=ROOT, **variables):
    """What a shell script starts: `echo` stands in for Python, so its words are printed."""
    given = {key: value for key, value in os.environ.items() if key not in ("NPROC", "DATASET", "IPC", "FRED_HOME")}
    return subprocess.run(
        ["sh", str(script), "--seed", "1"], env={**given, "PYTHON": "echo", **variables}, cwd=cwd,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_its_repository(tmp_path, script):
    """Also through a link, and as a copy, as batch systems run it."""
    expected = start(ROOT / script)
    assert expected.returncode == 0, expected.stderr
    assert expected.stdout.startswith(f"{ROOT}/{script.partition('/')[0]}/")
    assert expected.stdout.endswith("--seed 1\n")
    (tmp_path / "link.sh").symlink_to(ROOT / script)
    assert start(tmp_path / "link.sh", tmp_path).stdout == expected.stdout
    shutil.copy(ROOT / script, tmp_path / "slurm_script")
    assert start(tmp_path / "slurm_script", ROOT).stdout == expected.stdout
    assert start(tmp_path / "slurm_script", tmp_path, FRED_HOME=str(ROOT)).stdout == expected.stdout
    lost = start(tmp_path / "slurm_script", tmp_path)
    assert (lost.returncode, lost.stdout) == (2, "")
    assert lost.stderr == (
        "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to "
        "it\n"
    )


def test_names_with_spaces_change_nothing(tmp_path):
    link = tmp_path / "a folder" / "my link.sh"
    link.parent.mkdir()
    link.symlink_to(ROOT / SCRIPTS[0])
    assert start(link, link.parent).returncode == 0


@pytest.mark.parametrize("number", ["0", "two", "-1", "1.5", "2 "])
def test_a_number_of_processes_is_a_number(number):
    ended = start(ROOT / "DM/scripts/run_DM_FreD.sh", NPROC=number)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: NPROC={number} is no number of processes: give 1 or more, or leave it unset\n"


@pytest.mark.parametrize("number", ["1", "16", "gpu", "auto"])
def test_torchrun_takes_the_number_of_processes(number):
    ended = start(ROOT / "DM/scripts/run_DM_FreD.sh", NPROC=number)
    assert ended.stdout.startswith(
        f"-m torch.distributed.run --standalone --nproc_per_node {number} {ROOT}/DM/distill.py"
    )
    assert "torch.distributed" not in start(ROOT / "DM/scripts/run_DM_FreD.sh", NPROC="").stdout


# -- modules that a system lacks ---------------------------------------------------------------------------------------

BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""


def test_what_windows_lacks_is_not_needed_to_make_a_set():
    code = BLOCKED.format(names=["fcntl", "resource", "pwd", "grp", "termios"]) + (
        "import os\n"
        "del os.waitid, os.sysconf\n"
        "import torch\n"
        "from common import SynSet\n"
        "from types import SimpleNamespace\n"
        "synset = SynSet(SimpleNamespace(channel=1, num_classes=2, im_size=(8, 8), device='cpu', ipc=1,\n"
        "                                msz_per_channel=16, lr_freq=1.0, mom_freq=0.5))\n"
        "synset.init(torch.randn(8, 1, 8, 8), torch.arange(2).repeat_interleave(4), [[0, 1, 2, 3], [4, 5, 6, 7]])\n"
        "from common.system.devices import peak_memory, total_memory\n"
        "cpu = torch.device('cpu')\n"
        "print(synset.get()[0].shape[0], peak_memory(cpu), total_memory(cpu))\n"
    )
    given = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "8 {'cpu': None} None\n"


def test_a_missing_h5py_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="3D-MNIST is an HDF5 file, which the package h5py reads: pip install h5py"):
        load_dataset("3D-MNIST", tmp_path)
    result = call("3D-MNIST/distill.py", "--data_path", tmp_path, "--save_path", tmp_path, "--device", "cpu")
    assert_refused(result, "pip install h5py")


def test_a_script_is_waited_for_where_the_system_cannot_look_without_a_lock(monkeypatch, tmp_path):
    (tmp_path / "script.py").write_text("import sys, time; time.sleep(0.2); sys.exit(3)")
    monkeypatch.setattr(scripts, "ROOT", tmp_path)
    monkeypatch.delattr(os, "waitid")
    assert scripts.Script("script.py", []).wait() == 3
