"""A fitted whitening, as images carry it; `zca` fits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.images.pixels import in_unit_range


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted ZCA transform. It stays on the CPU; images on another device take its matrices there for one call."""

    mean: Tensor
    """float32 `[D]`: the mean training image, in units of 0..1."""
    matrix: Tensor
    """float32 `[D, D]`: W, symmetric."""
    inverse: Tensor
    """float32 `[D, D]`: U (S + eps)^(1/2) U^T."""
    eps: float
    """Added to the covariance's eigenvalues before their square root."""
    fingerprint: str
    """What it was fitted to, and how: see `zca.whitening_fingerprint`."""

    def as_metadata(self) -> dict[str, Any]:
        """What files say of it, as JSON values."""
        return {"eps": self.eps, "fingerprint": self.fingerprint}

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images `[..., ch, H, W]`: uint8 in 0..255 or floating point in 0..1 gives float32."""
        return self._transform(in_unit_range(images), self.matrix, self.mean)

    def invert(self, whitened: Tensor) -> Tensor:
        """The way back: whitened `[..., ch, H, W]` to units of 0..1, not clamped to them."""
        # x = w W^-1 + mean = (w + mean W) W^-1, which is the form that kornia's transform takes.
        return self._transform(whitened, self.inverse, -self.mean @ self.matrix)

    @staticmethod
    def _transform(images: Tensor, matrix: Tensor, mean: Tensor) -> Tensor:
        from kornia.enhance import linear_transform

        rows = images.reshape(-1, len(mean))
        rows = linear_transform(rows, matrix.to(images.device), mean[None].to(images.device))
        return rows.reshape(images.shape)
