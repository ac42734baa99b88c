"""Gives trajectory matching the experts of a buffer in random order, two snapshots of a trajectory at a time.

A buffer is a folder of expert trajectories. A snapshot is the weights of an expert after some number of epochs, as one
vector of the network's P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.system.errors import InputError
from common.system.seeds import generator
from common.system.text import counted


class Expert(NamedTuple):
    """One expert trajectory, which stays on disk until a snapshot is read."""

    name: str  # the file of the expert, for messages
    epochs: int  # the last snapshot
    snapshot: Callable[[int], Tensor]  # number of epochs trained -> weights [P]


@dataclass(frozen=True)
class Buffer:
    """The experts of one folder."""

    folder: Path
    experts: tuple[Expert, ...]
    digest: str
    """digest of what the experts are and how they were trained; neither the folder nor their number affects it"""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the experts without the folder, which stay the same if the folder is moved."""
        return tuple(expert.name.removeprefix(f"{self.folder}/") for expert in self.experts)

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def epochs(self) -> int:
        """The number of epochs that every expert has; snapshots 0 to `epochs` can be read."""
        return min(expert.epochs for expert in self.experts)

    def pair(self, expert: int, start: int, expert_epochs: int) -> tuple[Tensor, Tensor]:
        """Read (theta_0, theta_star), an expert's weights after `start` and after `start + expert_epochs` epochs.

        Each is float32 [P] on the CPU, in the order of network.parameters(). Only these two snapshots are read.
        Raises IndexError if the buffer lacks the expert or the epochs. Raises InputError if weights are not finite or
        cannot be read, or if both snapshots are equal.
        """
        if not (0 <= expert < len(self) and 0 <= start < start + expert_epochs <= self.epochs):
            raise IndexError(f"no epochs {start} to {start + expert_epochs} of expert {expert} in {self.folder}")
        chosen = self.experts[expert]
        pair = chosen.snapshot(start), chosen.snapshot(start + expert_epochs)
        for epoch, weights in zip((start, start + expert_epochs), pair, strict=True):
            if not weights.isfinite().all():
                raise InputError(
                    f"{chosen.name}: the weights after {counted(epoch, 'epoch')} are not finite; "
                    "remove it and train it again"
                )
        if torch.equal(*pair):
            raise InputError(
                f"{chosen.name}: the weights after {start} and {start + expert_epochs} epochs are the same, and leave "
                "nothing to match; train it again (the authors' buffer.py keeps only the last weights without a GPU)"
            )
        return pair


class ExpertOrder:
    """The random order in which a run uses experts: every expert is used once before any is used again.

    seed: the seed of the run. max_experts: use at most this many experts, the first ones of the buffer.
    A resumed run uses the same experts as before, even if more have been trained meanwhile: checkpoints contain the
    `state_dict` of this order.
    """

    def __init__(self, buffer: Buffer, seed: int, max_experts: int | None = None) -> None:
        self._buffer, self._seed = buffer, seed
        self._experts = list(range(len(buffer)))[:max_experts]

    def __len__(self) -> int:
        return len(self._experts)

    def expert(self, position: int) -> int:
        """The number (index in the buffer) of the expert at this position of the order, counted from 0."""
        order = torch.randperm(len(self), generator=generator(self._seed, "experts", position // len(self)))
        return self._experts[int(order[position % len(self)])]

    def as_metadata(self) -> dict[str, Any]:
        """The number of experts used and the digest of the buffer, for the configuration and summary of a run."""
        return {"experts": len(self), "buffer": self._buffer.digest}

    def check(self, metadata: dict[str, Any]) -> None:
        """Raise InputError if `metadata`, from `as_metadata` of a run, names another buffer."""
        if metadata["buffer"] != self._buffer.digest:
            raise InputError(
                f"the run has followed other experts than those in {self._buffer.folder}: give the --buffer_path "
                "that it began with, another --name, or --resume never to start over"
            )

    def state_dict(self) -> dict[str, Any]:
        """The names of the experts used, their number and the digest of the buffer, for a checkpoint."""
        names = self._buffer.names
        return self.as_metadata() | {"names": [names[expert] for expert in self._experts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`. Raises InputError if the buffer is another one or lacks some of the experts."""
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
