"""Derives every seed of the project from (seed, purpose, numbers); no other module makes seeds.

Nothing in this project reads or advances a random state that outlives one draw. So a resumed run draws the same
numbers as an uninterrupted run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "network", iteration)`.

    Different arguments give unrelated seeds.
    """
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A fresh CPU generator for one purpose. Draws are made on the CPU so that they are the same for every device."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))


@dataclass(frozen=True)
class Draws:
    """The random draws of one update.

    The draws for a purpose depend only on (base, purpose, numbers), not on which code draws them, or when. A purpose is
    any text, such as "network": different texts give unrelated draws, and the same text gives the same.
    """

    base: int
    """The run's seed."""
    numbers: tuple[int, ...]
    """The numbers that identify the update: its iteration, and further ones if an iteration has several updates."""

    def seed(self, purpose: str) -> int:
        """A 63-bit seed for one purpose of this update."""
        return derive(self.base, purpose, *self.numbers)

    def generator(self, purpose: str) -> torch.Generator:
        """A fresh CPU generator for one purpose of this update."""
        return generator(self.base, purpose, *self.numbers)


@contextmanager
def seeded(network: nn.Module, seed: int, purpose: str, *numbers: int) -> Iterator[None]:
    """Seed torch's global generators for one purpose inside this context, and restore them afterwards.

    This is for dropout, which can only draw from the global generators. It seeds the generator of the CPU and, if the
    network is on an accelerator, the generator of that accelerator.
    """
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[]), _restored(device):
        # torch.manual_seed would also reseed the generators of the other accelerators.
        torch.default_generator.manual_seed(derive(seed, purpose, *numbers))
        if device.type != "cpu":
            with _current(device):
                torch.get_device_module(device).manual_seed(derive(seed, purpose, *numbers))
        yield


@contextmanager
def _restored(device: torch.device) -> Iterator[None]:
    """Restore the generator of an accelerator afterwards; that of a CPU is left to others."""
    if device.type == "cpu":
        yield
        return
    module = torch.get_device_module(device)
    with _current(device):
        before = module.get_rng_state()
    try:
        yield
    finally:
        with _current(device):
            module.set_rng_state(before)


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Make an accelerator the current one inside the context; MPS has but one."""
    choose = getattr(torch.get_device_module(device), "device", None)
    return nullcontext() if choose is None else choose(device)


@contextmanager
def drawn_from(draws: torch.Generator) -> Iterator[None]:
    """Seed torch's global CPU generator by a number drawn from `draws` inside this context, and restore it afterwards.

    This is for libraries that can only draw from the global generator, such as torchvision.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(1 << 62, (), generator=draws)))
        yield
