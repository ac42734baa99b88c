"""A fitted ZCA whitening, which `ImageData` stores and applies; the module `zca` fits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from common.images.pixels import in_unit_range


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted ZCA transform of images of D pixels, all channels together.

    The tensors stay on the CPU. For images on another device, each call copies them to that device.
    """

    mean: Tensor
    """The mean training image, for pixels in 0..1: float32 `[D]`."""
    matrix: Tensor
    """The symmetric whitening matrix W = U (S + eps)^(-1/2) U^T: float32 `[D, D]`.

    U S U^T is the eigendecomposition of the covariance of the training images.
    """
    inverse: Tensor
    """The inverse of W, U (S + eps)^(1/2) U^T: float32 `[D, D]`."""
    eps: float
    """A constant that is added to the eigenvalues S before their square root is taken."""
    fingerprint: str
    """A hash of the training images and of how the transform was fitted: see `zca.whitening_fingerprint`."""

    def as_metadata(self) -> dict[str, Any]:
        """The description of the whitening that other files store: eps and the fingerprint, as JSON values."""
        return {"eps": self.eps, "fingerprint": self.fingerprint}

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images `[..., ch, H, W]`: uint8 in 0..255 or floating point in 0..1 gives float32."""
        return self._transform(in_unit_range(images), self.matrix, self.mean)

    def invert(self, whitened: Tensor) -> Tensor:
        """Turn whitened images `[..., ch, H, W]` back into pixels in units of 0..1, without clamping to that range."""
        # For whitened w: x = w W^-1 + mean = (w + mean W) W^-1. kornia's transform takes the last expression.
        return self._transform(whitened, self.inverse, -self.mean @ self.matrix)

    @staticmethod
    def _transform(images: Tensor, matrix: Tensor, mean: Tensor) -> Tensor:
        from kornia.enhance import linear_transform

        rows = images.reshape(-1, len(mean))
        rows = linear_transform(rows, matrix.to(images.device), mean[None].to(images.device))
        return rows.reshape(images.shape)
