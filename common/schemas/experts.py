"""The files of a buffer: manifest.json, and the metadata of an expert's file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from common.schemas.fields import Count, Fraction, Positive, Side, Table, Text, absent, wrong
from common.schemas.synset import OfAChannel, Spread, Zca

Epochs = Annotated[Text, Field(pattern=r"^\d{1,9}$")]


class Images(Table):
    """The training images."""

    count: Count
    fingerprint: Text


class ManifestHead(Table):
    """What says how the rest of a manifest is to be read."""

    format: Text
    format_version: Positive


class Manifest(ManifestHead):
    """manifest.json: what experts are trained for. Beside these keys it has the flags that they were trained with."""

    dataset: Text
    image_size: list[Side]
    channels: Side
    class_names: list[Text]
    training_images: Images
    mean: list[OfAChannel]
    std: list[Spread]
    zca: Zca | None
    model: Text
    parameters: dict[Text, list[Count]]
    parameter_count: Count
    validation: dict[Text, Any] = absent()
    version: Text = absent()


class Expert(Table):
    """The metadata of an expert's file. Version 1 has no checksums."""

    format_version: Positive
    expert: Count = 0
    accuracies: dict[Epochs, Fraction | None]
    checksums: list[Text] = absent()

    @model_validator(mode="after")
    def _has_checksums(self) -> Expert:
        if self.format_version > 1 and not self.checksums:
            raise wrong("a checksum for each of its epochs (checksums)")
        return self
