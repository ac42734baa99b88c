"""Divide the classes among the processes of a job. Each matches its classes, and the gradients are summed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from common.networks import Network, has_batchnorm
from common.system import parallel


@dataclass(frozen=True)
class ClassShare:
    """The classes [first, last) that this process matches; other processes match the others."""

    first: int
    last: int

    @classmethod
    def of(cls, classes: int, undivided: bool = False) -> ClassShare:
        """This process's share of all classes. undivided: rank 0 matches all classes, the other ranks none."""
        if undivided:
            return cls(0, classes if parallel.is_main() else 0)
        return cls(*parallel.share(classes))

    @property
    def count(self) -> int:
        """The number of classes in this share; 0 if other processes match all classes."""
        return self.last - self.first

    @property
    def rows(self) -> slice:
        """The slice that selects this process's classes from an array whose first axis is the class."""
        return slice(self.first, self.last)


def share_statistics(network: Network, classes: int, device: torch.device, model: str) -> tuple[Network, ClassShare]:
    """The network for matching and this process's classes, if batch statistics have to cover all classes.

    On GPUs the processes combine their batch statistics (SyncBatchNorm). On a CPU, or with more processes than classes,
    rank 0 matches all classes, and one line with the name of the `model` reports it. A network without BatchNorm is
    returned unchanged.
    """
    if parallel.world() == 1 or not has_batchnorm(network):
        return network, ClassShare.of(classes)
    if device.type == "cuda" and parallel.world() <= classes:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network), ClassShare.of(classes)
    reason = "on a CPU" if device.type != "cuda" else f"with more processes than the {classes} classes"
    tqdm.write(
        f"{model} normalises over the batch, which is not shared {reason}: "
        f"one of the {parallel.world()} processes matches all classes, and the others wait"
    )
    return network, ClassShare.of(classes, undivided=True)
