"""SynSet: the synthetic set as frequency coefficients (Section 3 of the paper), decoded to images on demand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common import frequency
from common.synset import selection
from common.synset.base import LearnedSet, SetArgs
from common.system.errors import InputError
from common.system.seeds import generator
from common.system.text import counted


@dataclass
class SynSetArgs(SetArgs):
    """The arguments of `SynSet(args)`: any namespace with these attributes; those with a default may be missing.

    im_size: two or three sides. transform, selection: see `frequency` and `selection`. selection_images: "init" chooses
    positions from the n drawn images of a class, as the authors do, "class" from all images of the class. optimizer:
    sgd, or adam with lr_freq in units of the spread of each position.
    """

    transform: str = "dct"
    selection: str = "variance"
    selection_images: str = "init"
    seed: int = 0
    optimizer: str = "sgd"


class SynSet(LearnedSet):
    """A synthetic set of n = int(ipc * d / k) images per class, each stored as k coefficients per channel.

    d is the product of the image's sides, C the number of classes, ch the number of channels. The set holds
    `coefficients` float32 [C, n, ch, k] (the only thing learned), their `positions` int32 [C, k] (fixed by `init`), and
    `labels` int64 [C * n], grouped by class. The inverse transform decodes the coefficients to images.

    Raises InputError if the budget is impossible (ipc < 1, k < 1, or k > d) or another argument is invalid.
    """

    def __init__(self, args: SynSetArgs | Any) -> None:
        super().__init__(args)
        self.transform = getattr(args, "transform", SynSetArgs.transform)
        self.selection = getattr(args, "selection", SynSetArgs.selection)
        self.selection_images: str = getattr(args, "selection_images", SynSetArgs.selection_images)
        self._check_options()
        self._allocate(self.ipc * self.d // self.msz_per_channel, self.channel, self.msz_per_channel)
        self.positions = torch.zeros(self.num_classes, self.msz_per_channel, dtype=torch.int32, device=self.device)

    def _check_options(self) -> None:
        selection.check_rule(self.selection)
        if self.selection_images not in ("init", "class"):
            raise InputError(f"unknown selection_images '{self.selection_images}': choose init or class")
        if len(self.im_size) not in (2, 3):
            raise InputError(f"images need two or three sides, im_size is {self.im_size}")
        frequency.check_transform(self.transform, self.im_size)
        if self.ipc < 1:
            raise InputError(f"ipc {self.ipc} leaves no budget: give at least 1 image per class")
        selection.check_k(self.msz_per_channel, self.im_size)

    # -- the interface that objectives use ---------------------------------------------------------------------

    def init_mask(self) -> None:
        """Choose `positions` from the images given to `init`; override this method to use your own selection rule.

        Raises InputError if it is not called by `init`, because the images are not kept afterwards.
        """
        if self._survey is None:
            raise InputError("init_mask() runs inside init(): call init(images, labels, indices_class)")
        rule = generator(self.seed, "selection")
        self.positions = selection.select(self.selection, self._survey, self.msz_per_channel, self.transform, rule)

    # -- contents ------------------------------------------------------------------------------------------------

    @property
    def mask(self) -> Tensor:
        """The kept positions as a boolean [C, *im_size], for inspection; it is built at each access."""
        self.check_filled()
        mask = torch.zeros(self.num_classes, self.d, dtype=torch.bool, device=self.device)
        return mask.scatter(1, self.positions.long(), True).unflatten(1, self.im_size)

    def budget(self) -> dict[str, int]:
        """Return counts and bytes of what the set stores, and the number of images that it decodes to.

        Labels take no space: they follow from the order of the images.
        """
        return {
            "ipc": self.ipc,
            "images_per_class": self.num_per_class,
            "images": len(self.labels),
            "coefficients": self.coefficients.numel(),
            "coefficient_bytes": self.coefficients.numel() * 4,
            "position_bytes": self.positions.numel() * 4,
            "pixels_of_budget": self.num_classes * self.ipc * self.channel * self.d,
            "unused": self.num_classes * self.channel * (self.ipc * self.d - self.num_per_class * self.msz_per_channel),
        }

    def describe_budget(self) -> str:
        """Return the budget as one line of text."""
        b = self.budget()
        return (
            f"{self.num_classes} classes x {counted(b['images_per_class'], 'image')} of "
            f"{counted(self.msz_per_channel, frequency.number_of(self.transform))} per channel (of {self.d:,}): "
            f"{b['coefficients']:,} numbers, {b['coefficient_bytes'] / 1000:,.1f} kB by the paper's count, "
            f"{b['coefficient_bytes'] + b['position_bytes']:,} bytes with positions, "
            f"the budget of {counted(self.ipc, 'image')} per class"
        )

    def describe_kept(self, by_rule: bool = False) -> str:
        """Say what a channel of an image keeps, such as "64 of 1,024 DCT coefficients"; by_rule: and by which rule."""
        kept = f"{self.msz_per_channel:,} of {self.d:,} {frequency.number_of(self.transform)}s"
        return f"{kept} kept, by {self.selection}" if by_rule else kept

    def file_contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the coefficients and the positions."""
        return {"coefficients": self.coefficients, "positions": self.positions}, {}

    # -- details -----------------------------------------------------------------------------------------------

    def _start(self, images: Tensor) -> None:
        self.init_mask()
        dense = frequency.forward(images, len(self.im_size), self.transform).flatten(3)  # [C, n, ch, d]
        with torch.no_grad():
            self.coefficients.copy_(dense.gather(3, _index(self.positions, self.coefficients.shape)))

    def _decode_classes(self, classes: slice, copy: bool) -> Tensor:
        return self._decode(self._coefficients(copy)[classes], self.positions[classes])

    def _decode_rows(self, rows: Tensor, copy: bool) -> Tensor:
        coefficients = self._coefficients(copy).flatten(0, 1)[rows][:, None]
        return self._decode(coefficients, self.positions[rows // self.num_per_class])[:, 0]

    def _coefficients(self, copy: bool) -> Tensor:
        return self.coefficients.detach().clone() if copy else self.coefficients

    def _decode(self, coefficients: Tensor, positions: Tensor) -> Tensor:
        """Decode m images of each of G groups, [G, m, ch, k] at positions [G, k], to [G, m, ch, *im_size]."""
        dense = coefficients.new_zeros(*coefficients.shape[:3], self.d)
        dense = dense.scatter(3, _index(positions, coefficients.shape), coefficients)
        return frequency.inverse(dense.unflatten(3, self.im_size), len(self.im_size), self.transform)

    def _too_few(self, found: int) -> str:
        return (
            f"{counted(found, 'image')}, but ipc {self.ipc} with msz_per_channel "
            f"{self.msz_per_channel} decodes {self.num_per_class}: lower ipc or raise msz_per_channel to at least "
            f"{math.ceil(self.ipc * self.d / max(found, 1))}"
        )


def _index(positions: Tensor, shape: torch.Size) -> Tensor:
    """Expand positions [G, k] to `shape` [G, m, ch, k], an index along the last axis of a tensor [G, m, ch, d].

    All images and channels of a group share its positions.
    """
    return positions.long()[:, None, None].expand(shape)
