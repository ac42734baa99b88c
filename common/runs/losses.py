"""The losses of a run. They stay on the device and are fetched a few at a time, checked to be finite, and recorded."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOOK_EVERY = 10  # iterations between two fetches, each of which waits for the device


class Losses:
    """The losses of the iterations. The loss of an iteration is the mean over its updates.

    record: called with (iteration, loss) for each fetched loss, in order. diverged: called with a sentence about a loss
    that is not finite; returns the error to raise. network_diverged: the same for a network that updates train.
    """

    def __init__(
        self,
        record: Callable[[int, float], None],
        diverged: Callable[[str], Exception],
        network_diverged: Callable[[str], Exception],
    ) -> None:
        self.last: float | None = None
        """The last loss that was fetched; None before the first."""
        self._record, self._diverged, self._network_diverged = record, diverged, network_diverged
        self._of_updates: list[Tensor] = []  # of the current iteration
        self._waiting: list[Tensor] = []
        self._networks: list[Tensor] = []  # of the iteration under way: whether what was trained is finite
        self._networks_waiting: dict[int, Tensor] = {}  # the same for each iteration of `_waiting`, by its place there

    def add(self, loss: Tensor) -> None:
        """Add the loss [] of an update to the current iteration."""
        self._of_updates.append(loss)

    def expect(self, finite: Tensor) -> None:
        """A network was trained between updates; `finite`, bool [], says whether its weights are, as they should be."""
        self._networks.append(finite)

    def end_iteration(self) -> bool:
        """End the iteration. Returns whether it is time to call `look`; raises RuntimeError if there was no update."""
        if not self._of_updates:
            raise RuntimeError("The body of the loop has made no update: it ends with run.update(...).")
        if self._networks:
            self._networks_waiting[len(self._waiting)] = torch.stack(self._networks).all()
            self._networks.clear()
        self._waiting.append(torch.stack(self._of_updates).mean())
        self._of_updates.clear()
        return len(self._waiting) == LOOK_EVERY

    def look(self, iteration: int) -> None:
        """Fetch and record the losses of iterations before `iteration`. Raises the error of the first that diverged."""
        if not self._waiting:
            return
        first = iteration - len(self._waiting)
        diverged: set[int] = set()
        if self._networks_waiting:
            finite = torch.stack(list(self._networks_waiting.values())).tolist()
            diverged = {place for place, each in zip(self._networks_waiting, finite, strict=True) if not each}
        for index, loss in enumerate(torch.stack(self._waiting).tolist(), start=first):
            if index - first in diverged:
                raise self._network_diverged(f"the network that iteration {index} trains is not finite")
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of iteration {index} is {loss}")
            self._record(index, loss)
            self.last = loss
        self._waiting.clear()
        self._networks_waiting.clear()
