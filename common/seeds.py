"""Randomness as a function of (seed, purpose, numbers): the one place where seeds are made.

Nothing in this project reads or advances a random state that lives longer than one draw, so a resumed run draws
what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "network", iteration)`; distinct arguments give unrelated seeds."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A fresh CPU generator for one purpose. Draws are made on the CPU so that every device sees the same ones."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))


@contextmanager
def forked_rng(seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """For what insists on the global random state (layer initialisation, dropout): seeds it, restores it afterwards."""
    device = torch.device(device)
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(derive(seed, purpose, *numbers))
        yield
