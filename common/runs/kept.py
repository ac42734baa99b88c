"""What a script gives to `Distillation.keep`: objects whose state is saved in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from common.system.errors import InputError
from common.system.files import can_be_stored

_NAMED = ("step_size", "source")  # the others are one entry of a checkpoint


class Kept(Protocol):
    """An object whose state is saved in every checkpoint, beside the synthetic set.

    The state consists of tensors, Python numbers, strings, None, and lists, tuples and dicts of these: a checkpoint is
    read without running code, so NumPy's values and objects of other classes cannot be in it.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Source(Kept, Protocol):
    """What an objective reads beside the images, e.g. expert trajectories. It has to stay the same during a run."""

    def as_metadata(self) -> dict[str, Any]:
        """The entries that describe this source in config.json and summary.json."""
        ...

    def check(self, metadata: dict[str, Any]) -> None:
        """Raises InputError if `metadata`, the summary of a finished run, describes another source than this one."""
        ...


def states_of(kept: Mapping[str, Kept]) -> dict[str, Any]:
    """The entries of a checkpoint for these objects. Raises TypeError for a state that no checkpoint can hold."""
    states = {name: each.state_dict() for name, each in kept.items()}
    for name, state in states.items():
        if not can_be_stored(state):
            raise TypeError(f"`keep` was given {name}, whose state a checkpoint cannot hold: see common.runs.kept.Kept")
    return {name: states.pop(name, None) for name in _NAMED} | {"others": states}


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
