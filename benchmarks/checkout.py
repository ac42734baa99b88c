"""Loads modules from a checkout of the authors' repository, sdh0818/FreD, and patches them in memory for today's torch.

Their folders hold modules of the same names (utils, networks), so each folder is loaded apart. Afterwards sys.modules
has none of them; whoever called `load_folder` holds them. Nothing in the checkout is changed, and nothing in torch.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from common.system.errors import InputError

URL = "https://github.com/sdh0818/FreD"
# The folders of the checkout that are measured, and the modules of each that hold the functions.
MODULES = {
    "DM": ("main_DM_FreD", "networks"),
    "DC": ("main_DC_FreD", "networks"),
    "TM": ("main_TM_FreD", "networks"),
}
_EVERYWHERE = (
    (re.compile(rb"scipy\.ndimage\.interpolation"), b"scipy.ndimage"),  # moved in SciPy 1.8
    (re.compile(rb"\.view\("), b".reshape("),  # decoded images are not contiguous, nor is what layers make of them
)
_WITHOUT_GPU = ((re.compile(rb"\.cuda\(\)"), b""),)


def check_checkout(path: str | None) -> Path:
    """The folder of the checkout. Raises InputError if none was given, or if its modules are not there."""
    if path is None:
        raise InputError(f"there is nothing to compare with: give --authors the folder of a checkout of {URL}")
    for folder, names in MODULES.items():
        for name in names:
            if not (Path(path) / folder / f"{name}.py").is_file():
                raise InputError(
                    f"--authors {path} has no {folder}/{name}.py: give the folder of a checkout of {URL} instead"
                )
    return Path(path)


def load_checkout(path: Path, gpu: bool) -> dict[str, dict[str, Any]]:
    """For each folder of MODULES, the names that its modules define or import. gpu: whether there is a CUDA GPU."""
    found = {}
    for folder, names in MODULES.items():
        modules = load_folder(path / folder, names, gpu)
        found[folder] = {name: value for module in reversed(modules) for name, value in vars(module).items()}
    return found


def load_folder(folder: Path, names: Sequence[str], gpu: bool = False) -> list[ModuleType]:
    """Import the modules `names` of a folder, whose own imports are looked up in that folder first.

    sys.modules, sys.meta_path, the warning filters and the environment are then as they were, except that libraries
    which the modules import stay in sys.modules. gpu: False removes calls of `.cuda()`.
    """
    own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    with _without(own), _environment(), warnings.catch_warnings():
        finder = _Finder(folder, gpu)
        sys.meta_path.insert(0, finder)
        try:
            return [importlib.import_module(name) for name in names]
        finally:
            sys.meta_path.remove(finder)


@contextmanager
def _without(names: set[str]) -> Iterator[None]:
    """Hide the top-level modules `names` and what they contain; afterwards put back exactly those that were there."""

    def take_out() -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}

    hidden = take_out()
    try:
        yield
    finally:
        take_out()
        sys.modules.update(hidden)


@contextmanager
def _environment() -> Iterator[None]:
    """Restore the environment afterwards: the authors' scripts set CUDA_DEVICE_ORDER when they are imported."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class _Finder:
    """Finds modules in one folder, and submodules in the folders of its packages."""

    def __init__(self, folder: Path, gpu: bool) -> None:
        self._folder = folder
        self._loader = _Patched if gpu else _PatchedWithoutGPU

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module in the folder, or the submodule in a package of the folder; None for what other finders find."""
        inside = [self._folder] if path is None else [Path(each) for each in path]
        if not all(each.is_relative_to(self._folder) for each in inside):
            return None  # a submodule of a library
        specs = (FileFinder(str(each), (self._loader, [".py"])).find_spec(name) for each in inside)
        return next((spec for spec in specs if spec is not None and spec.loader is not None), None)


class _Patched(SourceFileLoader):
    """Compiles a module from its patched text. It reads and writes no bytecode beside the text."""

    patches: tuple[tuple[re.Pattern[bytes], bytes], ...] = _EVERYWHERE

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        text = self.get_data(path)
        for pattern, replacement in self.patches:
            text = pattern.sub(replacement, text)
        return self.source_to_code(text, path)


class _PatchedWithoutGPU(_Patched):
    """Also leaves out calls of `.cuda()`."""

    patches = (*_EVERYWHERE, *_WITHOUT_GPU)
