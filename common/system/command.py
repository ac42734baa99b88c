"""Runs a script's `main` as a command: prints errors as sentences, sets exit codes, joins torchrun's processes."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import NoReturn, TextIO

import torch.distributed as dist

from common.system import parallel
from common.system.devices import accelerator
from common.system.errors import InputError, ProcessLost, Stopped, disk_refusal, memory_refusal, printable

# Long, because the other processes may wait hours while one process evaluates. No timeout is needed to notice a dead
# process: torchrun then ends the others.
_TIMEOUT = timedelta(days=7)
_NO_READER = 141  # 128 + SIGPIPE, as of a program that the signal has ended; Windows has no such signal
# What tqdm begins a line of a progress bar with: to the start of the line, and of a bar below others, lines up.
_MOVES = re.compile(r"[\r\n]*(?:\x1b\[A)*")


def run_command(main: Callable[[], None], several: bool = False) -> None:
    """Run a script's `main` and exit with the code that `exit_code` returns.

    several: whether torchrun may start the command as several processes. If so, the processes join one group before
    `main`; all except rank 0 discard standard output, and prefix each line of standard error with their rank. If not,
    a start with several processes is an error.
    """
    _show_all_names()

    def begin() -> None:
        launch = parallel.launch()
        if launch.world > 1 and several:
            parallel.check_meeting()
            _run_as_one_of_several(main, launch.rank)
        with shown_as_text():
            if launch.world > 1:
                raise InputError("this command is one process: start it with python, without torchrun (and NPROC)")
            main()
        sys.stdout.flush()  # here, so that a full disk is told of

    code = exit_code(begin)
    with suppress(OSError):  # what could not be written above
        sys.stdout.flush()
        sys.exit(code)
    os._exit(code)  # Python would try to write it once more


def _show_all_names() -> None:
    """Let names of files be printed that the terminal's encoding lacks, as escapes: no command ends for a name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_code(main: Callable[[], None]) -> int:
    """Run `main`, print its error to stderr as one sentence, and return the exit code.

    The code is 0 on success, 2 for an `InputError`, a refusal of the file system or memory that does not suffice, 130
    after SIGINT, 143 after SIGTERM, 141 if nobody reads standard output any longer, and 1 if another process of the job
    has ended. Any other exception passes through.
    """
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(printable(str(stop), keep="\n"), file=sys.stderr)
        return stop.exit_code
    except ProcessLost as lost:
        print(f"error: {lost}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _NO_READER
    except OSError as error:
        told = disk_refusal(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        told = memory_refusal(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


def _run_as_one_of_several(main: Callable[[], None], rank: int) -> NoReturn:
    with output_of(rank), shown_as_text():
        try:
            code = exit_code(lambda: _in_group(main))
        except Exception:  # a bug: print the traceback and exit, so that the other processes do not wait for this one
            traceback.print_exc()
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized():
        # `main` failed, and this GPU may be waiting for another process. A normal exit would wait for the GPU.
        os._exit(code)
    sys.exit(code)


def backends() -> str:
    """A backend for each type of device that is here. That of an accelerator connects only when it is first used."""
    there = accelerator()
    if there is None or (own := parallel.backend_of(there.type)) is None:
        return "gloo"
    return f"cpu:gloo,{there.type}:{own}"


def _in_group(main: Callable[[], None]) -> None:
    try:
        dist.init_process_group(backends(), timeout=_TIMEOUT)
        main()
    except dist.DistError as error:  # from calls outside `parallel`: SyncBatchNorm, and joining the group
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


@contextmanager
def shown_as_text() -> Iterator[None]:
    """Inside, nothing that is printed steers the terminal: names of classes and metadata are the text of others."""
    with redirect_stdout(AsText(sys.stdout)), redirect_stderr(AsText(sys.stderr)):
        yield


class AsText(io.TextIOBase):
    """A stream that writes what is not printable as escapes, but for line ends, tabs and what moves a progress bar."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    def write(self, text: str) -> int:
        moved = _MOVES.match(text)
        rest = text[moved.end() :] if moved else text
        self.stream.write((moved[0] if moved else "") + printable(rest, keep="\n\t"))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


class _Lines(io.TextIOBase):
    """A stream that passes on whole lines, each with a prefix, so that the lines of several processes do not mix."""

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
