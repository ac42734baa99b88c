"""What every synthetic set is, however it is stored: learned coefficients of n images per class, decoded on demand."""

from __future__ import annotations

import copy
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from common.schemas import door
from common.synset.adam import SpreadAdam, spread_of
from common.synset.soft_labels import SoftLabels
from common.system.devices import total_memory
from common.system.errors import InputError
from common.system.seeds import generator


class ImageSource(Protocol):
    """Images that are too many to hold normalised; `batch(indices)` returns some as float32 [B, ch, *im_size]."""

    def batch(self, indices: Tensor) -> Tensor: ...


# Pixel values that are transformed at a time when positions are chosen from a whole class. This many fit a processor's
# cache: choosing from all of CIFAR-10 takes 2 s, and 8 s in pieces eight times as large.
_SURVEY_CHUNK_VALUES = 1_000_000


def order(seed: int, c: int, count: int) -> Tensor:
    """The order in which initial images are drawn from the `count` images of class c: a set of n takes the first n."""
    return torch.randperm(count, generator=generator(seed, "init", c), device="cpu")


@dataclass
class SetArgs:
    """The arguments that every kind of set needs."""

    channel: int
    num_classes: int
    im_size: Sequence[int]
    device: torch.device | str
    ipc: int
    msz_per_channel: int
    lr_freq: float
    mom_freq: float


class LearnedSet(ABC):
    """C classes of n images each, with ch channels of d pixels, all made of one tensor of learned `coefficients`.

    The first two axes of `coefficients`, float32, are [C, n]. `labels` int64 [C * n] are grouped by class.
    """

    transform: str = "dct"
    selection: str
    positions: Tensor
    num_per_class: int
    labels: Tensor
    soft_labels: SoftLabels | None = None
    """of all images, if networks are to be trained with them in place of `labels`: read from a file, never learned"""
    coefficients: Tensor
    optimizer: torch.optim.Optimizer

    def __init__(self, args: Any) -> None:
        self.args = args
        self.channel, self.num_classes, self.ipc, self.msz_per_channel = (
            _whole(name, getattr(args, name)) for name in ("channel", "num_classes", "ipc", "msz_per_channel")
        )
        self.im_size = tuple(_whole("a side of im_size", side) for side in args.im_size)
        self.device = torch.device(args.device)
        self.seed: int = getattr(args, "seed", 0)
        self.d = math.prod(self.im_size)
        self._survey: list[Iterable[Tensor]] | None = None
        self._filled = False

    def _allocate(self, num_per_class: int, *shape: int) -> None:
        """Make labels, coefficients [C, n, *shape] of zeros, and their optimiser.

        Raises InputError for a set that is too large for the device or a file, before memory is taken.
        """
        self._check_size(num_per_class)
        self.num_per_class = num_per_class
        self.labels = torch.arange(self.num_classes, device=self.device).repeat_interleave(num_per_class)
        # A host may have set other defaults for new tensors than float32 and the CPU (tests/test_hosts.py).
        coefficients = torch.zeros(self.num_classes, num_per_class, *shape, dtype=torch.float32, device=self.device)
        self.coefficients = coefficients.requires_grad_()
        if getattr(self.args, "optimizer", "sgd") == "adam":
            self.optimizer = SpreadAdam(self.coefficients, self.args.lr_freq)
        else:
            self.optimizer = torch.optim.SGD([self.coefficients], lr=self.args.lr_freq, momentum=self.args.mom_freq)

    def _check_size(self, num_per_class: int) -> None:
        values = self.num_classes * num_per_class * self.channel * self.d
        memory = total_memory(self.device)
        if values > door.LARGEST_SET:
            most = f"a set has at most {door.LARGEST_SET:,}"
        elif memory is not None and 4 * values > memory:
            most = f"the memory of {self.device} has room for {memory // 4:,}"
        else:
            return
        raise InputError(
            f"{num_per_class:,} images per class, for {self.num_classes:,} classes, are {values:,} values, and {most}: "
            "lower the budget (ipc, n or bits_per_class)"
        )

    # -- what a kind of storage says -----------------------------------------------------------------------------

    @abstractmethod
    def _start(self, images: Tensor) -> None:
        """Choose what is kept, and set the coefficients to those of images [C, n, ch, *im_size]."""

    @abstractmethod
    def _decode_classes(self, classes: slice, copy: bool) -> Tensor:
        """Decode all images of some classes, [c, n, ch, *im_size]. copy: without a graph."""

    @abstractmethod
    def _decode_rows(self, rows: Tensor, copy: bool) -> Tensor:
        """Decode the images [R, ch, *im_size] of these rows of all C * n. copy: without a graph."""

    @abstractmethod
    def budget(self) -> dict[str, int]:
        """Return counts and bytes of what the set stores, and the number of images that it decodes to."""

    @abstractmethod
    def describe_budget(self) -> str:
        """Return the budget as one line of text."""

    @abstractmethod
    def describe_kept(self, by_rule: bool = False) -> str:
        """Say what an image keeps, such as "64 of 1,024 DCT coefficients"; by_rule: and by which rule."""

    @abstractmethod
    def file_contents(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a file holds of the set: its tensors by name, and metadata that say how they are stored."""

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """The kept positions as a boolean [C, *im_size], for inspection; it is built at each access."""

    def stored(self) -> LearnedSet:
        """Return the set as its file holds it, which is what is evaluated: this one, if storing changes nothing."""
        return self

    def shared_parts(self) -> list[Tensor]:
        """Tensors on which all processes of a job have to agree before the first update."""
        return [self.positions, self.coefficients]

    # -- the interface that objectives use ---------------------------------------------------------------------

    def init(
        self,
        images_all: Tensor | ImageSource,
        labels_all: Tensor,
        indices_class: Sequence[Sequence[int] | Tensor],
    ) -> None:
        """Initialise from real images: draw n per class without replacement and keep coefficients of each.

        images_all: normalised images [N, ch, *im_size], or an object whose `batch(indices)` returns such images.
        labels_all: int64 [N]. indices_class: for each class the indices of its images.
        Raises InputError for a class with fewer than n images, a drawn index whose label is another class, or images of
        another shape than [ch, *im_size]; IndexError for an index without an image or a label.
        """
        indices = [_indices(rows, f"indices_class[{c}]") for c, rows in enumerate(indices_class)]
        labels = labels_all if isinstance(labels_all, Tensor) else torch.as_tensor(labels_all, device="cpu")
        self._check_sources(images_all, labels, indices)
        names = getattr(images_all, "class_names", range(self.num_classes))
        drawn = torch.stack([self._draw(c, rows, names[c]) for c, rows in enumerate(indices)])  # [C, n]
        images = self._gather(images_all, drawn.flatten())
        if not torch.equal(labels[drawn.flatten().to(labels.device)].to(self.device), self.labels):
            raise InputError("indices_class disagrees with labels_all: some index has another class's label")
        if images.shape[1:] != (self.channel, *self.im_size):
            expected = (self.channel, *self.im_size)
            raise InputError(f"the images are {tuple(images.shape[1:])}, the arguments say {expected}")
        by_class = images.unflatten(0, (self.num_classes, self.num_per_class))
        if getattr(self.args, "selection_images", "init") == "init":
            self._survey = [[rows] for rows in by_class]
        else:
            self._survey = [self._chunks(images_all, rows) for rows in indices]
        self._start(by_class)
        self._survey = None
        self._filled = True
        self.optimizer.state.clear()
        if isinstance(self.optimizer, SpreadAdam):
            self.optimizer.set_spread(spread_of(self.coefficients.detach()))
        self.optim_zero_grad()

    def decode(self, classes: slice | None = None) -> Tensor:
        """Return all images, float32 [C * n, ch, *im_size], differentiable with respect to `coefficients`.

        classes: decode only these classes; for c classes the result is [c * n, ch, *im_size].
        Raises InputError before `init` or `load_state_dict`.
        """
        self.check_filled()
        return self._decode_classes(slice(None) if classes is None else classes, False).flatten(0, 1)

    def get(self, indices: Iterable[int] | Tensor | None = None, need_copy: bool = False) -> tuple[Tensor, Tensor]:
        """Return (images, labels) of the images in `indices`, or of all; `need_copy` gives copies without a graph.

        Negative indices count from the end. Raises InputError before `init` or `load_state_dict`, TypeError for indices
        that are no list of whole numbers, and IndexError for one that no image has (of indices on the CPU).
        """
        self.check_filled()
        if indices is None:
            return self._decode_classes(slice(None), need_copy).flatten(0, 1), self.labels.clone()
        rows = _indices(indices, "indices")
        _check_range(rows, len(self.labels), "image")
        rows = rows.to(self.device)
        return self._decode_rows(rows, need_copy), self.labels[rows]

    def optim_zero_grad(self) -> None:
        """Clear the gradient of the coefficients. Raises InputError before `init` or `load_state_dict`."""
        self.check_filled()
        self.optimizer.zero_grad()

    def optim_step(self) -> None:
        """Take one step of the optimiser on the coefficients.

        That is SGD with momentum (lr_freq is in the transform's own units) or `SpreadAdam` (lr_freq is in units of the
        spread of each position). Raises InputError before `init` or `load_state_dict`.
        """
        self.check_filled()
        self.optimizer.step()

    # -- contents ------------------------------------------------------------------------------------------------

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

    def show_budget(self) -> None:
        """Print the line that `describe_budget` returns."""
        print(self.describe_budget())

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficients, the positions and the optimiser's state, so that a run can resume bit for bit."""
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
        self._check_positions(positions)
        with torch.no_grad():
            self.coefficients.copy_(coefficients)
        self.positions = positions.to(self.device, self.positions.dtype)
        self._filled = True
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])

    def _check_positions(self, positions: Tensor) -> None:
        limit = self._position_limit()
        if positions.min() < 0 or positions.max() >= limit or (positions.diff(dim=1) <= 0).any():
            raise InputError(f"the stored positions are not ascending numbers below {limit}: the file is damaged")

    def _position_limit(self) -> int:
        return self.d

    # -- details -----------------------------------------------------------------------------------------------

    def _check_sources(self, images_all: Tensor | ImageSource, labels: Tensor, indices: list[Tensor]) -> None:
        if len(indices) != self.num_classes:
            raise InputError(
                f"indices_class has the images of {len(indices)} classes, and the set has {self.num_classes}: give one "
                "list of indices for each class"
            )
        for rows in indices:
            _check_range(rows, len(labels), "label in labels_all")
            if isinstance(images_all, Tensor):
                _check_range(rows, len(images_all), "image in images_all")

    def _draw(self, c: int, rows: Tensor, name: str | int) -> Tensor:
        if len(rows) < self.num_per_class:
            raise InputError(f"class {name} has {self._too_few(len(rows))}")
        return rows[order(self.seed, c, len(rows))[: self.num_per_class].to(rows.device)]

    @abstractmethod
    def _too_few(self, found: int) -> str:
        """The end of a sentence about a class with only `found` images, with what to do about it."""

    def _gather(self, images_all: Tensor | ImageSource, rows: Tensor) -> Tensor:
        images = images_all[rows.to(images_all.device)] if isinstance(images_all, Tensor) else images_all.batch(rows)
        return images.detach().to(self.device, torch.float32)

    def _chunks(self, images_all: Tensor | ImageSource, rows: Tensor) -> Iterator[Tensor]:
        for part in rows.split(max(1, _SURVEY_CHUNK_VALUES // (self.channel * self.d))):
            yield self._gather(images_all, part)


def _whole(name: str, value: Any) -> int:
    """The argument as an int. Raises InputError for one that is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        why = ", for budgets are counted in whole images per class" if name == "ipc" else ""
        raise InputError(f"{name} is to be a whole number, not {value!r}{why}") from None


def _indices(given: Iterable[int] | Tensor, called: str) -> Tensor:
    """A list of whole numbers as int64 [R]. Raises TypeError, with `called`, for anything else."""
    wanted = f"{called} is to be a list of whole numbers, or a tensor [R] of them"
    if not isinstance(given, Iterable):
        raise TypeError(f"{wanted}, not {type(given).__name__}: put a single one into brackets")
    if isinstance(given, Tensor) and given.dim() != 1:
        raise TypeError(f"{wanted}, not one of shape {list(given.shape)}")
    rows = given if isinstance(given, Tensor) else torch.as_tensor(list(given), device="cpu")
    if rows.dim() != 1:
        raise TypeError(f"{wanted}, not one of shape {list(rows.shape)}")
    if rows.dtype == torch.bool:
        raise TypeError(f"{wanted}, not a mask: give mask.nonzero()[:, 0]")
    if len(rows) and (rows.is_floating_point() or rows.is_complex()):
        raise TypeError(f"{wanted}, not of {rows.dtype}")
    return rows.long()


def _check_range(rows: Tensor, count: int, what: str) -> None:
    """Raise IndexError for an index that none of `count` has; what: one of them, in words.

    Indices on a GPU are not looked at, which would wait for it.
    """
    if rows.device.type != "cpu":
        return
    outside = rows[(rows < -count) | (rows >= count)]
    if len(outside):
        raise IndexError(f"there is no {what} {int(outside[0])}: there are {count:,}, counted from 0")
