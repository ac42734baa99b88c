"""SynSet: the synthetic set as frequency coefficients (Section 3 of the paper), decoded to images on demand."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from common import frequency
from common.synset import selection
from common.system.errors import InputError
from common.system.seeds import generator
from common.system.text import counted


@dataclass
class SynSetArgs:
    """The arguments of `SynSet(args)`: any namespace with these attributes; those with a default may be missing.

    im_size: two or three sides. transform, selection: see `frequency` and `selection`. selection_images: "init" chooses
    positions from the n drawn images of a class, as the authors do, "class" from all images of the class.
    """

    channel: int
    num_classes: int
    im_size: Sequence[int]
    device: torch.device | str
    ipc: int
    msz_per_channel: int
    lr_freq: float
    mom_freq: float
    transform: str = "dct"
    selection: str = "variance"
    selection_images: str = "init"
    seed: int = 0


class ImageSource(Protocol):
    """Images that are too many to hold normalised; `batch(indices)` returns some as float32 [B, ch, *im_size]."""

    def batch(self, indices: Tensor) -> Tensor: ...


# Pixel values that are transformed at a time when positions are chosen from a whole class. This many fit a processor's
# cache: choosing from all of CIFAR-10 takes 2 s, and 8 s in pieces eight times as large.
_SURVEY_CHUNK_VALUES = 1_000_000


class SynSet:
    """A synthetic set of n = int(ipc * d / k) images per class, each stored as k coefficients per channel.

    d is the product of the image's sides, C the number of classes, ch the number of channels. The set holds
    `coefficients` float32 [C, n, ch, k] (the only thing learned), their `positions` int32 [C, k] (fixed by `init`), and
    `labels` int64 [C * n], grouped by class. The inverse transform decodes the coefficients to images.

    Raises InputError if the budget is impossible (ipc < 1, k < 1, or k > d) or another argument is invalid.
    """

    def __init__(self, args: SynSetArgs | Any) -> None:
        self.args = args
        self.channel, self.num_classes, self.ipc = args.channel, args.num_classes, args.ipc
        self.im_size = tuple(args.im_size)
        self.device = torch.device(args.device)
        self.msz_per_channel = args.msz_per_channel
        self.transform: str = getattr(args, "transform", SynSetArgs.transform)
        self.selection: str = getattr(args, "selection", SynSetArgs.selection)
        self.selection_images: str = getattr(args, "selection_images", SynSetArgs.selection_images)
        self.seed: int = getattr(args, "seed", SynSetArgs.seed)
        self.d = math.prod(self.im_size)
        self._check_options()
        self.num_per_class = self.ipc * self.d // self.msz_per_channel
        self.labels = torch.arange(self.num_classes, device=self.device).repeat_interleave(self.num_per_class)
        self.positions = torch.zeros(self.num_classes, self.msz_per_channel, dtype=torch.int32, device=self.device)
        self.coefficients = torch.zeros(
            self.num_classes, self.num_per_class, self.channel, self.msz_per_channel, device=self.device
        ).requires_grad_()
        self.optimizer = torch.optim.SGD([self.coefficients], lr=args.lr_freq, momentum=args.mom_freq)
        self._survey: list[Iterable[Tensor]] | None = None
        self._filled = False

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

    def init(
        self,
        images_all: Tensor | ImageSource,
        labels_all: Tensor,
        indices_class: Sequence[Sequence[int] | Tensor],
    ) -> None:
        """Initialise from real images: draw n per class without replacement and keep k coefficients of each channel.

        images_all: normalised images [N, ch, *im_size], or an object whose `batch(indices)` returns such images.
        labels_all: int64 [N]. indices_class: for each class the indices of its images.
        Raises InputError for a class with fewer than n images, a drawn index whose label is another class, or images of
        another shape than [ch, *im_size].
        """
        indices = [torch.as_tensor(rows, dtype=torch.long) for rows in indices_class]
        names = getattr(images_all, "class_names", range(self.num_classes))
        drawn = torch.stack([self._draw(c, rows, names[c]) for c, rows in enumerate(indices)])  # [C, n]
        images = self._gather(images_all, drawn.flatten())
        labels = torch.as_tensor(labels_all)
        if not torch.equal(labels[drawn.flatten().to(labels.device)].to(self.device), self.labels):
            raise InputError("indices_class disagrees with labels_all: some index has another class's label")
        if images.shape[1:] != (self.channel, *self.im_size):
            expected = (self.channel, *self.im_size)
            raise InputError(f"the images are {tuple(images.shape[1:])}, the arguments say {expected}")
        by_class = images.unflatten(0, (self.num_classes, self.num_per_class))
        if self.selection_images == "init":
            self._survey = [[rows] for rows in by_class]
        else:
            self._survey = [self._chunks(images_all, rows) for rows in indices]
        self.init_mask()
        self._survey = None
        dense = frequency.forward(by_class, len(self.im_size), self.transform).flatten(3)  # [C, n, ch, d]
        with torch.no_grad():
            self.coefficients.copy_(dense.gather(3, _index(self.positions, self.coefficients.shape)))
        self._filled = True
        self.optimizer.state.clear()
        self.optim_zero_grad()

    def init_mask(self) -> None:
        """Choose `positions` from the images given to `init`; override this method to use your own selection rule.

        Raises InputError if it is not called by `init`, because the images are not kept afterwards.
        """
        if self._survey is None:
            raise InputError("init_mask() runs inside init(): call init(images, labels, indices_class)")
        rule = generator(self.seed, "selection")
        self.positions = selection.select(self.selection, self._survey, self.msz_per_channel, self.transform, rule)

    def decode(self, classes: slice | None = None) -> Tensor:
        """Return all images, float32 [C * n, ch, *im_size], differentiable with respect to `coefficients`.

        classes: decode only these classes; for c classes the result is [c * n, ch, *im_size].
        Raises InputError before `init` or `load_state_dict`.
        """
        self.check_filled()
        if classes is None:
            return self._decode(self.coefficients, self.positions).flatten(0, 1)
        return self._decode(self.coefficients[classes], self.positions[classes]).flatten(0, 1)

    def get(self, indices: Iterable[int] | Tensor | None = None, need_copy: bool = False) -> tuple[Tensor, Tensor]:
        """Return (images, labels) of the images in `indices`, or of all; `need_copy` gives copies without a graph.

        Raises InputError before `init` or `load_state_dict`.
        """
        self.check_filled()
        coefficients = self.coefficients.detach().clone() if need_copy else self.coefficients
        if indices is None:
            return self._decode(coefficients, self.positions).flatten(0, 1), self.labels.clone()
        rows = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), device=self.device).long()
        images = self._decode(coefficients.flatten(0, 1)[rows][:, None], self.positions[rows // self.num_per_class])
        return images[:, 0], self.labels[rows]

    def optim_zero_grad(self) -> None:
        """Clear the gradient of the coefficients. Raises InputError before `init` or `load_state_dict`."""
        self.check_filled()
        self.optimizer.zero_grad()

    def optim_step(self) -> None:
        """Take one SGD step with momentum on the coefficients (lr_freq is in the transform's own units).

        Raises InputError before `init` or `load_state_dict`.
        """
        self.check_filled()
        self.optimizer.step()

    # -- contents ------------------------------------------------------------------------------------------------

    @property
    def mask(self) -> Tensor:
        """The kept positions as a boolean [C, *im_size], for inspection; it is built at each access."""
        self.check_filled()
        mask = torch.zeros(self.num_classes, self.d, dtype=torch.bool, device=self.device)
        return mask.scatter(1, self.positions.long(), True).unflatten(1, self.im_size)

    def check_filled(self) -> None:
        """Raise InputError if nothing has been stored yet, so that every image would be constant zero."""
        # The values are looked at once only, since that waits for a GPU; tensors on the meta device have none.
        if not self._filled and self.device.type != "meta":
            self._filled = bool(self.coefficients.any() or self.positions.any())  # a subclass may write them directly
            if not self._filled:
                raise InputError(
                    "the synthetic set holds nothing yet: call init(images, labels, indices_class) or "
                    "load_state_dict(state) first"
                )

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

    def show_budget(self) -> None:
        """Print the line that `describe_budget` returns."""
        print(self.describe_budget())

    def describe_budget(self) -> str:
        """Return the budget as one line of text."""
        b = self.budget()
        return (
            f"{self.num_classes} classes x {counted(b['images_per_class'], 'image')} of "
            f"{counted(self.msz_per_channel, f'{self.transform} coefficient')} per channel (of {self.d}): "
            f"{b['coefficients']:,} numbers, {b['coefficient_bytes'] / 1000:.1f} kB, "
            f"the budget of {counted(self.ipc, 'image')} per class"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficients, the positions and the optimiser's momentum, so that a run can resume bit for bit."""
        self.check_filled()
        return {
            "coefficients": self.coefficients.detach().clone(),
            "positions": self.positions.clone(),
            # A copy, because later steps of the optimiser change the original.
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict`; "optimizer" may be missing.

        Raises InputError if a shape differs, or if positions are out of range or not ascending.
        """
        coefficients, positions = state["coefficients"], state["positions"]
        if coefficients.shape != self.coefficients.shape or positions.shape != self.positions.shape:
            raise InputError(
                f"the stored set has coefficients {tuple(coefficients.shape)} and positions {tuple(positions.shape)}; "
                f"{tuple(self.coefficients.shape)} and {tuple(self.positions.shape)} were expected"
            )
        if positions.min() < 0 or positions.max() >= self.d or (positions.diff(dim=1) <= 0).any():
            raise InputError(f"the stored positions are not ascending numbers below {self.d}: the file is damaged")
        with torch.no_grad():
            self.coefficients.copy_(coefficients)
        self.positions = positions.to(self.device, torch.int32)
        self._filled = True
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])

    # -- details -----------------------------------------------------------------------------------------------

    def _decode(self, coefficients: Tensor, positions: Tensor) -> Tensor:
        """Decode m images of each of G groups, [G, m, ch, k] at positions [G, k], to [G, m, ch, *im_size]."""
        dense = coefficients.new_zeros(*coefficients.shape[:3], self.d)
        dense = dense.scatter(3, _index(positions, coefficients.shape), coefficients)
        return frequency.inverse(dense.unflatten(3, self.im_size), len(self.im_size), self.transform)

    def _draw(self, c: int, rows: Tensor, name: str | int) -> Tensor:
        if len(rows) < self.num_per_class:
            raise InputError(
                f"class {name} has {counted(len(rows), 'image')}, but ipc {self.ipc} with msz_per_channel "
                f"{self.msz_per_channel} decodes {self.num_per_class}: lower ipc or raise msz_per_channel to at least "
                f"{math.ceil(self.ipc * self.d / max(len(rows), 1))}"
            )
        return rows[
            torch.randperm(len(rows), generator=generator(self.seed, "init", c))[: self.num_per_class].to(rows.device)
        ]

    def _gather(self, images_all: Tensor | ImageSource, rows: Tensor) -> Tensor:
        images = images_all[rows.to(images_all.device)] if isinstance(images_all, Tensor) else images_all.batch(rows)
        return images.detach().to(self.device, torch.float32)

    def _chunks(self, images_all: Tensor | ImageSource, rows: Tensor) -> Iterator[Tensor]:
        for part in rows.split(max(1, _SURVEY_CHUNK_VALUES // (self.channel * self.d))):
            yield self._gather(images_all, part)


def _index(positions: Tensor, shape: torch.Size) -> Tensor:
    """Expand positions [G, k] to `shape` [G, m, ch, k], an index along the last axis of a tensor [G, m, ch, d].

    All images and channels of a group share its positions.
    """
    return positions.long()[:, None, None].expand(shape)
