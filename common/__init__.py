"""FreD: dataset distillation in the frequency domain. The README gives an overview of the code.

The public names in `__all__` are imported on first use, so that importing one module of `common` does not import all
the others.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.datasets import load_dataset
    from common.networks import build_network
    from common.synset.file import load_synset, save_synset
    from common.synset.synset import SynSet
    from common.system.version import __version__ as __version__
    from common.training.evaluate import evaluate

__all__ = ["SynSet", "build_network", "evaluate", "load_dataset", "load_synset", "save_synset"]

_MODULES = {
    "SynSet": "common.synset.synset",
    "build_network": "common.networks",
    "evaluate": "common.training.evaluate",
    "load_dataset": "common.datasets",
    "load_synset": "common.synset.file",
    "save_synset": "common.synset.file",
    "__version__": "common.system.version",
}

_PACKAGES = {each.name for each in iter_modules(__path__)}

if not TYPE_CHECKING:  # a type checker would assume that a module with this function has every name

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return import_module(f"common.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
