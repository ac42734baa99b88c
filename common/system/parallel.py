"""The processes of one job that torchrun starts: their ranks, and the exchange of values between them.

In a job of one process, every function returns at once and changes nothing. In a job of several processes, all of them
must call the same functions in the same order. Tensors on an accelerator are summed by its own backend, such as NCCL.
Everything else is exchanged between the CPUs with gloo, so that no process waits for an accelerator.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.system.errors import InputError, ProcessLost

T = TypeVar("T")


class Launch(NamedTuple):
    """What torchrun tells a process through environment variables. Ranks count from 0."""

    rank: int = 0
    local_rank: int = 0
    """The rank among the processes on the same machine."""
    world: int = 1
    """The number of processes on all machines together."""
    local_world: int = 1
    """The number of processes on the same machine."""


def launch() -> Launch:
    """How this process was started: without torchrun, it is rank 0 of 1 process.

    This is known from the start. `rank` and `world` are right only after `command.run_command` has joined the group.
    A variable that is empty counts as unset. Raises InputError for one that is no number, or none of a job.
    """
    # A batch system may set WORLD_SIZE on its own. Only a process with a RANK is one of several.
    rank = _number("RANK", -1)
    world = 1 if rank == -1 else _number("WORLD_SIZE", 1)
    if world == 1:
        return Launch()
    if not 0 <= rank < world:
        raise InputError(
            f"the variables RANK={rank} and WORLD_SIZE={world} fit no job: start with torchrun, or {_UNSET}"
        )
    return Launch(rank, _number("LOCAL_RANK", rank), world, _number("LOCAL_WORLD_SIZE", world))


_UNSET = "unset RANK for a single process"
_MEETING = ("MASTER_ADDR", "MASTER_PORT")


def check_meeting() -> None:
    """Raise InputError unless the environment says where the processes of the job meet."""
    if lacking := [name for name in _MEETING if not os.environ.get(name)]:
        raise InputError(
            f"RANK and WORLD_SIZE say that this is one of several processes, but {' and '.join(lacking)}, where they "
            f"meet, {'is' if len(lacking) == 1 else 'are'} not set: start with torchrun, or {_UNSET}"
        )


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return otherwise
    if not text.isdecimal():
        raise InputError(f"the variable {name}={text} is no number of processes: start with torchrun, or {_UNSET}")
    return int(text)


def backend_of(kind: str) -> str | None:
    """What exchanges tensors between devices of this kind, such as nccl for cuda; None if torch has nothing."""
    return dist.Backend.default_device_backend_map.get(kind)


def rank() -> int:
    """The rank of this process, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes in this job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is rank 0, which alone writes files and prints."""
    return rank() == 0


def share(count: int) -> tuple[int, int]:
    """The range [first, last) of `count` items that this process handles.

    The shares of the processes differ by at most one item, and no share is larger than that of rank 0.
    """
    first, last = (-(-number * count // world()) for number in (rank(), rank() + 1))
    return first, last


# -- exchange of values between the processes --------------------------------------------------------------------


@torch.no_grad()
def sum_(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over the processes; the sums are bit for bit the same in every process.

    All tensors must be on one device.
    """
    if world() == 1:
        return
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _collective(dist.all_reduce, together)
    for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@torch.no_grad()
def copy_from_main_(tensors: Sequence[Tensor]) -> None:
    """Replace the contents of the tensors by those that rank 0 has."""
    if world() == 1:
        return
    for tensor in tensors:
        held = tensor.contiguous()
        _collective(dist.broadcast, held, src=0)
        tensor.copy_(held)


def broadcast(value: Any) -> Any:
    """The value that rank 0 passes, in every process; the values of the others are ignored. It must be picklable."""
    if world() == 1:
        return value
    values = [value if is_main() else None]
    _collective(dist.broadcast_object_list, values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of their ranks. The values must be picklable."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    _collective(dist.all_gather_object, values, value)
    return values


def largest(number: int) -> int:
    """The largest of the numbers that the processes pass."""
    if world() == 1:
        return number
    held = torch.tensor(number)
    _collective(dist.all_reduce, held, op=dist.ReduceOp.MAX)
    return int(held)


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 runs the body before the others, so that they find what it has downloaded or cached on the disk.

    Each machine may have its own disk. So the first process of each machine runs the body next, then all the rest.
    """
    turn = 0 if is_main() else 1 if launch().local_rank == 0 else 2
    for _ in range(turn):
        largest(0)
    yield
    for _ in range(2 - turn):
        largest(0)


def _collective(function: Callable[..., object], *positional: Any, **named: Any) -> None:
    """Call a function of torch.distributed; raises ProcessLost if the call fails because another process has ended."""
    try:
        function(*positional, **named)
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: Exception) -> ProcessLost:
    """The exception to raise after an exchange with the other processes has failed with `error`."""
    # torchrun reacts to the lost process by sending SIGTERM. This process ignores it, reports the reason and then ends.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # "[<file of gloo>:<line>] Connection closed by peer [...]. This is typically ...": keep only the middle.
    reason = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
    return ProcessLost(reason or type(error).__name__)
