"""What others build on: names to import and flags of the commands, and that importing them changes nothing else.

tests/public_names.txt lists them. After adding one: `python -m tests.test_public` writes the list anew.
"""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest
import torch

import common
import common.matching
import common.synset
from common import recipes
from common.system.devices import peak_memory
from tests.command_line import COMMANDS, shown
from tests.conftest import ROOT
from tests.imports import imported

LIST = ROOT / "tests" / "public_names.txt"


# -- the list ------------------------------------------------------------------------------------------------------


def names():
    """Every public name as it is imported: those of `common`, and functions and classes of the algorithm's modules."""
    found = [f"{package.__name__}.{name}" for package in (common, common.synset) for name in package.__all__]
    matching = [f"common.matching.{each.name}" for each in pkgutil.iter_modules(common.matching.__path__)]
    for module in map(importlib.import_module, ["common.frequency", *matching]):
        for name, value in vars(module).items():
            own = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
            if own and not name.startswith("_"):
                found.append(f"{module.__name__}.{name}")
    return sorted(found)


def flags(command):
    """`command --flag` for every flag that the command's help explains, and those of its subcommands."""
    text = shown(command)
    for line in text.splitlines():
        if re.match(r"[│ ] --", line):  # the text on a flag, two spaces further, may name others
            told = re.split(r"\s{2,}", line.strip("│ "))[0]
            yield from (f"{command} {flag}" for flag in re.findall(r"(?:^|, )(--\w+)", told))
    for subcommand in re.findall(r"^[│ ]\s+• (\w+)", text, re.MULTILINE):
        yield f"{command} {subcommand}"
        yield from flags(f"{command} {subcommand}")


def everything():
    """The lines of the list, in its order."""
    return [*names(), *(line for command in COMMANDS for line in flags(command))]


def test_names_and_flags_are_those_of_the_list():
    listed, found = set(LIST.read_text(encoding="utf-8").splitlines()), set(everything())
    assert not listed - found, "these are gone, and somebody may use them"
    assert not found - listed, "new ones belong in the list: python -m tests.test_public writes it anew"


# -- the package ---------------------------------------------------------------------------------------------------

PACKAGES = ("common", "reproduction", "DM", "DC", "TM")
PROJECT = recipes.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAMED_OTHERWISE = {
    "PIL": "pillow",
    "pydantic_core": "pydantic",
    "pywt": "pywavelets",
    "sklearn": "scikit-learn",
}  # by what is imported
EXTRAS = ("datasets", "gdown", "huggingface_hub", "pyarrow", "submitit", "tensorboard", "wandb")


def test_what_the_package_imports_it_depends_on():
    """What the extras bring is imported within functions, under a sentence that names the extra."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = {module.partition(".")[0] for path in files for module in imported(path)}
    others = names - {*PACKAGES, *sys.stdlib_module_names, *EXTRAS, "tomli"}
    stated = {re.split(r"[>; ]", each)[0].lower() for each in PROJECT["project"]["dependencies"]}
    assert stated - {"tomli"} == {NAMED_OTHERWISE.get(name, name) for name in others}
    extras = PROJECT["project"]["optional-dependencies"]
    brought = {each.partition(">")[0] for name in ("trackers", "clusters", "hub", "authors") for each in extras[name]}
    assert brought == set(EXTRAS)


def test_what_is_shipped_needs_no_checkout():
    """reproduction/ loads the scripts of folders that no wheel can have, such as ImageNet-abcde."""
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    shipped = {path.parent for path in ROOT.glob("*/__init__.py") if any(map(path.parent.match, patterns))}
    assert {path.name for path in shipped} == {"common", "DM", "DC", "TM"}
    files = {path for folder in shipped for path in folder.rglob("*.py")} - {ROOT / "common/system/scripts.py"}
    assert not [path for path in files if "load_script" in path.read_text(encoding="utf-8")]


def test_files_beside_modules_are_shipped():
    """In a wheel, too. run.sh is for the scripts of the checkout."""
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        there = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
        shipped = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
        assert there - shipped <= {ROOT / "common/run.sh"}
        assert all(list((ROOT / package).glob(pattern)) for pattern in patterns)


# -- importing -----------------------------------------------------------------------------------------------------

EVERYTHING = """
import importlib, pkgutil
import common.training.evaluate
for name in common.__all__:
    assert callable(getattr(common, name))
for each in pkgutil.walk_packages(common.__path__, "common."):
    importlib.import_module(each.name)
"""


def run(code):
    """Run code, which must not fail, in a Python of its own and from another folder than this one."""
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT / "docs")
    assert done.returncode == 0, done.stderr


def test_names_are_resolved_on_first_use():
    """Importing a module of a low room loads none of those above it, and dir() knows the names all the same."""
    run("""
import common.system.errors
assert not {"torch", "common.datasets", "common.synset"} & sys.modules.keys()
assert set(common.__all__) <= set(dir(common))
""")
    run("import common\nassert common.frequency.dct and common.synset.SynSet")
    assert common.SynSet is common.synset.SynSet
    with pytest.raises(AttributeError, match="module 'common' has no attribute 'Synset'"):
        _ = common.Synset
    with pytest.raises(ImportError, match="cannot import name 'Synset'"):
        from common import Synset  # noqa: F401


# Importing these takes time, so a command does it when it needs them. tyro reads the command line, tqdm is small.
LATER = {"h5py", "jinja2", "kornia", "matplotlib", "safetensors", "scipy", "torchvision", "filelock", "triton"}
LATER |= {*NAMED_OTHERWISE, *EXTRAS, "torch._dynamo"}
# Modules that torch and numpy load themselves are no concern of ours.
LOADED = f"""
import numpy, torch
before = set(sys.modules)

def check_loaded(by):
    loaded = {LATER} & (sys.modules.keys() - before)
    assert not loaded, f"{{by}} loads {{', '.join(loaded)}}"
"""


def test_nothing_but_torch_and_numpy_is_imported_before_it_is_needed():
    run(f"""{LOADED}
import common
for name in common.__all__:
    getattr(common, name)
    check_loaded(f"common.{{name}}")
""")


def test_help_is_shown_before_other_libraries_are_imported():
    scripts = [re.sub(r"^-m (\S+)", lambda m: f"{m[1].replace('.', '/')}/__main__.py", each) for each in COMMANDS]
    run(f"""{LOADED}
import contextlib, io, runpy
for command in {scripts}:
    words = command.split()
    sys.argv = [*words, "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
        runpy.run_path({str(ROOT)!r} + "/" + words[0], run_name="__main__")
    assert "usage" in shown.getvalue()
    check_loaded(command)
""")


def test_everything_is_imported_where_modules_of_unix_are_missing():
    """As on Windows, where there is neither; and without what the extras bring."""
    run(f"sys.modules.update(dict.fromkeys({('fcntl', 'resource', *EXTRAS)}))\n{EVERYTHING}")


def test_peak_memory_is_unknown_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) == {"cpu": None}


def test_importing_changes_nothing_in_its_host():
    """Other libraries come first: what they change is theirs."""
    run(f"""
import locale, logging, multiprocessing, os, random, signal, threading, warnings
import filelock, h5py, jinja2, kornia, matplotlib, matplotlib.figure, numpy, PIL.Image, pywt, safetensors.torch
import scipy.fft, sklearn.datasets, torch, torch.distributed, torchvision, tqdm, tyro

def state():
    backends = torch.backends
    root = logging.getLogger()
    return {{
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "signals": {{number: signal.getsignal(number) for number in signal.valid_signals()}},
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "recursion": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
        "logging": (root.level, list(root.handlers), logging.root.manager.disable),
        "processes": multiprocessing.get_start_method(allow_none=True),
        "threads": {{each.name for each in threading.enumerate()}},
        "random": random.getstate(),
        "numpy": (numpy.random.get_state()[1].tolist(), numpy.geterr(), numpy.get_printoptions()),
        "torch random": torch.get_rng_state().tolist(),
        "torch": (
            torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
            torch.get_num_interop_threads(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(), torch.multiprocessing.get_sharing_strategy(),
            backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_tf32, backends.mkldnn.enabled,
        ),
        "matplotlib": (matplotlib.rcParams.copy(), matplotlib.get_backend(auto_select=False)),
        "PIL": PIL.Image.MAX_IMAGE_PIXELS,
    }}

before = state()
{EVERYTHING}
after = state()
differ = [key for key in before if before[key] != after[key]]
assert not differ, {{key: (before[key], after[key]) for key in differ}}
assert "matplotlib.pyplot" not in sys.modules  # which would choose a backend
""")


if __name__ == "__main__":
    LIST.write_text("".join(f"{each}\n" for each in everything()), encoding="utf-8")
    print(f"wrote {LIST.relative_to(ROOT)}")
