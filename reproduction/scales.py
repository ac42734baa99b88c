"""How much of a cell is run: all of it, what a CPU core does in an hour, or seconds to see that everything works.

Only `full` says anything about the published figures: the others keep to the same algorithm with fewer updates,
networks and experts, and what they measure is labelled everywhere.
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
    """What a scale says instead of the recipe, on each script's command line."""

    distill: Flags = field(default_factory=dict)
    buffer: Flags = field(default_factory=dict)
    evaluate: Flags = field(default_factory=dict)


def reduction(cell: Cell, scale: Scale) -> Reduction:
    """The flags of a cell at a scale; none at `full`."""
    if scale == "full":
        return Reduction()
    return _short(cell) if scale == "short" else _smoke(cell)


def _short(cell: Cell) -> Reduction:
    """Sized by runs on one CPU core (results/): none is to take more than an hour or so there."""
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
    """Stand-in images, the smallest networks, a budget that decodes to as many images as it pays for."""
    large = cell.dataset.startswith(PREFIX)
    model = "Conv3DNet" if cell.dataset == VOXELS else "ConvNetD1W16"
    evaluation = {"num_eval": "1", "epoch_eval_train": "1"}
    pixels = {VOXELS: 16**3}.get(cell.dataset, 32**2 if large or cell.target else 8**2)
    distill = {
        **evaluation,
        "model": model,
        "msz_per_channel": str(pixels),  # n is ipc: the stand-ins are small
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
