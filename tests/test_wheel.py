"""The package as it is installed: a wheel, without the checkout and in another folder, does what the README shows."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec

import pytest

from common.system.version import __version__
from tests.conftest import ROOT

PACKAGES = ("common", "DM", "DC", "TM")
SHIPPED = {".py", ".toml", ".html", ".typed"}


def can_build():
    """Whether a wheel can be built offline: setuptools before 71 took the package wheel for it."""
    if find_spec("pip") is None or find_spec("setuptools") is None:
        return False
    return find_spec("wheel") is not None or int(version("setuptools").partition(".")[0]) >= 71


pytestmark = pytest.mark.skipif(not can_build(), reason="building a wheel takes pip and setuptools 71 or newer")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, for a build leaves folders behind; nothing is downloaded."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = ["wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(built)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Where it is unpacked, as pip does with a wheel of Python alone."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


# One process for all, for each would import torch anew: the README's snippet, then commands one after another.
DRIVER = """
import runpy, sys
import common, DM, TM
from common.system import command, scripts

def run(module, *words):
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(f"{module} {words[0]} ended with {end.code or 0}", flush=True)

def of_the_source_tree(call):
    try:
        command.run_command(call)
    except SystemExit as end:
        print(f"it ended with {end.code}", flush=True)

QUICK = ["--model", "ConvNetD1W32", "--num_eval", "1", "--epoch_eval_train", "0", "--device", "cpu"]
FILE = "runs/DM/digits/ipc1/run/synset.safetensors"
runpy.run_path("snippet.py")
print("from", common.__file__, DM.__file__)
SHORT = ["--batch_real", "8", "--Iteration", "1", "--eval_it", "0", "--name", "run"]
run("DM.distill", "--dataset", "digits", *QUICK, *SHORT)
run("common.report", "show", FILE)
run("common.pretrained", "export", FILE, "--to", "folder:png", *QUICK[2:])
run("common.pretrained", "import", "png", "--dataset", "digits", "--output", "again.safetensors")
run("DM.evaluate", "--synset", "again.safetensors", *QUICK)
run("TM.distill", "--dataset", "digits", "--device", "cpu", "--Iteration", "1")
of_the_source_tree(lambda: scripts.run_script("demo.py"))
of_the_source_tree(lambda: scripts.load_script(scripts.VOXELS))
of_the_source_tree(lambda: scripts.Script("reproduce.py", []))
"""


@pytest.fixture(scope="module")
def done(installed, tmp_path_factory):
    """The driver's end, in a folder where only the installed package can be found."""
    folder, cache = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("cache")
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (folder / "snippet.py").write_text(f"{snippet}\nprint(images.shape)\n", encoding="utf-8")
    (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(installed), "FRED_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "driver.py"], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def test_it_has_the_version_of_the_code(wheel):
    assert wheel.name.startswith(f"fred_distillation-{__version__}-")


def test_it_holds_every_module_and_what_lies_beside(wheel):
    """Recipes, templates and py.typed among it, and nothing else but its own description."""
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.*")}
    there = {name for name in files if name.endswith(tuple(SHIPPED))}
    assert {"common/py.typed", "common/recipes/DM.toml", "common/recipes/ImageNet-abcde/TM.toml"} <= there
    assert "common/report/templates/run.html" in there
    assert found == there


def test_nothing_is_taken_from_the_checkout(done, installed):
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert f"from {installed / 'common' / '__init__.py'} {installed / 'DM' / '__init__.py'}" in done.stdout
    told = (done.stdout + done.stderr).replace(sys.executable, "python")  # whose environment may lie in the checkout
    assert str(ROOT) not in told


def test_the_snippet_of_the_readme_runs(done):
    assert "torch.Size([40, 1, 8, 8])" in done.stdout


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("DM.distill --dataset", "run/synset.safetensors ("),
        ("common.report show", "16 of 64 DCT coefficients"),
        ("common.pretrained export", "1 x ConvNetD1W32) as exported, 8 bits per channel"),
        ("common.pretrained import", "again.safetensors written"),
        ("DM.evaluate --synset", "bits per class"),
    ],
)
def test_commands_run_as_modules(done, command, told):
    """Recipes and templates are read from the package."""
    assert f"{command} ended with 0" in done.stdout, done.stderr
    assert told in done.stdout


def test_a_message_names_a_command_that_works_there(done):
    assert "TM.distill --dataset ended with 2" in done.stdout
    assert "python -m TM.buffer --dataset digits" in done.stderr


def test_what_needs_the_source_tree_says_so(done):
    assert done.stdout.count("it ended with 2") == 3
    for script in ("demo.py", "3D-MNIST/distill.py", "reproduce.py"):
        assert f"error: {script} is no part of the installed package: run this in a checkout" in done.stderr
