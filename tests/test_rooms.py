"""The house stands as docs/design.md draws it: a room imports only rooms before it, and no room outgrows its walls."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# In this order: a room may import itself and those before it. frequency is a module of its own, common/frequency.py.
ROOMS = [
    "system", "images", "datasets", "networks", "frequency", "synset", "matching", "recipes", "config", "report",
    "training", "experts", "robustness", "costs", "runs", "pretrained", "DM", "DC", "TM", "3D-MNIST", "ImageNet-abcde",
    "corruption-exp", "reproduction",
]  # fmt: skip
FOLDERS = ["common", *ROOMS[ROOMS.index("DM") :]]
FILES = sorted(path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PUBLIC = Path("common/__init__.py")  # resolves its names on first use


def room_of(module):
    """The room of a module such as common.system.files, "" for one that is none of ours."""
    first, _, rest = module.partition(".")
    room = rest.partition(".")[0] if first == "common" else first
    return room if room in ROOMS else ""


def imported(path):
    """Modules that a file imports, wherever in it: within functions and under TYPE_CHECKING, too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ([f"common.{each.name}" for each in node.names] if node.module == "common" else [node.module])


@pytest.mark.parametrize("path", [path for path in FILES if path != PUBLIC], ids=str)
def test_a_room_imports_only_rooms_before_it(path):
    own = path.parts[1].removesuffix(".py") if path.parts[0] == "common" else path.parts[0]
    upward = [each for each in imported(path) if room_of(each) and ROOMS.index(room_of(each)) > ROOMS.index(own)]
    assert not upward, f"{path} imports {', '.join(upward)}, which come after {own}"
    assert not any(word in (ROOT / path).read_text() for word in ("importlib.import_module", "__import__"))


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
