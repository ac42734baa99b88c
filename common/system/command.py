"""Scripts as commands: errors as sentences, exit codes, and one command as several processes that torchrun starts."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import NoReturn, TextIO

import torch
import torch.distributed as dist

from common.system import parallel
from common.system.errors import InputError, ProcessLost, Stopped

# An evaluation may take hours on one process only. When a process dies, torchrun ends the others, without a timeout.
_TIMEOUT = timedelta(days=7)


def run_command(main: Callable[[], None], several: bool = False) -> None:
    """Run a script's `main` and exit with its `exit_code`.

    several: torchrun may start the command as several processes, which are joined in a group before `main`; those but
    the first print nothing, and their errors name them. Without it several processes are refused.
    """
    launch = parallel.launch()
    if launch.world > 1 and several:
        _run_as_one_of_several(main, launch.rank)

    def alone() -> None:
        if launch.world > 1:
            raise InputError("this command is one process: start it with python, without torchrun (and NPROC)")
        main()

    code = exit_code(alone)
    sys.stdout.flush()
    sys.exit(code)


def exit_code(main: Callable[[], None]) -> int:
    """Run `main`: 0, 2 with the sentence of an `InputError`, 130/143 after a signal, 1 for lack of another process."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except ProcessLost as lost:
        print(f"error: {lost}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _run_as_one_of_several(main: Callable[[], None], rank: int) -> NoReturn:
    with output_of(rank):
        try:
            code = exit_code(lambda: _in_group(main))
        except Exception:  # no kind that a command ends with: shown as Python would, so that nobody waits for this one
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
        raise parallel.lost(error) from error
    dist.destroy_process_group()


@contextmanager
def output_of(rank: int) -> Iterator[None]:
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
