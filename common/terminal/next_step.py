"""The line that a command ends with: the one command that most users run next."""

from __future__ import annotations

import shlex
from pathlib import Path

from common.recipes import OBJECTIVES
from common.system.scripts import distill_script, evaluate_script, room_words, start_words


def to_evaluate(objective: str | None, file: str | Path) -> str:
    """After a set was made. objective: the one that made it; sets of others are evaluated by DM's script."""
    known = objective if objective in OBJECTIVES else "DM"
    return _line([*start_words(evaluate_script(known)), "--synset", str(file)])


def to_show(file: str | Path) -> str:
    """After a set was evaluated, or came from elsewhere."""
    return _line([*room_words("report"), "show", str(file)])


def to_gallery(folder: str | Path) -> str:
    """After a set was looked at, or several were made in a folder."""
    return _line([*room_words("report"), "gallery", str(folder)])


def to_distill(objective: str, *flags: str) -> str:
    """After experts were trained. flags: what the student has to have in common with them."""
    script, *more = distill_script(objective)
    return _line([*start_words(script), *more, *flags])


def _line(words: list[str]) -> str:
    return f"next: {shlex.join(words)}"
