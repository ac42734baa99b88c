"""The metadata of a synthetic-set file, of all format versions."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from common.schemas import door
from common.schemas.fields import (
    Amount,
    Content,
    Count,
    Evaluation,
    Fraction,
    Number,
    Objective,
    Point,
    Positive,
    Side,
    Table,
    Text,
    absent,
    wrong,
)

ImageSide = Annotated[int, Strict(), Field(ge=1, le=door.LARGEST_SIDE)]
Classes = Annotated[int, Strict(), Field(ge=1, le=1 << 24)]
OfAChannel = Annotated[float, Strict(), Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Spread = Annotated[float, Strict(), Field(gt=0, le=1e6, allow_inf_nan=False)]


class Storage(Table):
    """How a set in fewer bits is stored."""

    kind: Text
    bits_per_class: Positive
    images_per_class: Positive
    colour: Text
    block: Count
    positions: Text
    numbers: Count
    bytes: Positive


class Zca(Table):
    """The whitening of a set."""

    eps: Annotated[float, Strict(), Field(gt=0, le=1e6, allow_inf_nan=False)]
    fingerprint: Text | None


class Architecture(Table):
    """What the network is that a set was made for."""

    parameters: Count
    hash: Text


class Files(Table):
    """What the images of an imported set take on the disk."""

    kind: Text
    name: Text
    bytes: Count
    bits_per_class: Count


class Source(Table):
    """Where a set comes from that was converted."""

    format: Text | None = None
    files: list[Text] = absent()
    residual: Number = 0.0


class Told(Table):
    """What whoever saves a set tells of it. Null is unknown, and so is an absent key."""

    dataset: Text | None = None
    mean: list[OfAChannel] | None = None
    std: list[Spread] | None = None
    zca: Zca | None = None
    class_names: list[Text] | None = None
    image_size: ImageSide | None = None
    resize: Literal["crop", "squash"] | None = None
    antialias: Annotated[bool, Strict()] | None = None
    decoding: Literal["shown", "stored"] | None = None
    objective: Objective | None = None
    model: Text | None = None
    network: Text | None = None
    evaluation: Evaluation | None = None
    accuracy: Point | None = None
    content: Content | None = None
    seed: Annotated[int, Strict()] | None = None
    tried_n: dict[Text, Fraction] | None = None
    version: Text | None = None
    architecture: Architecture | None = None
    files: Files | None = None
    source: Source = absent()
    step_size: Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)] = absent()


class Synset(Told):
    """All metadata of a file."""

    format_version: Positive
    channel: Side
    num_classes: Classes
    im_size: Annotated[list[ImageSide], Field(min_length=2, max_length=3)]
    ipc: Count
    msz_per_channel: Count
    transform: Text
    selection: Text
    selection_images: Text
    lr_freq: Amount | None
    mom_freq: Amount
    storage: Storage = absent()
    soft_labels: Literal["probabilities", "logits"] = absent()

    @model_validator(mode="after")
    def _has_a_budget(self) -> Synset:
        if self.storage is None and not (self.ipc and self.msz_per_channel):
            raise wrong("a budget of at least one image and one coefficient (ipc, msz_per_channel)")
        return self

    @property
    def decoded(self) -> int:
        """The number of values of all decoded images."""
        d = math.prod(self.im_size)
        n = self.storage.images_per_class if self.storage else self.ipc * d // self.msz_per_channel
        return self.num_classes * n * self.channel * d

    @model_validator(mode="after")
    def _can_be_decoded(self) -> Synset:
        if self.decoded > door.LARGEST_SET:
            raise wrong(
                f"a set of at most {door.LARGEST_SET:,} values (num_classes, images per class, channel, im_size)"
            )
        return self


def check_metadata(metadata: Any, where: str, remedy: str) -> dict[str, Any]:
    """Return the metadata of a file, which fit the schema and each other. Raises InputError if they do not."""
    checked = door.check(metadata, Synset, where, remedy)
    classes, channels = checked["num_classes"], checked["channel"]
    counts = {"class_names": {classes}, "mean": {channels, 1}, "std": {channels, 1}}  # 1: of all channels
    for key, fitting in counts.items():
        if (values := checked.get(key)) is not None and len(values) not in fitting:
            raise door.refuse(where, key, values, f"a list of {max(fitting)}", remedy)
    return checked
