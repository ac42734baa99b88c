"""Scales, which decide how much of a cell is run: full, short (an hour on a CPU core) or smoke (a test of seconds).

Only results at scale `full` can be compared with the published ones. The other scales run the same algorithm with fewer
updates, networks and experts, and their results are labelled with the scale everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from common.datasets.imagenet_classes import PREFIX
from common.datasets.voxels import NAME as VOXELS
from reproduction.tables import Cell

Scale = Literal["smoke", "short", "full"]
Flags = dict[str, str]  # by name, without dashes


@dataclass(frozen=True)
class Reduction:
    """The flags by which a scale overrides the recipe, for each script."""

    distill: Flags = field(default_factory=dict)
    buffer: Flags = field(default_factory=dict)
    evaluate: Flags = field(default_factory=dict)


def reduction(cell: Cell, scale: Scale) -> Reduction:
    """The flags that reduce a cell to a scale. There are none at `full`."""
    if scale == "full":
        return Reduction()
    return _short(cell) if scale == "short" else _smoke(cell)


def _short(cell: Cell) -> Reduction:
    """Flags of the scale short, sized so that a cell takes about an hour at most on one CPU core (see results/)."""
    large = cell.dataset.startswith(PREFIX)
    evaluation = {"num_eval": "1", "epoch_eval_train": "40"} if large else {"num_eval": "3", "epoch_eval_train": "100"}
    distill = {**evaluation, "eval_it": "0", **({"eval_mode": "S"} if large else {})}
    match cell.objective.rpartition("/")[2]:
        case "DM":
            distill |= {"Iteration": "60", "batch_real": "16"} if large else {"Iteration": "200", "batch_real": "128"}
        case "DC":
            distill |= {"Iteration": "20", "batch_real": "16"} if large else {"Iteration": "60", "batch_real": "64"}
            if cell.ipc >= 10:  # the published loops train the network for 450 epochs in every iteration
                distill |= {"Iteration": "10", "outer_loop": "5", "inner_loop": "5"}
        case "TM":
            distill |= {"Iteration": "20" if large else "40", "syn_steps": "10", "batch_syn": "80" if large else "160"}
            distill |= {"expert_epochs": "1", "max_start_epoch": "2", "lr_teacher": "0.02"}
    buffer = {"num_experts": "2", "train_epochs": "2"}
    return Reduction(distill, buffer, evaluation)


def _smoke(cell: Cell) -> Reduction:
    """Flags of the scale smoke: the smallest networks, two iterations, and k = d, so that n = ipc images per class."""
    large = cell.dataset.startswith(PREFIX)
    model = "Conv3DNet" if cell.dataset == VOXELS else "ConvNetD1W16"
    evaluation = {"num_eval": "1", "epoch_eval_train": "1"}
    pixels = {VOXELS: 16**3}.get(cell.dataset, 32**2 if large or cell.target else 8**2)
    distill = {
        **evaluation,
        "model": model,
        "msz_per_channel": str(pixels),  # all coefficients, so n is ipc, because there are few stand-in images
        "lr_freq": "1.0",
        "eval_mode": "S",
        "eval_it": "0",
        "Iteration": "2",
    }
    match cell.objective.rpartition("/")[2]:
        case "DM":
            distill |= {"batch_real": "8"}
        case "DC":
            distill |= {"batch_real": "8", "outer_loop": "2", "inner_loop": "1"}
        case "TM":
            distill |= {"syn_steps": "2", "expert_epochs": "1", "max_start_epoch": "2", "lr_lr": "1e-7"}
    return Reduction(distill, {"model": model, "num_experts": "2", "train_epochs": "2"}, evaluation)
