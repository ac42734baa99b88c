"""Hyper-parameters for images of one's own, by a rule that takes their shape and number alone (docs/recipes.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from common.config.options import BufferOptions, DataOptions, DistillOptions, Sources
from common.config.validation import OWN_SHARE
from common.datasets import PREFIXES
from common.datasets.folder import side_for_all
from common.synset.adam import ADAM_STEP
from common.system.errors import InputError
from common.system.text import counted

Options = TypeVar("Options", bound=DistillOptions)
Buffers = TypeVar("Buffers", bound=BufferOptions)
Sized = TypeVar("Sized", bound=DataOptions)

SOURCE = "rule: docs/recipes.md"
OBJECTIVES = ("DM", "DC", "TM")
"""The objectives that the rule serves."""
BY_SIZE = "by_size"
"""The --model of a buffer.py that leaves the network to the rule."""
_OF_TRAJECTORIES = {"syn_steps": 50, "lr_lr": 1e-6, "max_start_epoch": 0}  # 0: TM/distill.py asks the experts
_SHARES = {1: 4, 3: 16}  # by the number of channels: one coefficient of so many is kept
_DEPTHS = ((32, 3), (64, 4), (128, 5))  # of the ConvNet, for sides up to so many pixels
_DEEPEST = 6


def mark(options: Options, sources: Sources, objective: str) -> tuple[Options, Sources]:
    """Leave to the rule what neither a flag nor a recipe says of a set that could not be distilled otherwise.

    The rule is for images of one's own: of `folder:` and `hf:`, without --recipe. What it decides has the source
    `SOURCE`, and its value is found by `decide` when the images are known.
    """
    own = is_own(options)
    if own and sources["validation_share"] == "default":
        options = dataclasses.replace(options, validation_share=OWN_SHARE)
        sources = sources | {"validation_share": SOURCE}
    if own and objective.rpartition("/")[2] == "TM":
        left: dict[str, Any] = {key: value for key, value in _OF_TRAJECTORIES.items() if sources[key] == "default"}
        options, sources = dataclasses.replace(options, **left), sources | dict.fromkeys(left, SOURCE)
    complete = options.lr_freq > 0 and (options.msz_per_channel > 0 or options.storage == "coded")
    served = objective.rpartition("/")[2] in OBJECTIVES and options.transform == "dct"
    if complete or not own or not served:
        return options, sources
    undecided = ["msz_per_channel", "model"]
    if options.positions != "joint":
        undecided += ["selection", "selection_images"]
    wants_sgd = options.optimizer == "sgd" or sources["mom_freq"] == "flag"  # of which there is no rule for the step
    if sources["lr_freq"] != "flag" and not wants_sgd:
        undecided += ["lr_freq", "optimizer"]
        options = dataclasses.replace(options, optimizer="adam", lr_freq=ADAM_STEP)
    return options, sources | {key: SOURCE for key in undecided if sources[key] != "flag"}


def with_side(options: Sized, sources: Sources) -> tuple[Sized, Sources]:
    """Options for images of one's own that have several sizes, with the side that makes them squares."""
    if not is_own(options) or options.image_size is not None:
        return options, sources
    side = side_for_all(options.dataset, options.decoding)
    if side is None:
        return options, sources
    return dataclasses.replace(options, image_size=side), sources | {"image_size": SOURCE}


def steps_of_student(most: int, expert_epochs: int, images: int) -> int:
    """The steps of TM's student: at most the published ones, and at most those of an expert in the epochs matched.

    A student's step is at first as long as an expert's, so with more of them it would overshoot, learn a shorter step,
    and leave that to the networks that are evaluated. images: all that an expert is trained on, in batches of the size
    that TM/buffer.py has by default.
    """
    return min(most, expert_epochs * math.ceil(images / BufferOptions.batch_train))


def is_own(options: DataOptions) -> bool:
    """Whether the images are of one's own, with hyper-parameters that no other dataset lends."""
    return options.dataset.startswith(tuple(PREFIXES)) and options.recipe is None


def network_for(im_size: Sequence[int]) -> str:
    """The network by the shorter side: each of its blocks halves the images."""
    depth = next((each for side, each in _DEPTHS if min(im_size) <= side), _DEEPEST)
    return f"ConvNetD{depth}"


def with_network(options: Buffers, im_size: Sequence[int]) -> Buffers:
    """The options of a buffer.py with the network that the rule chooses, if it is left to the rule."""
    return options if options.model != BY_SIZE else dataclasses.replace(options, model=network_for(im_size))


def is_left(sources: Sources, key: str) -> bool:
    """Whether the rule decides an option."""
    return sources[key] == SOURCE


def decide(
    options: Options, sources: Sources, channels: int, im_size: Sequence[int], smallest: int
) -> tuple[Options, list[str]]:
    """The options with the values of the rule, and what it decided, in words; [] if nothing is left to it.

    smallest: the number of images of the smallest class, which a set cannot exceed. Raises InputError if ipc does.
    """
    if is_left(sources, "msz_per_channel") and options.ipc > smallest:
        raise InputError(f"a class has only {counted(smallest, 'image')}: lower --ipc ({options.ipc})")
    d = math.prod(im_size)
    k = max(d // _SHARES.get(channels, _SHARES[3]), math.ceil(options.ipc * d / smallest), 1)
    # The variance drops the mean of a class, which images of one channel, such as drawings and letters, often share.
    one = channels == 1
    values: dict[str, Any] = {
        "model": network_for(im_size),
        "msz_per_channel": k,
        "selection": "energy" if one else "variance",
        "selection_images": "class" if one else "init",
    }
    found = {key: value for key, value in values.items() if is_left(sources, key)}
    told = [f"--{key} {value}" for key, value in found.items()]
    told += [
        f"--{key} {getattr(options, key)}" for key in ("optimizer", "lr_freq", "image_size") if is_left(sources, key)
    ]
    return dataclasses.replace(options, **found), told
