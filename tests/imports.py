"""What files import, read from their text."""

import ast

from tests.conftest import ROOT


def imported(path):
    """Modules that a file imports, wherever in it: within functions and under TYPE_CHECKING, too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or "."  # of a relative import
            yield from ([f"common.{each.name}" for each in node.names] if module == "common" else [module])
