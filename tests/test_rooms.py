"""The house stands as docs/design.md draws it: a room imports only rooms before it, and no room outgrows its walls."""

import ast
from itertools import groupby
from pathlib import Path

import pytest

from tests.conftest import ROOT

# In this order: a room may import itself and those before it. frequency is a module, `scripts` are the folders' own.
ROOMS = [
    "system", "datasets", "networks", "frequency", "synset", "matching", "recipes", "config", "report", "training",
    "costs", "runs", "pretrained", "DM", "DC", "TM", "3D-MNIST", "ImageNet-abcde", "corruption-exp", "reproduction",
]  # fmt: skip
FILES = sorted(path.relative_to(ROOT) for room in ("common", *ROOMS[ROOMS.index("DM") :]) for path in (ROOT / room).rglob("*.py"))
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
