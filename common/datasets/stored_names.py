"""Compares the class names that the files of a Hugging Face dataset store; the library keeps those of one file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.system.errors import InputError


def check_stored_names(datasets: Any, files: dict[str, list[str]], column: str, name: str) -> None:
    """Raise `InputError` if two files store different class names for the same labels.

    The library ignores the class names in a file and uses those of the first file, or those in the dataset's card, for
    all files. If a file stores its names in another order, its labels would silently stand for other classes.

    files: paths on this machine, by split. column: the column of the labels. name: the dataset's name, for the message.
    """
    found = [
        (split, path, names) for split in files for path in files[split] if (names := _names(datasets, path, column))
    ]
    for split, path, names in found[1:]:
        first_split, first_path, first = found[0]
        if names != first:
            number = next((n for n, pair in enumerate(zip(first, names, strict=False)) if pair[0] != pair[1]), None)
            told = (
                f"{len(first)} classes by {Path(first_path).name} (split {first_split!r}), but {len(names)}"
                if number is None
                else f"label {number} is {first[number]!r} by {Path(first_path).name} (split {first_split!r}), but "
                f"{names[number]!r}"
            )
            raise InputError(
                f"{name} names its classes in two ways: {told} by {Path(path).name} (split {split!r}); write one of "
                "them again with the names of the other, in the same order (Dataset.align_labels_with_mapping)"
            )


def _names(datasets: Any, path: str, column: str) -> list[str] | None:
    """Return the class names that a file stores for a column; None if it stores none.

    Raises InputError for a file that says of itself what the library does not understand.
    """
    for schema in _schemas(path):
        try:
            kind = datasets.Features.from_arrow_schema(schema).get(column)
        # What it says is JSON without a schema, of which the library raises whatever comes.
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
            raise InputError(f"{path} is damaged ({reason}): fetch it, or write it, once more") from error
        return list(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    return None


def _schemas(path: str) -> Iterator[Any]:
    """Yield the schema of a parquet or Arrow file, without reading its rows; nothing for other kinds of file."""
    import pyarrow as pa
    import pyarrow.parquet

    with Path(path).open("rb") as file:
        start = file.read(6)
        file.seek(0)
        # The kind is told by content, because a downloaded file has a hash for a name.
        if start[:4] == b"PAR1":
            yield pyarrow.parquet.read_schema(file)
        elif start == b"ARROW1":
            yield pa.ipc.open_file(file).schema
        elif start[:4] == b"\xff\xff\xff\xff":
            yield pa.ipc.open_stream(file).schema
