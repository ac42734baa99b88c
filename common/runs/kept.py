"""What a script gives to `Distillation.keep`: objects whose state is saved in every checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from common.matching.step_size import StepSize
from common.system.errors import InputError

_NAMED = ("step_size", "source")  # the others are one entry of a checkpoint
# What torch.load reads without running code; of a subclass, such as NumPy's float64, it does not.
_PLAIN = {type(None), bool, int, float, str, bytes, Tensor, nn.Parameter, torch.dtype, torch.device, torch.Size}
_DEEPEST = 100  # containers within each other


@runtime_checkable
class Kept(Protocol):
    """An object whose state is saved in every checkpoint, beside the synthetic set.

    The state consists of tensors, Python numbers, text, None, and lists, tuples and dicts of these: a checkpoint is
    read without running code, so NumPy's values and objects of other classes cannot be in it. The state as a whole is
    not None.
    """

    def state_dict(self) -> dict[str, Any]:
        """The state, which may be changed afterwards."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state from a checkpoint, whose tensors are on the CPU."""
        ...


@runtime_checkable
class Source(Kept, Protocol):
    """What an objective reads beside the images, e.g. expert trajectories. It has to stay the same during a run."""

    def as_metadata(self) -> dict[str, Any]:
        """The entries that describe this source in config.json and summary.json."""
        ...

    def check(self, metadata: dict[str, Any]) -> None:
        """Raises InputError if `metadata`, the summary of a finished run, describes another source than this one."""
        ...


def checked(given: Mapping[str, Kept | None]) -> dict[str, Kept]:
    """The objects given to `keep`, without None. Raises TypeError for one that cannot be kept under its name."""
    kinds = {"step_size": (StepSize, "a StepSize"), "source": (Source, "a common.runs.kept.Source")}
    for name, each in given.items():
        kind, called = kinds.get(name, (Kept, "an object with state_dict and load_state_dict"))
        if not (isinstance(each, kind) or (each is None and name in kinds)):
            raise TypeError(f"`keep` was given {described(each)} as {name}: give {called}")
    return {name: each for name, each in given.items() if each is not None}


def described(value: object) -> str:
    """A value in a few words, for an error: "a float", "a tensor [3] of int64"."""
    if isinstance(value, Tensor):
        graph = " with a graph" if value.requires_grad else ""
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}{graph}"
    return f"a {type(value).__name__}"


def states_of(kept: Mapping[str, Kept]) -> dict[str, Any]:
    """The entries of a checkpoint for these objects. Raises TypeError for a state that no checkpoint can hold."""
    states = {name: each.state_dict() for name, each in kept.items()}
    for name, state in states.items():
        if state is None or not _is_plain(state):
            raise TypeError(
                f"the state of {name}, which `keep` was given, cannot be saved: see common.runs.kept.Kept; "
                "the checkpoint before this one is kept"
            )
    return {name: states.pop(name, None) for name in _NAMED} | {"others": states}


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a checkpoint can hold a value."""
    if type(value) in (dict, OrderedDict):
        value = [*value.keys(), *value.values()]
    if type(value) in (list, tuple):
        return depth < _DEEPEST and all(_is_plain(each, depth + 1) for each in value)
    return type(value) in _PLAIN


def stored_states(checkpoint: Mapping[str, Any], kept: Mapping[str, Kept], folder: Path) -> dict[str, Any]:
    """The states in a checkpoint from `folder`, by name. Raises InputError unless they are those of `kept`."""
    states = {name: checkpoint[name] for name in _NAMED if checkpoint[name] is not None}
    states |= checkpoint.get("others", {})
    for name in sorted(states.keys() ^ kept.keys()):
        told = f"has no {name}, which the script gives" if name in kept else f"has {name}, which the script must give"
        raise InputError(
            f"the checkpoint in {folder} {told} to `keep`: give another --name, or --resume never to start over"
        )
    return states
