"""Finds the script of each objective and runs scripts as a user would; no other module knows the scripts' paths."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from common.system.errors import InputError, Stopped
from common.system.progress import ON_TERMINAL, draws_bars
from common.system.signals import raising_on_signals

ROOT = Path(__file__).parents[2]
"""The root of the repository: the folder that contains `common` and the folders of the scripts."""
_KEPT = 1 << 16  # bytes kept from the end of a script's stderr; torchrun adds many lines after the script's own error
_PAUSE = 0.1  # seconds between two looks at a script, where the system cannot wait without a lock
_KEPT_OF_SEVERAL = "finished runs and the last checkpoint are kept, the same command continues"
_ERROR = re.compile(r"(?:rank \d+: )?error: (.*)")
_IMPORTABLE = ("DM", "DC", "TM")
VOXELS = "3D-MNIST/distill.py"  # distribution matching of voxels; its runs have the objective DM


def distill_script(objective: str) -> list[str]:
    """The script of an objective (`ImageNet-abcde/DM`), relative to the root, followed by the flags that it needs."""
    folder, _, of = objective.partition("/")
    return [f"{folder}/distill.py", *(["--objective", of] if of else [])]


def buffer_script(objective: str) -> str:
    """The script that trains expert trajectories for an objective that needs them (`TM`), relative to the root."""
    return f"{objective.partition('/')[0]}/buffer.py"


def evaluate_script(objective: str) -> str:
    """The script that evaluates the synthetic sets of an objective (`ImageNet-abcde/DM`), relative to the root."""
    return f"{objective.partition('/')[0]}/evaluate.py"


def typed_python() -> str:
    """This interpreter as a user types it here: `.venv/bin/python`, or `python` where that is the one."""
    own = Path(sys.executable)  # links are not followed: they tell an environment's interpreter from the system's
    if own.is_relative_to(Path.cwd()):
        return own.relative_to(Path.cwd()).as_posix()
    found = shutil.which("python")
    return "python" if found and Path(found).absolute() == own else str(own)


def start_words(script: str) -> list[str]:
    """The words with which a user starts a script: in a checkout, or of a package that is installed without one."""
    if (ROOT / VOXELS).is_file():
        return [typed_python(), script]
    return [typed_python(), "-m", script.removesuffix(".py").replace("/", ".")]


def room_words(room: str) -> list[str]:
    """The words with which a user starts a room of `common` that is a program, such as `report`."""
    return [typed_python(), "-m", f"common.{room}"]


def _existing(script: str) -> Path:
    """The path of a script. Raises InputError for one that only a checkout has, and no wheel."""
    path = ROOT / script
    if not path.is_file():
        raise InputError(f"{script} is no part of the installed package: run this in a checkout of the source tree")
    return path


def load_script(script: str) -> ModuleType:
    """Import a script from a folder whose name is not a valid module name: ImageNet-abcde or 3D-MNIST.

    script: the path relative to the repository's root. A second call returns the same module without executing it
    again.
    """
    name = re.sub(r"\W", "_", script.removesuffix(".py"))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _existing(script))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@contextmanager
def installed() -> Iterator[None]:
    """Context in which a script imports the folders DM, DC and TM; explains the failure if they are not installed.

    The import fails in an environment that was installed before these folders were importable. Then this context
    prints which command to run and exits with code 2.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _IMPORTABLE:
            raise
        print(f"error: this environment does not know the folder {error.name} yet: run make install", file=sys.stderr)
        sys.exit(2)


def run_script(script: str, *flags: object) -> str:
    """Run `python SCRIPT FLAGS`, showing its output; returns the command as a user would type it.

    script: the path relative to the repository's root, e.g. DM/distill.py. Raises InputError if the exit code is not
    0, and for a script that is not there; Stopped after SIGINT or SIGTERM, when the script has saved and ended.
    """
    words = list(map(str, flags))
    command = as_typed(script, words)
    print(f"\n$ {command}", flush=True)
    with raising_on_signals(_KEPT_OF_SEVERAL):
        running = Script(script, words)
        try:
            code = running.wait()
        except BaseException:
            running.stop()
            raise
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        raise Stopped(code - 128, _KEPT_OF_SEVERAL)
    if code:
        raise InputError(f"{script} ended with exit code {code}, see above")
    return command


def as_typed(script: str, words: Sequence[str], nproc: int = 1) -> str:
    """The command as a user would type it in the repository's root, with torchrun if nproc is above 1."""
    start = "python" if nproc == 1 else f"torchrun --standalone --nproc_per_node {nproc}"
    return f"{start} {shlex.join([script, *words])}"


class Script:
    """A script of this repository as a child process, with its output on the screen.

    nproc: the number of processes; torchrun starts them if there is more than one.
    The child runs in its own session, so a signal that a terminal or a cluster sends to the parent's process group does
    not reach it. The parent passes such a signal on by calling `stop`.
    """

    def __init__(self, script: str, words: Sequence[str], nproc: int = 1) -> None:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(nproc)] if nproc > 1 else []
        # The child's stderr is a pipe, so its progress bars cannot see the terminal, nor ask it for the width.
        terminal = {ON_TERMINAL: "1"} if draws_bars() else {}
        columns, lines = shutil.get_terminal_size()
        self._process = subprocess.Popen(
            [sys.executable, *several, str(_existing(script)), *words],
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={"COLUMNS": str(columns), "LINES": str(lines), **terminal, **os.environ},
        )
        self._said = bytearray()
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def wait(self) -> int:
        """Wait until the script ends; returns its exit code as a shell reports it (128 + the number of a signal)."""
        self._await_end()
        self._reader.join()
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """Send SIGTERM, which asks the script to save and end, and wait until it has ended.

        A signal handler that interrupts `wait` may call this.
        """
        self.ask_to_stop()
        self._await_end()

    def ask_to_stop(self) -> None:
        """Send SIGTERM and wait for nothing. Another thread than the one that waits may call this."""
        self._process.send_signal(signal.SIGTERM)

    @property
    def reason(self) -> str:
        """The sentence of the script's InputError; without one, the last line of its standard error."""
        lines = [line.strip() for line in self._said.decode(errors="replace").replace("\r", "\n").splitlines()]
        errors = [match[1] for match in map(_ERROR.fullmatch, lines) if match]
        if errors:
            return errors[0]  # with several processes, the first error is the one that made the others end
        return next((line for line in reversed(lines) if line), "it said nothing")

    @property
    def pid(self) -> int:
        """The id of the child process. SIGTERM asks that process to save and end."""
        return self._process.pid

    def _await_end(self) -> None:
        # Does not collect the exit code. Popen.wait would hold a lock on which a signal handler would deadlock.
        if not hasattr(os, "waitid"):  # Windows, and macOS before Python 3.13
            while self._process.poll() is None:
                time.sleep(_PAUSE)
        elif self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        while part := os.read(self._process.stderr.fileno(), 1 << 16):
            sys.stderr.write(part.decode(errors="replace"))
            sys.stderr.flush()
            self._said = (self._said + part)[-_KEPT:]
        self._process.stderr.close()
