"""Training images that are held back, to choose the best synthetic set without a look at the test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from common.images.image_data import ImageData
from common.images.sampling import hold_back
from common.system import parallel
from common.system.errors import InputError

OWN_SHARE = 0.1
"""The share of images of one's own, `folder:` and `hf:` without --recipe, that is held back unless a flag says."""


@dataclass
class ValidationOptions:
    """Which training images are held back."""

    validation_share: float = 0.0
    """share of the training images of each class that is never distilled from nor trained on: the best set is the one
    whose networks are best on them, and is tested once (default: 0; 0.1 for folder:PATH and hf:... without --recipe)"""
    validation_seed: int = 0
    """seed of the choice of these images; TM's experts have the same ones held back"""

    def hold_back(self, train: ImageData) -> tuple[ImageData, ImageData | None]:
        """The training images to learn from, and those that are held back; None for no share.

        Raises InputError for a class of one image.
        """
        if self.validation_share == 0:
            return train, None
        rest, held = hold_back(train, self.validation_share, self.validation_seed)
        if parallel.is_main():
            tqdm.write(
                f"{len(held):,} of the {len(train):,} training images, {100 * self.validation_share:.0f} % of each "
                "class, are held back to choose the best set (--validation_share)"
            )
        return rest, held

    @property
    def validation(self) -> dict[str, Any] | None:
        """Which images are held back, as JSON values; None for none."""
        if self.validation_share == 0:
            return None
        return {"validation_share": self.validation_share, "validation_seed": self.validation_seed}

    def check_validation(self) -> None:
        """Raise InputError for a share or a seed that is none."""
        if self.validation_seed < 0:
            raise InputError(f"--validation_seed {self.validation_seed} is too small: give at least 0")
        if not 0 <= self.validation_share < 1:
            raise InputError(
                f"--validation_share {self.validation_share:g} is not a share of the training images: give one from 0 "
                "to below 1, such as 0.1"
            )
