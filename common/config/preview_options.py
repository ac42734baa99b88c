"""The options of what a command can tell before a long run, and of what it does about memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

DryRun = Annotated[
    bool,
    tyro.conf.arg(
        help="show what the command would do, how long it would take and what is missing, then stop; nothing is "
        "written except caches of decoded images, and nothing is downloaded"
    ),
]
# None of them says anything about the result of a run; see `options.NOT_PART_OF_A_RUN`.
PREVIEW = frozenset({"dry_run", "ignore_memory", "find_lr", "find_lr_updates"})


@dataclass
class PreviewOptions:
    """What a command tells before it starts."""

    dry_run: DryRun = False
    ignore_memory: bool = False
    """start even if the estimated peak memory exceeds the memory of the device"""


@dataclass
class DistillPreviewOptions(PreviewOptions):
    """What a distillation tells before it starts."""

    find_lr: bool = False
    """instead of distilling, try nine values of --lr_freq, each about three times the one before, around the value
    that would be used, and suggest the one with the lowest loss; the table and the picture go to the folder
    <name>-find_lr beside the run folder"""
    find_lr_updates: int | None = None
    """--find_lr: updates with each value; DC: iterations (default: 4 to 100, as many as take about three minutes in
    all)"""
