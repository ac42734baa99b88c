"""What torchrun tells a process by its environment; without torchrun, or with one process, the plain case."""

from __future__ import annotations

import os


def world() -> int:
    """Processes that torchrun started the command as, on all machines together; 1 without torchrun."""
    # A batch system may set WORLD_SIZE by itself: only with a rank is a process one of several.
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if world() > 1 else 0
