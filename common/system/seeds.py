"""Randomness as a function of (seed, purpose, numbers): the one place where seeds are made.

Nothing in this project reads or advances a random state that lives longer than one draw, so a resumed run draws
what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "network", iteration)`; other arguments give an unrelated one."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A fresh CPU generator for one purpose. Draws are made on the CPU so that every device sees the same ones."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))


@dataclass(frozen=True)
class Draws:
    """The random draws of one update: for each purpose those of (seed, purpose, numbers), whoever asks, and when."""

    base: int
    """The run's seed."""
    numbers: tuple[int, ...]
    """What tells the update apart: its iteration, and more where an iteration has several."""

    def seed(self, purpose: str) -> int:
        """A 63-bit seed for one purpose."""
        return derive(self.base, purpose, *self.numbers)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator for one purpose."""
        return generator(self.base, purpose, *self.numbers)


@contextmanager
def seeded(network: nn.Module, seed: int, purpose: str, *numbers: int) -> Iterator[None]:
    """Torch's global generators, which dropout insists on, as a function of one purpose; afterwards as they were.

    That of the CPU, and that of the GPU where the network is.
    """
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Not torch.manual_seed, which would reseed the other GPUs' generators as well.
        torch.default_generator.manual_seed(derive(seed, purpose, *numbers))
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(derive(seed, purpose, *numbers))
        yield
