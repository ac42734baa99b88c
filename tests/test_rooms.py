"""The house stands as docs/design.md draws it: a room imports only rooms before it, and no room outgrows its walls."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.imports import imported

# In this order: a room may import itself and those before it. frequency is a module of its own, common/frequency.py.
ROOMS = [
    "system", "disk", "schemas", "images", "datasets", "networks", "frequency", "codec", "synset", "matching",
    "recipes", "terminal", "config", "report", "training", "gallery", "experts", "robustness", "costs", "runs",
    "preview", "pretrained", "DM", "DC", "TM", "3D-MNIST", "ImageNet-abcde", "corruption-exp", "reproduction", "kit",
]  # fmt: skip
FOLDERS = ["common", *ROOMS[ROOMS.index("DM") :]]
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PUBLIC = Path("common/__init__.py")  # resolves its names on first use


# They import by a path: the one module that knows where scripts lie, and the tables of all scripts.
MAY_LOAD = {Path("common/system/scripts.py"), Path("reproduction/programs.py")}
LOADERS = {
    "import_module", "__import__", "eval", "exec", "run_path", "run_module", "spec_from_file_location",
    "module_from_spec", "exec_module", "load_module", "load_script", "resolve_name", "locate", "modules",
}  # fmt: skip
LOADING = {"importlib", "importlib.util", "importlib.machinery", "pkgutil", "runpy", "pydoc", "builtins", "imp"}


def ways_round(tree):
    """What a file does to import what no import statement of its own names."""
    found, imports = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports.add(node.module or ".")  # "." is a relative import
            found |= {each.name for each in node.names if each.name in LOADERS}
        elif isinstance(node, ast.Name) and node.id in LOADERS and node.id != "modules":
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            name = spelt(node, {"common": "common", "sys": "sys", "torch": ""})
            # `import common.system.files` and then common.runs: the package resolves its rooms by itself.
            known = any(f"{name}.".startswith(f"{each}.") or each.startswith(name) for each in imports)
            if name.startswith("common.") and not known:
                found.add(name)
            if node.attr in LOADERS - {"modules", "eval"}:
                found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & (LOADERS - {"modules", "eval", "locate"})
            found |= {node.value} if re.fullmatch(r"common(\.\w+)+", node.value) else set()
    return found | (imports & (LOADING | {"."}))


def is_ours(module):
    first = module.partition(".")[0]
    return (ROOT / first).is_dir() or (ROOT / f"{first}.py").exists()


def room_of(module):
    """The room of a module such as common.system.files, "" for one that is none of ours."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0] if first == "common" else first
    return room if room in ROOMS else ""


@pytest.mark.parametrize("path", [path for path in FILES if path != PUBLIC], ids=str)
def test_a_room_imports_only_rooms_before_it(path):
    own = path.parts[1].removesuffix(".py") if path.parts[0] == "common" else path.parts[0]
    found = list(imported(path))
    assert not [each for each in found if each.startswith("common") and not room_of(each)], "import it from its room"
    # What starts a room as a program is imported by nothing, and may offer what rooms of common after it do.
    highest = "pretrained" if path.name == "__main__.py" else own
    upward = [each for each in found if room_of(each) and ROOMS.index(room_of(each)) > ROOMS.index(highest)]
    assert not upward, f"{path} imports {', '.join(upward)}, which come after {own}"
    assert not [each for each in found if is_ours(each) and not room_of(each)], "no room imports scripts or tests"
    if path not in MAY_LOAD:
        assert not ways_round(ast.parse((ROOT / path).read_text())), "an import is a statement"


@pytest.mark.parametrize(
    "code",
    [
        "from importlib import import_module as load",
        "import importlib as i\ni.import_module('x')",
        "import runpy\nrunpy.run_path('x.py')",
        "from importlib.util import spec_from_file_location",
        "from common.system.scripts import load_script",
        "module = __import__('x')",
        "import importlib",
        "from importlib.util import find_spec",
        "import pkgutil",
        "from pydoc import locate",
        "eval('1')",
        "import sys\nsys.modules['common.runs.loop']",
        "name = 'common.runs.loop'",
        "getattr(x, 'import_module')('y')",
        "loader.exec_module(x)",
        "import common.system.errors\ncommon.runs",
        "import common.system.errors\ncommon.evaluate",
        "from .. import runs",
    ],
)
def test_ways_round_an_import_are_seen(code):
    assert ways_round(ast.parse(code))


def test_plain_imports_are_no_way_round():
    code = "import sys, importlib.metadata, common.system.start\nfrom common import recipes\nnet.eval(), x.modules()"
    assert not ways_round(ast.parse(f"{code}\ncommon.system.start.x, sys.argv, 'run_page'"))


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=str)
def test_a_room_is_seen_at_a_glance(room):
    """At most 12 modules and 2,500 lines, the room's own __init__.py aside."""
    modules = [path for path in FILES if path.parent == room and path.name != "__init__.py"]
    lines = sum(len((ROOT / path).read_text().splitlines()) for path in modules)
    assert len(modules) <= 12
    assert lines <= 2500


def test_no_module_imports_itself_in_the_end():
    """Within a room, too, imports have an order."""
    names = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in FILES if path != PUBLIC}
    after: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse((ROOT / path).read_text())
        found = set(imported(path))
        for node in ast.walk(tree):  # from a package come modules, or names of its __init__
            if isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{each.name}" for each in node.names}
        after[name] = {each for each in found if each in names and each != name}
        # A package whose module is imported is imported first; what an __init__ gathers from its room is no circle.
        after[name] -= {name.rpartition(".")[0]}
    while leaves := [name for name, needs in after.items() if not needs & after.keys()]:
        for name in leaves:
            del after[name]
    assert not after, f"imports run in a circle among {', '.join(after)}"


# -- the tests themselves ------------------------------------------------------------------------------------------

TESTS = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").glob("*.py"))
OURS = {path.parts[0] for path in FILES}
# A file test_x.py may use private names of the modules and rooms called x; these may use those of another name.
TESTED = {
    "test_packed_runs": "setup",  # tried numbers of images
    "test_one_process": "common.system.parallel",
    "test_run_folder": "common.runs.folder",
    "in_float64": "common.SynSet",  # no test: it patches where a set makes real images float32
}


def private_names(tree):
    """Private names of our modules that a file reaches for, such as common.runs.folder._read_checkpoint.

    By an import, an attribute, or the string that setattr and getattr take. What a variable holds cannot be told here.
    """
    names = {}  # what each name of the file stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            firsts = {each.name.partition(".")[0] for each in node.names if not each.asname}
            names |= {first: first for first in firsts} | {each.asname: each.name for each in node.names if each.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    reached = set(names.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            reached.add(spelt(node, names))
        elif isinstance(node, ast.Call):
            texts = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            reached |= {*texts, *(f"{spelt(node.args[0], names)}.{each}" for each in texts)}
    return {name for name in reached if name.split(".")[0] in OURS and re.fullmatch(r"[\w.-]+\._[a-z]\w*", name, re.I)}


def spelt(node, names):
    """The dotted name that an expression begins with, calls left out, its first part as `names` has it."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute):
        return f"{spelt(node.value, names)}.{node.attr}"
    return spelt(node.func, names) if isinstance(node, ast.Call) else ""


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_tests_import_helpers_not_tests(path):
    found = set(imported(path))
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{each.name}" for each in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # code for another process
            found |= set(re.findall(r"^(?:from|import) (tests\.\w+)", node.value, re.M))
    assert not [each for each in found if each.startswith("tests.test_")]


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_tests_use_public_names_but_for_the_module_that_they_test(path):
    own = TESTED.get(path.stem, path.stem.removeprefix("test_"))
    for name in private_names(ast.parse((ROOT / path).read_text())):
        module = name.partition("._")[0]
        assert f".{own}." in f".{module}.", f"{path} reaches for {name}"


def test_private_names_are_seen_however_they_are_reached():
    code = """
import common.runs.folder
from common.system import parallel
from common.system.files import _write as write
from reproduction import sweep
from reproduction.jobs import CellJob
common.runs.folder._read(parallel._count(3))
CellJob(1)._held()
monkeypatch.setattr(sweep, "_POLL", 0)
monkeypatch.setattr("common.runs.loop._SHARE", 0)
pickle._Pickler, self._lock, parallel.__name__, parallel.rank
"""
    assert private_names(ast.parse(code)) == {
        "common.runs.folder._read", "common.system.parallel._count", "common.system.files._write",
        "reproduction.sweep._POLL", "reproduction.jobs.CellJob._held", "common.runs.loop._SHARE",
    }  # fmt: skip
