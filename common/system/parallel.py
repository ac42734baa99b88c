"""Several processes of one job, as torchrun starts them: who is who, and what they tell each other.

Every function is at once done, and changes nothing, in the one process of a plain start. With several, all of them have
to call the same functions in the same order. Tensors of a GPU are summed by NCCL; everything else goes through the
CPUs by gloo, so no GPU is waited for.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TextIO, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.system import errors, torchrun
from common.system.errors import ProcessLost

T = TypeVar("T")

# An evaluation may take hours on one process only. When a process dies, torchrun ends the others, without a timeout.
_TIMEOUT = timedelta(days=7)


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
    turn = 0 if is_main() else 1 if torchrun.local_rank() == 0 else 2
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
        raise _lost(error) from error


def _lost(error: Exception) -> ProcessLost:
    # torchrun sends SIGTERM because of the same: this process ends by itself, and says why first.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # "[<file of gloo>:<line>] Connection closed by peer [...]. This is typically ...": the middle alone.
    reason = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
    return ProcessLost(reason or type(error).__name__)


# -- a command as several processes ------------------------------------------------------------------------------


def run_command(main: Callable[[], None]) -> None:
    """`errors.run_command` for a script that torchrun may start as several processes.

    Those but the first print nothing, and their errors name them.
    """
    if torchrun.world() == 1:
        errors.run_command(main)
        return
    with _output_of(torchrun.rank()):
        try:
            code = errors.exit_code(lambda: _in_group(main))
        except (
            Exception
        ):  # of no kind that a command ends with: shown as Python would, and the others are not left waiting
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized():
        # `main` did not come to its end, and a GPU may be waiting for another process: a usual exit would wait for it.
        os._exit(code)
    sys.exit(code)


def _in_group(main: Callable[[], None]) -> None:
    try:
        # One group with a backend for each kind of device, of which NCCL connects when it is first used.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
        main()
    except dist.DistError as error:  # of what others call: SyncBatchNorm, or the start
        raise _lost(error) from error
    dist.destroy_process_group()


@contextmanager
def _output_of(rank: int) -> Iterator[None]:
    if rank == 0:
        yield
        return
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 (the name is no path)
        said = _Lines(sys.stderr, f"rank {rank}: ")
        stack.callback(said.close)
        stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(redirect_stderr(said))
        yield


class _Lines(io.TextIOBase):
    """A stream that hands on whole lines, each with a prefix: lines of several processes do not mix."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        super().__init__()
        self._stream, self._prefix, self._begun = stream, prefix, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._stream.write("".join(f"{self._prefix}{line}\n" for line in lines))
            self._stream.flush()
        return len(text)

    def close(self) -> None:
        if self._begun:
            self.write("\n")
        super().close()
