"""What the experts' accuracies, epoch by epoch, say about the options of trajectory matching."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from common.experts.folder import expert_files, read_expert_metadata, trajectory_shape
from common.system.errors import InputError
from common.system.text import counted

SHARE_OF_THE_GAIN = 0.8
"""The student starts where the experts have made up to this share of their gain. The published values are 5, 15 and 40
of 50 epochs, at ipc 1, 10 and 50."""


def suggest_max_start_epoch(folder: Path, expert_epochs: int) -> int | None:
    """The number of epochs in which the experts of a folder make `SHARE_OF_THE_GAIN`; None if it has no experts.

    The gain of an epoch is the median over the experts, from the accuracy after the first epoch to the best. At most as
    many epochs as leave `expert_epochs` to match. Raises InputError for experts that have not been tested after every
    epoch, or have no more than expert_epochs, and for a damaged file.
    """
    files = expert_files(folder)
    if not files:
        return None
    curves = [_accuracies(file) for file in files]
    epochs = min(trajectory_shape(file)[0] for file in files) - 1
    if epochs < expert_epochs:
        raise InputError(
            f"the experts in {folder} have {counted(epochs, 'epoch')}, of which --expert_epochs takes {expert_epochs}: "
            "train others for more epochs into another --buffer_path"
        )
    untested = [epoch for epoch in range(1, epochs + 1) if not all(epoch in curve for curve in curves)]
    if untested:
        raise InputError(
            f"the experts in {folder} were not tested after every epoch, so their curve suggests no --max_start_epoch: "
            "give it, or train others with --test_every 1 into another --buffer_path"
        )
    gained = [median(curve[epoch] for curve in curves) for epoch in range(1, epochs + 1)]
    wanted = gained[0] + SHARE_OF_THE_GAIN * (max(gained) - gained[0])
    reached = next(epoch for epoch, each in enumerate(gained, 1) if each >= wanted)
    return min(reached, epochs - expert_epochs + 1)


def _accuracies(file: Path) -> dict[int, float]:
    """The accuracies of an expert by the epochs trained, fractions; 0 where its outputs were not finite."""
    return {int(epoch): float(each or 0) for epoch, each in read_expert_metadata(file)["accuracies"].items()}
