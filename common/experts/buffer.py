"""The experts of a buffer as trajectory matching uses them: two snapshots at a time, in an order of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.system.errors import InputError
from common.system.seeds import generator


class Expert(NamedTuple):
    """One trajectory, still on disk."""

    name: str  # its file, for messages
    epochs: int
    snapshot: Callable[[int], Tensor]  # epochs trained -> [P]


@dataclass(frozen=True)
class Buffer:
    """The experts of one folder; reading a pair reads no more than its two snapshots."""

    folder: Path
    experts: tuple[Expert, ...]
    digest: str
    """of what the experts are and how they were made, wherever they lie, and however many of them there are yet"""

    @property
    def names(self) -> tuple[str, ...]:
        """What tells the experts apart in any place: their names without the folder."""
        return tuple(expert.name.removeprefix(f"{self.folder}/") for expert in self.experts)

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def epochs(self) -> int:
        """Epochs that every expert has: snapshots 0 to `epochs` can be asked for."""
        return min(expert.epochs for expert in self.experts)

    def pair(self, expert: int, start: int, expert_epochs: int) -> tuple[Tensor, Tensor]:
        """(theta_0, theta_star): the weights after `start` and after `start + expert_epochs` epochs, each float32 [P].

        Both are on the CPU, in the order of network.parameters(). Raises IndexError for numbers that are not there, and
        InputError for weights that are not finite, do not move, or cannot be read.
        """
        if not (0 <= expert < len(self) and 0 <= start < start + expert_epochs <= self.epochs):
            raise IndexError(f"no epochs {start} to {start + expert_epochs} of expert {expert} in {self.folder}")
        chosen = self.experts[expert]
        pair = chosen.snapshot(start), chosen.snapshot(start + expert_epochs)
        for epoch, weights in zip((start, start + expert_epochs), pair, strict=True):
            if not weights.isfinite().all():
                raise InputError(
                    f"{chosen.name}: the weights after {epoch} epochs are not finite; remove it and train it anew"
                )
        if torch.equal(*pair):
            raise InputError(
                f"{chosen.name}: the weights after {start} and {start + expert_epochs} epochs are the same, and leave "
                "nothing to match; train it anew (the authors' buffer.py keeps only the last weights without a GPU)"
            )
        return pair


class ExpertOrder:
    """Which expert comes when: each once, in random order, before any comes again.

    A run keeps to the experts that it began with, however many are trained while it is stopped: `state_dict` is part of
    its checkpoints. max_experts: use the first so many. seed: of the run.
    """

    def __init__(self, buffer: Buffer, seed: int, max_experts: int | None = None) -> None:
        self._buffer, self._seed = buffer, seed
        self._experts = list(range(len(buffer)))[:max_experts]

    def __len__(self) -> int:
        return len(self._experts)

    def expert(self, position: int) -> int:
        """The number in the buffer of the expert that comes at this position, counted from 0."""
        order = torch.randperm(len(self), generator=generator(self._seed, "experts", position // len(self)))
        return self._experts[int(order[position % len(self)])]

    def as_metadata(self) -> dict[str, Any]:
        """For configuration and summary: how many experts are used, and of which buffer."""
        return {"experts": len(self), "buffer": self._buffer.digest}

    def check(self, metadata: dict[str, Any]) -> None:
        """Raises InputError where a run, by the metadata in its summary, has followed the experts of another buffer."""
        if metadata["buffer"] != self._buffer.digest:
            raise InputError(
                f"the run has followed other experts than those in {self._buffer.folder}: give the --buffer_path "
                "that it began with, another --name, or --resume never to start over"
            )

    def state_dict(self) -> dict[str, Any]:
        """The experts that are used, and of which buffer they are."""
        names = self._buffer.names
        return self.as_metadata() | {"names": [names[expert] for expert in self._experts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. Raises InputError for another buffer, and for one that lacks some of the experts."""
        self.check(state)
        places = {name: place for place, name in enumerate(self._buffer.names)}
        missing = [name for name in state["names"] if name not in places]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(state['names'])} experts that the run began with are missing in "
                f"{self._buffer.folder} ({missing[0]}{', ...' if len(missing) > 1 else ''}): train them with "
                "buffer.py as before, or give --resume never to start over"
            )
        self._experts = [places[name] for name in state["names"]]
