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
    that is not finite; returns the error to raise.
    """

    def __init__(self, record: Callable[[int, float], None], diverged: Callable[[str], Exception]) -> None:
        self.last: float | None = None
        """The last loss that was fetched; None before the first."""
        self._record, self._diverged = record, diverged
        self._of_updates: list[Tensor] = []  # of the current iteration
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Add the loss [] of an update to the current iteration."""
        self._of_updates.append(loss)

    def end_iteration(self) -> bool:
        """End the iteration. Returns whether it is time to call `look`; raises RuntimeError if there was no update."""
        if not self._of_updates:
            raise RuntimeError("The body of the loop has made no update: it ends with run.update(...).")
        self._waiting.append(torch.stack(self._of_updates).mean())
        self._of_updates.clear()
        return len(self._waiting) == LOOK_EVERY

    def look(self, iteration: int) -> None:
        """Fetch and record the losses of all iterations before `iteration`. Raises `diverged` if one is not finite."""
        if not self._waiting:
            return
        first = iteration - len(self._waiting)
        for index, loss in enumerate(torch.stack(self._waiting).tolist(), start=first):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of iteration {index} is {loss}")
            self._record(index, loss)
            self.last = loss
        self._waiting.clear()
