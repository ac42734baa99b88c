"""Several processes of one job, as torchrun starts them: who is who, and what they tell each other.

Every function is at once done, and changes nothing, in the one process of a plain start. With several, all of them have
to call the same functions in the same order. Tensors of a GPU are summed by NCCL; everything else goes through the
CPUs by gloo, so no GPU is waited for.
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

from common.system.errors import ProcessLost

T = TypeVar("T")


class Launch(NamedTuple):
    """What torchrun tells a process by its environment. The numbers of processes count from 0."""

    rank: int = 0
    local_rank: int = 0
    """The number on its machine."""
    world: int = 1
    """Processes on all machines together."""


def launch() -> Launch:
    """How this process was started, known before `command.run_command` joins the processes: 0 of 1 without torchrun."""
    # A batch system may set WORLD_SIZE by itself: only with a rank is a process one of several.
    world = int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1
    if world == 1:
        return Launch()
    rank = int(os.environ["RANK"])
    return Launch(rank, int(os.environ.get("LOCAL_RANK", rank)), world)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and says what there is to write and to say: number 0."""
    return rank() == 0


def share(count: int) -> tuple[int, int]:
    """[first, last) of `count` things that are this process's; of sizes that differ by one process 0 has the larger."""
    first, last = (-(-number * count // world()) for number in (rank(), rank() + 1))
    return first, last


# -- what they tell each other -----------------------------------------------------------------------------------


@torch.no_grad()
def sum_(*tensors: Tensor) -> None:
    """Replace tensors of one device by their sums over the processes, bit for bit the same in each."""
    if world() == 1:
        return
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _collective(dist.all_reduce, together)
    for tensor, total in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@torch.no_grad()
def copy_from_main_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of process 0."""
    if world() == 1:
        return
    for tensor in tensors:
        held = tensor.contiguous()
        _collective(dist.broadcast, held, src=0)
        tensor.copy_(held)


def broadcast(value: Any) -> Any:
    """The value that process 0 gives, whatever the others give; pickle has to take it."""
    if world() == 1:
        return value
    values = [value if is_main() else None]
    _collective(dist.broadcast_object_list, values, src=0)
    return values[0]


def gather(value: T) -> list[T]:
    """The values of all processes, by number; pickle has to take them."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    _collective(dist.all_gather_object, values, value)
    return values


def largest(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if world() == 1:
        return number
    held = torch.tensor(number)
    _collective(dist.all_reduce, held, op=dist.ReduceOp.MAX)
    return int(held)


@contextmanager
def main_first() -> Iterator[None]:
    """Process 0 does what is inside before the others: it downloads, or fills a cache on the disk, and they find it.

    Machines may have disks of their own: after process 0 comes the first process of each machine, then the rest.
    """
    turn = 0 if is_main() else 1 if launch().local_rank == 0 else 2
    for _ in range(turn):
        largest(0)
    yield
    for _ in range(2 - turn):
        largest(0)


def _collective(function: Callable[..., object], *positional: Any, **named: Any) -> None:
    """Raises ProcessLost where another process has ended."""
    try:
        function(*positional, **named)
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: Exception) -> ProcessLost:
    """What to raise where a call upon the other processes failed with `error`."""
    # torchrun sends SIGTERM because of the same: this process ends by itself, and says why first.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # "[<file of gloo>:<line>] Connection closed by peer [...]. This is typically ...": the middle alone.
    reason = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
    return ProcessLost(reason or type(error).__name__)
