"""Runs in float64, where a difference that a test looks for stands far above rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from common import SynSet
from common.datasets import ImageData
from common.experts.buffer import Buffer
from common.matching.step_size import StepSize


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, what distils and what trains experts computes in float64; files stay float32, as their formats say.

    Networks follow torch's default type. What asks for float32 whatever the default is patched here, on the classes
    themselves, so that it holds for whoever has imported them.
    """
    batch, gather, allocate = ImageData.batch, SynSet._gather, SynSet._allocate
    initialise, pair = StepSize.__init__, Buffer.pair

    def allocated(self: SynSet, *sizes: int) -> None:
        allocate(self, *sizes)
        self.coefficients.data = self.coefficients.data.double()  # their optimiser holds the tensor

    def exact(self: StepSize, initial: float, lr: float, device: torch.device) -> None:
        initialise(self, initial, lr, device)
        self.value.data = torch.tensor(initial, dtype=torch.float64, device=device)  # its optimiser holds the tensor

    def weights(self: Buffer, expert: int, start: int, expert_epochs: int) -> tuple[Tensor, Tensor]:
        theta, target = pair(self, expert, start, expert_epochs)
        return theta.double(), target.double()

    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageData, "batch", lambda self, indices: batch(self, indices).double())
        # Else the initial coefficients would be float64 in name only: transformed, and surveyed, in float32.
        patch.setattr(SynSet, "_gather", lambda self, images, rows: gather(self, images, rows).double())
        patch.setattr(SynSet, "_allocate", allocated)
        patch.setattr(StepSize, "__init__", exact)
        patch.setattr(Buffer, "pair", weights)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
