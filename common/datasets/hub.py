"""`hf:owner/name` from the Hugging Face hub, or `hf:PATH`, a folder of parquet files, read by the library `datasets`.

What cannot be guessed is said after a question mark: ?config=NAME&image=COLUMN&label=COLUMN&train=SPLIT&test=SPLIT, any
of them. No code of a dataset is ever run: versions of the library that could are refused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import torch

from common.datasets.stored_names import check_stored_names
from common.disk.listing import files_below
from common.disk.paths import expanded, is_folder, is_home
from common.images import disk_cache
from common.images.decoded import check_request, decode_once
from common.images.encoded import FORMAT, Encoded, Source, transparency
from common.images.image_data import ImageData, Request, refuse_alike
from common.images.pixels import Decoding, Resize, resize_key
from common.system.errors import InputError

PREFIX = "hf:"
KEYS = ("config", "image", "label", "train", "test")
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first that exists
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")  # where no column has the type ClassLabel
_MOST_ENTRIES = 100_000  # files of a dataset that is a folder
OLDEST = 4  # version of `datasets`, the first that cannot run a dataset's own code
INSTALL = "pip install 'datasets>=4.0' (part of the extra hub)"


@dataclass(frozen=True)
class Name:
    """What follows `hf:`."""

    path: str
    """owner/name, or a folder's absolute path."""
    local: bool
    """Whether it is a folder."""
    choices: dict[str, str] = field(default_factory=dict)
    """By `KEYS`: the configuration, the columns and the splits that were asked for."""

    def __str__(self) -> str:
        return f"{PREFIX}{self.path}{'?' if self.choices else ''}{urlencode(self.choices, safe='/')}"

    def with_choice(self, key: str, value: str) -> str:
        """The same dataset with one more choice, to be shown as an example."""
        return f"'{Name(self.path, self.local, {**self.choices, key: value})}'"


def parse(text: str) -> Name:
    """Read what follows `hf:`; raises `InputError` unless it is a folder or owner/name, with choices of `KEYS`."""
    path, _, query = text.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise InputError(f"{PREFIX}{text} has {query!r} after the question mark: write KEY=VALUE&KEY=VALUE") from error
    choices = dict(pairs)
    if wrong := [key for key, value in pairs if key not in KEYS or not value or len(choices) < len(pairs)]:
        raise InputError(f"{PREFIX}{text} has a wrong {wrong[0]!r}: each of {', '.join(KEYS)} takes one value")
    folder = expanded(path)
    if path and is_folder(folder):
        return Name(str(folder.resolve()), True, choices)
    if path.startswith(("/", ".", "~")) or len([part for part in path.split("/") if part]) != 2:
        raise InputError(f"{PREFIX}{path} is neither a folder nor a dataset of the hub: give hf:PATH or hf:owner/name")
    return Name(path, False, choices)


def load(text: str, request: Request) -> tuple[ImageData, ImageData]:
    """The training and the test images of a dataset, decoded once and then kept in the user's cache folder.

    uint8 `[N, ch, H, W]`: ch is 1 if every image is grayscale, else 3. Mean and std are those of the training images.
    Raises `InputError` if the dataset is not there or cannot be fetched, if it does not say which columns and splits
    are meant, for an image that is damaged or of another size than the rest, and if all images of a split are alike.
    """
    check_request(request)
    name = parse(text)
    datasets = import_library()
    if name.local:
        _check_folder(Path(name.path))
    splits, files = _fetch(datasets, name, request)
    train_split, test_split = _choose_splits(name, list(splits))
    chosen = {split: splits[split] for split in (train_split, test_split)}
    image, label = _choose_columns(datasets, name, chosen[train_split].features)
    class_names, labels = _labels(datasets, name, label, chosen)
    if isinstance(chosen[train_split].features[label], datasets.ClassLabel):
        files = {split: files[split] for split in chosen if split in files}
        check_stored_names(datasets, files, label, str(name))
    sources = _Images(datasets, name, image, chosen)
    decoding = request.decoding or "shown"
    unusual = [decoding] if decoding != "shown" else []
    cache = disk_cache.named_file("hub", [str(name), *resize_key(request.resize), *unusual])
    key = _fingerprint(chosen, image, request.resize, decoding)
    decoded = decode_once(sources, labels, class_names, cache, key, request, decoding, Path(name.path).name)
    train, test = (
        ImageData(images, left, *decoded.statistics, class_names, str(name), raw_fingerprint=known, check=check)
        for (images, left), known, check in zip(
            (decoded.train, decoded.test), decoded.fingerprints, decoded.checks, strict=True
        )
    )
    for data, split in ((train, "training"), (test, "test")):
        refuse_alike(data, f"{split} images", transparency(decoded.remarks, decoding))
    return train, test


def _check_folder(folder: Path) -> None:
    """Raise InputError for a folder that is no dataset: the library would look through all of it, and say nothing."""
    remedy = f"give the folder of the parquet files, as in {PREFIX}PATH"
    if is_home(folder) or folder == Path(folder.anchor):
        raise InputError(f"{PREFIX}{folder} is all that there is on this machine, or of yours: {remedy}")
    if next(islice(files_below(folder), _MOST_ENTRIES, None), None) is not None:
        raise InputError(f"{PREFIX}{folder} has more than {_MOST_ENTRIES:,} files: {remedy}")


def import_library() -> Any:
    """Return the package datasets; raises `InputError` if it is missing, or so old that it may run a dataset's code."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{PREFIX} datasets are read by the package datasets: {INSTALL}") from error
    if int(datasets.__version__.split(".")[0]) < OLDEST:
        raise InputError(
            f"datasets {datasets.__version__} may run code that comes with a dataset, which {OLDEST}.0 and newer do "
            f"not: {INSTALL}"
        )
    return datasets


def _fetch(datasets: Any, name: Name, request: Request) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """All splits by name, as memory-mapped tables, and the files that they were read from.

    Of a dataset that the library has kept and that is not looked up again, no files are known. Raises `InputError`
    where it fails, for whichever reason.
    """
    offline = name.local or not request.download
    try:
        with _settings(datasets, offline, request.progress):
            splits = datasets.load_dataset(name.path, name.choices.get("config"), keep_in_memory=False)
            found = datasets.load_dataset_builder(name.path, name.choices.get("config")).config.data_files or {}
            # Which hands out what it has already downloaded.
            files = datasets.DownloadManager().download({str(split): list(each) for split, each in found.items()})
            return splits, files
    # Its own exceptions, Arrow's, YAML's and those of the network have no base in common.
    except Exception as error:
        told = (isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__) or error
        # Some messages go on for lines, with an example in Python at the end.
        reason = textwrap.shorten(f"{type(told).__name__}: {told}".split("Example of usage")[0], 300)
        if name.local:
            remedy = "put train-*.parquet and test-*.parquet into it"
        elif offline:
            remedy = "run once without --no_download, or give the folder of its parquet files as hf:PATH"
        else:
            remedy = "check its name and the network, or give the folder of its parquet files as hf:PATH"
        if "config" in str(told).lower():
            remedy = f"choose one as in {name.with_choice('config', 'NAME')}"
        raise InputError(f"{name} cannot be loaded ({reason}): {remedy}") from error


@contextmanager
def _settings(datasets: Any, offline: bool, progress: bool) -> Iterator[None]:
    """The library's switches for one call: they are its module variables, and are put back at the end."""
    import huggingface_hub

    # It reads both; local_files_only of its DownloadConfig, the setting of a single call, reaches neither the look-up
    # of a name nor the counting of a load.
    switches = [datasets.config, huggingface_hub.constants]
    loggers = [logging.getLogger(each) for each in ("datasets", "huggingface_hub")]
    before = [each.HF_HUB_OFFLINE for each in switches], [each.level for each in loggers]
    hide_bars = not progress and not datasets.utils.are_progress_bars_disabled()
    for each in switches:
        each.HF_HUB_OFFLINE = each.HF_HUB_OFFLINE or offline
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # what matters of it arrives as an exception
    if hide_bars:
        datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        for each, was in zip(switches, before[0], strict=True):
            each.HF_HUB_OFFLINE = was
        for logger, level in zip(loggers, before[1], strict=True):
            logger.setLevel(level)
        if hide_bars:
            datasets.utils.enable_progress_bars()


def _choose_splits(name: Name, have: list[str]) -> tuple[str, str]:
    """The names of the training and the test split."""
    train = name.choices.get("train", "train")
    test = name.choices.get("test") or next((split for split in TEST_SPLITS if split in have), TEST_SPLITS[0])
    for key, split in (("train", train), ("test", test)):
        if split not in have or (key == "test" and test == train):
            others = [each for each in have if each != train]
            remedy = f"choose one as in {name.with_choice(key, others[0])}" if others else "give one that has two"
            raise InputError(f"{name} has no {key} split {split!r} of its own, but {', '.join(have)}: {remedy}")
    return train, test


def _choose_columns(datasets: Any, name: Name, features: dict[str, Any]) -> tuple[str, str]:
    """The names of the image column and the label column: asked for, or the only ones of a fitting type."""
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    values = [column for column, kind in features.items() if _is_integer(kind) or _is_text(kind)]
    labels = classes or [column for column in values if column in LABEL_COLUMNS]
    chosen = []
    for key, fitting, allowed in (("image", images, images), ("label", labels, classes + values)):
        wanted = name.choices.get(key)
        if wanted is None and len(fitting) == 1:
            wanted = fitting[0]
        if wanted is None or wanted not in allowed:
            if wanted is None and fitting:
                problem = f"several {key} columns ({', '.join(fitting)})"
            else:
                problem = f"no {key} column{f' {wanted!r}' if wanted else ''} among {', '.join(features)}"
            example = name.with_choice(key, (fitting or ["COLUMN"])[0])
            raise InputError(f"{name} has {problem}: name one as in {example}")
        chosen.append(wanted)
    return chosen[0], chosen[1]


def _is_integer(kind: Any) -> bool:
    return getattr(kind, "dtype", "").startswith(("int", "uint"))


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", "") in ("string", "large_string", "string_view")


def _labels(
    datasets: Any, name: Name, column: str, splits: dict[str, Any]
) -> tuple[tuple[str, ...], tuple[torch.Tensor, torch.Tensor]]:
    """The class names, and the labels of the training and the test split, int64 `[N]`.

    A ClassLabel column names its classes; the classes of another are the sorted values that its training split holds.
    """
    train = next(iter(splits.values()))
    kind = train.features[column]
    if isinstance(kind, datasets.ClassLabel):
        names = tuple(kind.names)
        label_of: dict[Any, int] = {label: label for label in range(len(names))}
    else:
        classes = sorted({value for value in _column(train, column) if value is not None})
        names = tuple(map(str, classes))
        label_of = {value: label for label, value in enumerate(classes)}
    where = f"the column {column!r} of {name}"
    if len(names) < 2:
        raise InputError(f"{where} has {len(names)} class(es), at least 2 are needed: name another by ?label=COLUMN")
    labels = []
    for split, table in splits.items():
        values = _column(table, column)
        if not values:
            raise InputError(f"the split {split!r} of {name} is empty: choose others by ?train=SPLIT&test=SPLIT")
        if strange := set(values) - set(label_of):
            raise InputError(
                f"{where} holds {min(map(str, strange))} in the split {split!r}, which is none of the classes: "
                "choose a split with labels by ?train=SPLIT or ?test=SPLIT, or remove these rows"
            )
        labels.append(torch.tensor([label_of[value] for value in values]))
    return names, (labels[0], labels[1])


def _column(table: Any, column: str) -> list[Any]:
    return table.select_columns(column).with_format("arrow")[:].column(column).to_pylist()


class _Images(Sequence[Source]):
    """The encoded images of both splits, one after the other, fetched from the tables as they are sliced."""

    def __init__(self, datasets: Any, name: Name, column: str, splits: dict[str, Any]) -> None:
        as_stored = datasets.Image(decode=False)
        tables = [table.select_columns(column).cast_column(column, as_stored) for table in splits.values()]
        self.table = datasets.concatenate_datasets(tables)
        self.column = column
        self.train, self.test = splits
        self.boundary = len(splits[self.train])
        self.name = name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return self[index : index + 1][0]
        stored = self.table[index][self.column]
        return [self._source(image, row) for row, image in zip(range(len(self))[index], stored, strict=True)]

    def _source(self, image: dict[str, Any] | None, row: int) -> Source:
        split, number = (self.train, row) if row < self.boundary else (self.test, row - self.boundary)
        where = f"image {number} (from 0) of the split {split!r} of {self.name}"
        if image is None or (image["bytes"] is None and not image["path"]):
            raise InputError(f"{where} is missing: remove the row, or choose another split")
        return image["path"] if image["bytes"] is None else Encoded(image["bytes"], where)


def _fingerprint(splits: dict[str, Any], column: str, resize: Resize | None, decoding: Decoding) -> str:
    """A hash that changes with the files behind the two splits, the image column, the resizing and the decoding."""
    how = "\0".join(map(str, [*resize_key(resize), decoding]))
    digest = hashlib.blake2b(f"{FORMAT}\0{column}\0{how}".encode(), digest_size=20)
    for split, table in splits.items():
        digest.update(f"\0\0{split}\0{len(table)}".encode())
        for file in table.cache_files:
            status = Path(file["filename"]).stat()
            digest.update(os.fsencode(f"\0{file['filename']}\0{status.st_size}\0{status.st_mtime_ns}"))
    return digest.hexdigest()
