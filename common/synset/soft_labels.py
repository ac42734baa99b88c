"""Soft labels of a synthetic set: for each image a probability of every class, in place of the number of one class."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from common.system.errors import InputError

SoftLabelKind = Literal["probabilities", "logits"]
_SLACK = 1e-3  # of the sum of a row: probabilities of 1,000 classes in half precision are this far off


class SoftLabels(NamedTuple):
    """Soft labels of N images of C classes, in the order of the images."""

    values: Tensor
    """float32 [N, C]"""
    kind: SoftLabelKind
    """logits are turned into probabilities by a softmax"""

    def probabilities(self) -> Tensor:
        """Return what networks are trained with, float32 [N, C]: rows of probabilities that add up to 1."""
        if self.kind == "logits":
            return self.values.softmax(dim=1)
        return self.values / self.values.sum(dim=1, keepdim=True)

    def to(self, device: torch.device | str) -> SoftLabels:
        """Return the same labels on another device."""
        return SoftLabels(self.values.to(device), self.kind)


def checked(values: Any, kind: SoftLabelKind, images: int, classes: int | None, where: str, remedy: str) -> SoftLabels:
    """Return soft labels that can be used, as float32.

    classes: C, None if any number will do. where: what they come from, the subject of the sentence. remedy: the end of
    the sentence about rows that do not add up to 1.
    Raises InputError for another shape, for numbers that are not finite, and for probabilities that are none.
    """
    shape = f"[{images}, {'C' if classes is None else classes}]"
    if not (isinstance(values, Tensor) and values.layout == torch.strided and values.is_floating_point()):
        raise InputError(f"{where} holds soft labels that are no floating-point tensor {shape}: make it again")
    if values.dim() != 2 or len(values) != images or values.shape[1] != (classes or values.shape[1]):
        raise InputError(
            f"{where} holds soft labels of the shape {list(values.shape)}, and {shape} is needed: make it again"
        )
    values = values.detach().to(torch.float32).contiguous()
    if not values.isfinite().all():
        raise InputError(f"{where} holds soft labels that are not finite (NaN or infinity): make it again")
    if kind == "probabilities":
        worst = (values.sum(dim=1) - 1).abs().max().item() if values.numel() else 1.0
        if worst > _SLACK or (values < 0).any():
            what = f"rows that do not add up to 1 (off by up to {worst:.3g})" if worst > _SLACK else "negative numbers"
            raise InputError(f"{where} holds soft labels with {what}, which are no probabilities: {remedy}")
    return SoftLabels(values, kind)
