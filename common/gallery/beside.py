"""What a common image codec makes of the bytes of a synthetic set: random real images of its classes in files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from common.datasets import ImageData, draw_per_class, load_dataset
from common.images.pixels import StoredAs
from common.report.description import needed_bytes
from common.synset.base import LearnedSet
from common.system.errors import InputError
from common.training.image_codecs import codec_of
from common.training.real_images import random_draws
from common.training.stored_real import Budget, describe_storage, store_real
from common.training.train import Batches


class Beside(NamedTuple):
    """Real images by class, each [n, ch, H, W] in 0..1, and one line on what they take; without images, why."""

    images: list[Tensor]
    told: str


class RealImages:
    """Stores real images in the bytes of sets. Sets of the same images share what is read from the disk.

    data_path: the folder with datasets, None for the default. Nothing is downloaded.
    """

    def __init__(self, stored_as: StoredAs, data_path: str | None) -> None:
        self._stored_as, self._data_path = stored_as, data_path
        self._data: dict[tuple[Any, ...], ImageData | InputError] = {}

    def of(self, synset: LearnedSet, metadata: dict[str, Any]) -> Beside:
        """Random real images of the set's classes, in files that take as many bytes as a decoder of the set needs.

        As many images as the set has if they fit, otherwise as `store_real` chooses; whole files if they fit,
        otherwise their headers do not count, and the line says so.
        """
        try:
            data = self._images_of(metadata)
            if data.num_classes != synset.num_classes:
                raise InputError(f"{data.name} has {data.num_classes} classes, the set {synset.num_classes}")
            stored, storage = self._stored(data, synset)
        except InputError as error:
            return Beside([], f"No real images: {error}.")
        pixels = data.denormalise(stored.images)
        return Beside([pixels[stored.labels == c] for c in range(data.num_classes)], f"{describe_storage(storage)}.")

    def _stored(self, data: ImageData, synset: LearnedSet) -> tuple[Batches, dict[str, Any]]:
        bits = 8 * needed_bytes(synset.budget()) // synset.num_classes
        as_many = min(synset.num_per_class, data.smallest_class)
        if self._stored_as != "coded" and not codec_of(self._stored_as, data.channels).qualities:
            counts: list[int | None] = [None]  # a lossless codec takes as many as fit
        else:
            counts = [as_many, None]
        refusal = InputError()
        for headers in (True, False):
            for count in counts:
                try:
                    return store_real(data, _draw(data), self._stored_as, Budget(bits, headers), count)
                except InputError as error:
                    refusal = error
        raise refusal

    def _images_of(self, metadata: dict[str, Any]) -> ImageData:
        name = metadata.get("dataset")
        if name is None:
            raise InputError("the file does not say which dataset the set was made of")
        how = {key: metadata[key] for key in ("image_size", "resize", "antialias", "decoding") if key in metadata}
        asked = (name, *how.items())
        if asked not in self._data:
            try:
                self._data[asked] = load_dataset(name, self._data_path, download=False, **how)[0]
            except InputError as error:
                self._data[asked] = error
        found = self._data[asked]
        if isinstance(found, InputError):
            raise found
        return found


def _draw(data: ImageData) -> Callable[[int], Tensor]:
    """The random images that `evaluate.py --baseline random --seed 0` stores."""
    return lambda n: draw_per_class(data, n, random_draws(0, 0))
