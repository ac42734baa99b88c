"""Names the version of this code: the package version and the commit."""

from __future__ import annotations

import subprocess

from common.system.scripts import ROOT

__version__ = "0.1.0"
"""The version of the package, said here alone: pyproject.toml reads it."""


def code_version() -> str:
    """The package version and, in a git checkout, the commit, with `+changes` if tracked files differ from it."""
    if not (ROOT / ".git").exists():  # an installed package, perhaps inside the checkout of another repository
        return __version__
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}-{commit}" + ("+changes" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
