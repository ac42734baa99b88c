"""Adam whose step is in units of each number's own spread."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ADAM_STEP = 0.03
"""The default step, in units of the spread."""
_BETAS = (0.9, 0.999)
_EPS = 1e-12  # relative to the largest gradient so far: Adam does not depend on the scale of the loss


class SpreadAdam(torch.optim.Optimizer):
    """Adam (Kingma and Ba, ICLR 2015) on one tensor; a step of `lr` moves a number by about lr times its spread.

    `set_spread` says what the spreads are; until then nothing moves. They are part of the state, as are the moments.
    """

    def __init__(self, parameter: Tensor, lr: float) -> None:
        super().__init__([parameter], {"lr": lr})

    @property
    def _parameter(self) -> Tensor:
        parameter: Tensor = self.param_groups[0]["params"][0]  # of a copy, its own
        return parameter

    def set_spread(self, spread: Tensor) -> None:
        """Begin anew, with these spreads, which broadcast against the tensor."""
        self.state.clear()
        self.state[self._parameter] = {
            "count": 0,
            "spread": spread.detach().clone(),
            "first": torch.zeros_like(self._parameter),
            "second": torch.zeros_like(self._parameter),
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step along the gradient, if there is one."""
        state, gradient = self.state[self._parameter], self._parameter.grad
        if gradient is None or not state:
            return
        state["count"] += 1
        first, second = state["first"], state["second"]
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        corrected = (second / (1 - _BETAS[1] ** state["count"])).sqrt_()
        corrected += _EPS * corrected.max() + torch.finfo(gradient.dtype).tiny
        direction = first / corrected / (1 - _BETAS[0] ** state["count"])
        self._parameter.sub_(direction * state["spread"], alpha=self.param_groups[0]["lr"])


def spread_of(coefficients: Tensor) -> Tensor:
    """The spread of each position over the images of its class, [C, 1, ...], of coefficients [C, n, ...].

    That is the standard deviation, but of a single image the magnitude, and at least 1e-3 of the largest of the class.
    """
    spread = coefficients.std(dim=1, keepdim=True, correction=0) if coefficients.shape[1] > 1 else coefficients.abs()
    return torch.maximum(spread, 1e-3 * spread.amax(dim=tuple(range(1, spread.ndim)), keepdim=True))
