"""The one module that knows where the scripts lie: an objective's script, and how to run one as a user would."""

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from common.system.errors import InputError

ROOT = Path(__file__).parents[2]
"""The repository: the folder that `common` and the scripts' folders lie in."""
_KEPT = 1 << 16  # bytes of what a script said last: torchrun adds much to it
_ERROR = re.compile(r"(?:rank \d+: )?error: (.*)")
_IMPORTABLE = ("DM", "DC", "TM")
VOXELS = "3D-MNIST/distill.py"  # DM of voxels, filed under DM


def distill_script(objective: str) -> list[str]:
    """The script that distils, relative to the repository's root, and the flags that choose the objective there."""
    folder, _, of = objective.partition("/")
    return [f"{folder}/distill.py", *(["--objective", of] if of else [])]


def buffer_script(objective: str) -> str:
    """The script that trains the experts of an objective that needs some."""
    return f"{objective.partition('/')[0]}/buffer.py"


def load_script(script: str) -> ModuleType:
    """A script as a module, for those in a folder whose name cannot be imported: ImageNet-abcde, 3D-MNIST.

    script: relative to the repository's root. It is executed once.
    """
    name = re.sub(r"\W", "_", script.removesuffix(".py"))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / script)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@contextmanager
def installed() -> Iterator[None]:
    """Inside, a script imports those of DM, DC and TM; an environment that does not know them yet is told of.

    It was installed before these folders could be imported. Exits with code 2 and the sentence that says what to run.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _IMPORTABLE:
            raise
        print(f"error: this environment does not know the folder {error.name} yet: run make install", file=sys.stderr)
        sys.exit(2)


def run_script(script: str, *flags: object) -> str:
    """Run `python SCRIPT FLAGS` with its output on the screen; returns the command as a user would type it.

    script: relative to the repository's root, e.g. DM/distill.py. Raises InputError where it does not end with 0.
    """
    words = list(map(str, flags))
    command = as_typed(script, words)
    print(f"\n$ {command}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / script), *words], check=False).returncode
    if code:
        raise InputError(f"{script} ended with exit code {code}, see above")
    return command


def as_typed(script: str, words: Sequence[str], nproc: int = 1) -> str:
    """The command as a user would type it in the repository's root."""
    start = "python" if nproc == 1 else f"torchrun --standalone --nproc_per_node {nproc}"
    return f"{start} {shlex.join([script, *words])}"


class Script:
    """A script of this repository as a child process, with its output on the screen. nproc: processes, by torchrun.

    It is in a session of its own, so that no signal reaches it but `stop`: what a terminal or a cluster sends to the
    parent's group is for the parent to pass on.
    """

    def __init__(self, script: str, words: Sequence[str], nproc: int = 1) -> None:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(nproc)] if nproc > 1 else []
        # Progress bars ask their terminal how wide it is, and a pipe has none.
        columns, lines = shutil.get_terminal_size()
        self._process = subprocess.Popen(
            [sys.executable, *several, str(ROOT / script), *words],
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={"COLUMNS": str(columns), "LINES": str(lines), **os.environ},
        )
        self._said = bytearray()
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def wait(self) -> int:
        """Wait until it ends; its exit code, as a shell would say it."""
        self._await_end()
        self._reader.join()
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """Ask it to save and end, and wait until it has; also from a handler that interrupts `wait`."""
        self._process.send_signal(signal.SIGTERM)
        self._await_end()

    @property
    def reason(self) -> str:
        """What it said last on its standard error: of an InputError the sentence."""
        lines = [line.strip() for line in self._said.decode(errors="replace").replace("\r", "\n").splitlines()]
        errors = [match[1] for match in map(_ERROR.fullmatch, lines) if match]
        if errors:
            return errors[0]  # of several processes the first is the one that ended the others
        return next((line for line in reversed(lines) if line), "it said nothing")

    @property
    def pid(self) -> int:
        """Of the process, which SIGTERM asks to save and end."""
        return self._process.pid

    def _await_end(self) -> None:
        # Without collecting the exit code: Popen.wait holds a lock that a handler would wait for in vain.
        if self._process.returncode is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def _pass_on(self) -> None:
        assert self._process.stderr is not None
        while part := os.read(self._process.stderr.fileno(), 1 << 16):
            sys.stderr.write(part.decode(errors="replace"))
            sys.stderr.flush()
            self._said = (self._said + part)[-_KEPT:]
        self._process.stderr.close()
