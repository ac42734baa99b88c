"""The learned step size: trajectory matching learns it together with the images (Cazenavette et al., CVPR 2022)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.5
LEAST = 0.001  # lower bound of the step size, as in the authors' code


class StepSize:
    """A positive step size learned by SGD with momentum: `value` is a float32 scalar on the device of the run.

    initial: the initial value (lr_teacher). lr: the learning rate with which the step size is learned (lr_lr).
    """

    def __init__(self, initial: float, lr: float, device: torch.device) -> None:
        self.initial, self.lr = initial, lr
        self.value = torch.tensor(initial, dtype=torch.float32, device=device)
        self._optimizer = torch.optim.SGD([self.value], lr=lr, momentum=MOMENTUM)

    def update(self, gradient: Tensor) -> None:
        """Take one SGD step against the gradient (a scalar) of the loss; values below `LEAST` are raised to it."""
        self.value.grad = gradient.detach()
        self._optimizer.step()
        self.value.clamp_(min=LEAST)

    def state_dict(self) -> dict[str, Any]:
        """Return the value and its momentum, so that a run can resume bit for bit."""
        return {"value": self.value.clone(), "optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.value.copy_(state["value"])
        self._optimizer.load_state_dict(state["optimizer"])
