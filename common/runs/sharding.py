"""Classes dealt out to the processes of a job: each matches some, and their gradients add up to one update."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from common.networks import Network, has_batchnorm
from common.system import parallel


@dataclass(frozen=True)
class ClassShare:
    """The classes [first, last) that this process matches; others match the rest."""

    first: int
    last: int

    @classmethod
    def of(cls, classes: int, undivided: bool = False) -> ClassShare:
        """This process's share. undivided: process 0 matches all classes, for they cannot be taken apart."""
        if undivided:
            return cls(0, classes if parallel.is_main() else 0)
        return cls(*parallel.share(classes))

    @property
    def count(self) -> int:
        """How many classes they are; 0 where other processes match them all."""
        return self.last - self.first

    @property
    def rows(self) -> slice:
        """Slice of this process's classes, for anything whose first axis is the class."""
        return slice(self.first, self.last)


def share_statistics(network: Network, classes: int, device: torch.device, model: str) -> tuple[Network, ClassShare]:
    """The network for matching, and the classes that this process matches, where batch statistics are of all classes.

    On GPUs the processes put the statistics together (SyncBatchNorm). Where they cannot, process 0 matches all classes
    and one line, which names the `model`, says so. A network without batch statistics is returned as it is.
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
