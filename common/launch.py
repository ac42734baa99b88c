"""Run the objectives' scripts as a user would, from other programs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from common.errors import InputError

ROOT = Path(__file__).parent.parent


def run_script(script: str, *flags: object) -> str:
    """Run `python SCRIPT FLAGS` with its output on the screen; returns the command as a user would type it.

    script: relative to the repository's root, e.g. DM/distill.py. Raises InputError where it does not end with 0.
    """
    words = list(map(str, flags))
    command = f"python {shlex.join([script, *words])}"
    print(f"\n$ {command}", flush=True)
    code = subprocess.run([sys.executable, str(ROOT / script), *words], check=False).returncode
    if code:
        raise InputError(f"{script} ended with exit code {code}, see above")
    return command
