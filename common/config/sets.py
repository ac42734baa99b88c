"""The synthetic set that options describe, for images of a given shape."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import torch

from common.codec.planes import usual_colour
from common.config.options import DistillOptions
from common.synset.packed import PackedArgs, PackedSet, coded_images
from common.synset.synset import SynSet, SynSetArgs

FLOAT_BITS = 32


class Shape(Protocol):
    """What a set depends on of the images that it is made from: `ImageData` has it, and `recipes.shapes.DataShape`."""

    @property
    def channels(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def im_size(self) -> tuple[int, ...]: ...

    @property
    def smallest_class(self) -> int: ...


def new_set(
    options: DistillOptions, shape: Shape, device: torch.device | str, count: int | None = None
) -> SynSet | PackedSet:
    """The synthetic set that the options describe, before it is initialised. Raises InputError for bad options.

    count: its images per class, in place of --n. Without it, --n auto counts as the default.
    """
    common: dict[str, Any] = {
        "channel": shape.channels,
        "num_classes": shape.num_classes,
        "im_size": shape.im_size,
        "device": device,
        "optimizer": options.optimizer_used,
        **{
            key: getattr(options, key)
            for key in ("ipc", "msz_per_channel", "lr_freq", "mom_freq", "selection", "selection_images", "seed")
        },
    }
    if options.storage == "fp32":
        return SynSet(SynSetArgs(**common, transform=options.transform))
    bits, smallest = bits_of(options, shape), shape.smallest_class
    if count is None and options.n not in (None, "auto"):
        count = int(options.n)
    if count is None and options.storage == "coded":
        count = min(smallest, coded_images(bits, shape.channels, shape.im_size))
    arguments = PackedArgs(
        **common,
        bits_per_class=bits,
        storage=options.storage,
        colour=options.colour or (usual_colour(shape.channels) if options.joint else "rgb"),
        block=options.block,
        kept="joint" if options.joint else "shared",
        num_per_class=count or 0,
        rate_weight=options.rate_weight,
    )
    synset = PackedSet(arguments)
    if count is None and synset.num_per_class > smallest:  # more images fit than there are
        return PackedSet(dataclasses.replace(arguments, num_per_class=smallest))
    return synset


def bits_of(options: DistillOptions, shape: Shape) -> int:
    """The budget in bits per class: that of --bits_per_class, or of ipc float32 images."""
    return options.bits_per_class or options.ipc * bits_of_image(shape)


def bits_of_image(shape: Shape) -> int:
    """The bits of one float32 image of a dataset, in which a budget of ipc images is counted."""
    return FLOAT_BITS * shape.channels * math.prod(shape.im_size)
