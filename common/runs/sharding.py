"""Classes dealt out to the processes of a job: each matches some, and their gradients add up to one update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.synset.synset import SynSet
from common.system import parallel


@dataclass(frozen=True)
class ClassShare:
    """The classes [first, last) of `classes` that this process matches, the others match the rest."""

    classes: int
    first: int
    last: int

    @classmethod
    def of(cls, classes: int, undivided: bool = False) -> ClassShare:
        """This process's share. undivided: process 0 matches all classes, for they cannot be taken apart."""
        if undivided:
            return cls(classes, 0, classes if parallel.is_main() else 0)
        return cls(classes, *parallel.share(classes))

    @property
    def count(self) -> int:
        """How many classes they are; 0 where others match all of them."""
        return self.last - self.first

    @property
    def rows(self) -> slice:
        """Which rows they are of what is drawn a class: [C, ...] of indices, C sets of augmentation parameters."""
        return slice(self.first, self.last)

    def match(self, images: Tensor, matched: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """This share's loss, and its gradient with respect to all synthetic images: zero for those of other classes.

        images [C * n, ch, ...], grouped by class. matched: (images of the share's classes) -> loss, gradient.
        """
        images = images.detach()
        if self.count == self.classes:
            return matched(images)
        loss, gradient = images.new_zeros(()), torch.zeros_like(images)
        if self.count:
            each = len(images) // self.classes
            rows = slice(self.first * each, self.last * each)
            loss, gradient[rows] = matched(images[rows])
        return loss, gradient

    def update(self, synset: SynSet, images: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Update the coefficients, in every process alike, with all shares' gradients; the loss of all of them."""
        synset.optim_zero_grad()
        images.backward(gradient)
        assert synset.coefficients.grad is not None
        parallel.sum_(loss, synset.coefficients.grad)
        synset.optim_step()
        return loss
