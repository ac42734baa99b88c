"""What every network of this project offers beside `forward`."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class Network(nn.Module):
    """Normalised images [B, ch, *im_size] to logits [B, C], through an embedding."""

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """The flattened features [B, F] that the classifier sees."""
