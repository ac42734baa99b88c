"""What scripts set up before torch is loaded, and that nobody else gets it."""

import ast
import os
import subprocess
import sys

import pytest

from common.system import start
from tests.conftest import ROOT

TOLD = """
import atexit, os, sys
atexit.register(lambda: print("policy", os.environ.get("OMP_WAIT_POLICY"), file=sys.stderr))
"""


def policy(tmp_path, words, **given):
    """OMP_WAIT_POLICY at the end of a program."""
    (tmp_path / "sitecustomize.py").write_text(TOLD)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **given}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("words", [["demo.py", "--help"], ["DM/distill.py", "--help"]])
def test_a_script_lets_idle_threads_sleep(tmp_path, words):
    assert policy(tmp_path, [ROOT / words[0], *words[1:]]) == "policy passive"


def test_what_the_user_sets_is_kept(tmp_path):
    assert policy(tmp_path, [ROOT / "demo.py", "--help"], OMP_WAIT_POLICY="active") == "policy active"


def test_who_imports_a_script_gets_nothing_changed(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("import common.system.start, DM.distill, common\ncommon.SynSet\n")
    assert policy(tmp_path, [own]) == "policy None"
    assert policy(tmp_path, ["-c", own.read_text()]) == "policy None"


def test_each_script_imports_it_first():
    files = [ROOT / name for name in start._PROGRAMS if name.endswith(".py")]
    files += [path for name in start._PROGRAMS for path in (ROOT / name).rglob("*.py")]
    scripts = [path for path in files if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")]
    assert len(scripts) >= 15
    for path in scripts:
        nodes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.Expr)]
        imports = [text for text in map(ast.unparse, nodes) if "__future__" not in text]
        assert imports[0].startswith("import common.system.start"), path


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again():
    """Of twenty blocks of 64 MB, one after another, the last ones bring no new pages."""
    code = """
import resource
from common.system.start import keep_freed_memory
assert keep_freed_memory()
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(faults() for _ in range(20)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = list(map(int, done.stdout.split()))
    assert max(counts[-5:]) < 100, counts


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
@pytest.mark.parametrize("program", [True, False])
def test_kept_memory_is_given_back_where_a_script_keeps_it(program):
    """Four freed blocks of 64 MB, of whose memory the process then holds nothing, or still all."""
    code = f"""
from pathlib import Path
from common.system import start
assert start.keep_freed_memory()
start.keeps_memory = {program}
import torch
def resident():
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024
blocks = [torch.ones(16 << 20) for _ in range(4)]
last = torch.ones(1 << 20)  # above them: without it they would be the free end of the heap
del blocks
before = resident()
start.give_back_memory()
print(before - resident())
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    given = int(done.stdout)
    assert given > 200 if program else given < 20
