"""Weights of networks, counted and compared."""

from __future__ import annotations

import torch
from torch import nn


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in network.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
