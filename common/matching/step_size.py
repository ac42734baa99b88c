"""The step size that trajectory matching learns together with the images (Cazenavette et al., CVPR 2022)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.5
LEAST = 0.001  # the authors' floor


class StepSize:
    """A positive scalar learned by SGD with momentum: `value` float32 [], on the device of the run.

    initial: where it starts (lr_teacher). lr: step size of its own updates (lr_lr).
    """

    def __init__(self, initial: float, lr: float, device: torch.device) -> None:
        self.initial, self.lr = initial, lr
        self.value = torch.tensor(initial, dtype=torch.float32, device=device)
        self._optimizer = torch.optim.SGD([self.value], lr=lr, momentum=MOMENTUM)

    def update(self, gradient: Tensor) -> None:
        """One step against the gradient [] of the loss; the result is never below `LEAST`."""
        self.value.grad = gradient.detach()
        self._optimizer.step()
        self.value.clamp_(min=LEAST)

    def state_dict(self) -> dict[str, Any]:
        """The value and its momentum: what a run needs to continue bit for bit."""
        return {"value": self.value.clone(), "optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.value.copy_(state["value"])
        self._optimizer.load_state_dict(state["optimizer"])
