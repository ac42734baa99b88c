"""Names the version of this code: the package version and the commit."""

from __future__ import annotations

import importlib.metadata
import subprocess

from common.system.scripts import ROOT


def code_version() -> str:
    """The package version and, in a git checkout, the commit, with `+changes` if tracked files differ from it."""
    version = importlib.metadata.version("fred-distillation")
    if not (ROOT / ".git").exists():  # an installed package, perhaps inside the checkout of another repository
        return version
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version}-{commit}" + ("+changes" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
