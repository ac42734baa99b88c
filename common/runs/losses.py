"""The losses of a run: left on the device, fetched a few at a time, recorded, and refused when they are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOOK_EVERY = 10  # iterations; looking waits for the device


class Losses:
    """Losses of iterations, each the mean of its updates' losses.

    record: called with (iteration, loss) for each loss, in order, when it is fetched. diverged: makes the error for a
    sentence about a loss that is not finite.
    """

    def __init__(self, record: Callable[[int, float], None], diverged: Callable[[str], Exception]) -> None:
        self.last: float | None = None
        """The last one that was fetched."""
        self._record, self._diverged = record, diverged
        self._of_updates: list[Tensor] = []  # of the iteration under way
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """The loss [] of an update."""
        self._of_updates.append(loss)

    def end_iteration(self) -> bool:
        """The updates so far were an iteration; whether it is time to look. Raises RuntimeError if there were none."""
        if not self._of_updates:
            raise RuntimeError("The body of the loop has made no update: it ends with run.update(...).")
        self._waiting.append(torch.stack(self._of_updates).mean())
        self._of_updates.clear()
        return len(self._waiting) == LOOK_EVERY

    def look(self, iteration: int) -> None:
        """Fetch and record the losses up to this iteration; raises `diverged` for one that is not finite."""
        if not self._waiting:
            return
        first = iteration - len(self._waiting)
        for index, loss in enumerate(torch.stack(self._waiting).tolist(), start=first):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of iteration {index} is {loss}")
            self._record(index, loss)
            self.last = loss
        self._waiting.clear()
