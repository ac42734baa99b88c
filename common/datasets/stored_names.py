"""The class names that each file of a Hugging Face dataset stores, of which the library keeps those of one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.system.errors import InputError


def check_stored_names(datasets: Any, files: dict[str, list[str]], column: str, name: str) -> None:
    """Raise `InputError` where two files store other class names with the same numbers.

    The library gives the labels of all files the class names of the first file that it meets, or those of the dataset's
    card, whatever names a file stores. Where those of a split stand in another order, its labels would silently mean
    other classes.

    files: by split, paths on this machine. column: the labels. name: the dataset's, for the sentence.
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
    """The names that a file stores with a column of labels; None where it stores none."""
    for schema in _schemas(path):
        kind = datasets.Features.from_arrow_schema(schema).get(column)
        return list(kind.names) if isinstance(kind, datasets.ClassLabel) else None
    return None


def _schemas(path: str) -> Iterator[Any]:
    """The schema of a file of columns, without its rows; nothing for other kinds of file, which store no names."""
    import pyarrow as pa
    import pyarrow.parquet

    with Path(path).open("rb") as file:
        start = file.read(6)
        file.seek(0)
        # By content, as what was downloaded has a hash for a name.
        if start[:4] == b"PAR1":
            yield pyarrow.parquet.read_schema(file)
        elif start == b"ARROW1":
            yield pa.ipc.open_file(file).schema
        elif start[:4] == b"\xff\xff\xff\xff":
            yield pa.ipc.open_stream(file).schema
