"""Which code this is: package version and commit."""

from __future__ import annotations

import importlib.metadata
import subprocess

from common.system.scripts import ROOT


def code_version() -> str:
    """Package version and, in a git checkout, the commit (with `+changes` where files differ from it)."""
    version = importlib.metadata.version("fred-distillation")
    if not (ROOT / ".git").exists():  # installed, perhaps within a checkout of something else
        return version
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return version
    return f"{version}-{commit}" + ("+changes" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
