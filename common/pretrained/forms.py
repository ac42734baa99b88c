"""The forms that a synthetic set is exported in: folders of PNG files, .pt, .npz, and Parquet."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from common.datasets.hub import import_library
from common.disk.listing import files_below, names
from common.disk.paths import is_file, kind_of
from common.images.image_tree import is_hidden
from common.images.pixel_values import PixelValues
from common.system.errors import InputError
from common.system.files import json_text, torch_bytes, unwritable, write_atomically, write_json
from common.system.text import shortened

VALUES = {
    "bytes": "8 bits per channel",
    "unit": "pixels limited to 0..1",
    "normalised": "normalised by mean and std",
    "whitened": "ZCA-whitened",
}
"""What the numbers of an export are, in words."""

PIXELS: dict[str, PixelValues] = {"bytes": "bytes", "unit": "unit"}
"""Those that are pixels, as `normalised_by` calls them."""

PICTURES = ("folder", "hf")
"""The forms that hold PNG files."""

ABOUT = "about.json"
# What a file of some system cannot have in its name, and names that Windows keeps for devices.
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Split(NamedTuple):
    """N images [N, ch, *im_size], uint8 for pictures and float32 otherwise, with labels int64 [N], on the CPU."""

    images: Tensor
    labels: Tensor


class Content(NamedTuple):
    """What is exported."""

    values: str  # a key of VALUES
    train: Split
    test: Split | None  # the dataset's test images, if they are asked for
    class_names: list[str]  # in the order of the labels
    remarks: list[str]
    about: dict[str, Any]  # JSON values

    @property
    def described(self) -> dict[str, Any]:
        """`about` with the classes and what the numbers are."""
        return {**self.about, "class_names": self.class_names, "values": self.values}

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, **({} if self.test is None else {"test": self.test})}


def write(kind: str, path: Path, content: Content) -> int:
    """Write an export, all of it or nothing; return the bytes of its files. kind: a key of KINDS.

    Raises InputError if `path` cannot be written, and for a library that is not installed.
    """
    KINDS[kind](path, content)
    files = [path] if is_file(path) else files_below(path)
    return sum(each.stat().st_size for each in files)


def check_place(kind: str, path: Path) -> None:
    """Raise InputError if an export of this kind cannot be called `path`, or would mix with what is there."""
    if kind in PICTURES:
        there = kind_of(path)
        if there != "nothing" and (there != "folder" or names(path)):
            raise InputError(f"{path} is there already and not an empty folder: give another, or remove it")
        if kind == "hf":
            import_library()
        return
    endings = {"pt": (".pt", ".pth"), "npz": (".npz",)}[kind]
    if path.suffix not in endings:
        raise InputError(f"--to {kind}:{path} is to end in {endings[0]}")


def folder_names(class_names: Sequence[str]) -> list[str]:
    """For each class the name of its folder: its own, unless some system refuses or hides such a folder.

    Characters are replaced by or preceded by _, so letters and digits remain, by which `same_classes` compares. Names
    that differ only in case, which some systems take for one, get _ behind them.
    """
    found: list[str] = []
    for name in class_names:
        safe = re.sub(r"[. ]+$", "_", _UNSAFE.sub("_", name)) or "_"
        if is_hidden(safe) or safe.startswith(" ") or _DEVICES.fullmatch(safe):
            safe = f"_{safe}"
        while safe.casefold() in map(str.casefold, found):
            safe += "_"
        found.append(safe)
    return found


def remarks(kind: str, content: Content) -> Iterator[str]:
    """Lines that tell what a reader of this form has to know."""
    if kind == "folder":
        folders = folder_names(content.class_names)
        pairs = zip(content.class_names, folders, strict=True)
        renamed = [f"{name} is {folder}" for name, folder in pairs if name != folder]
        if renamed:
            yield f"not every class can be the name of a folder: {shortened(renamed)}"
        if folders != sorted(folders):
            yield f"ImageFolder numbers the classes in the order of their names, the dataset otherwise: see {ABOUT}"
    if kind == "hf" and content.test is None:
        yield "there is no test split, which --dataset hf:PATH needs: --with_test writes one"


# -- the forms -----------------------------------------------------------------------------------------------------


def _write_folder(path: Path, content: Content) -> None:
    folders = folder_names(content.class_names)
    with _new_folder(path) as new:
        for name, split in content.splits.items():
            root = new / name if content.test is not None else new
            counts = dict.fromkeys(range(len(folders)), 0)
            for folder in folders:
                (root / folder).mkdir(parents=True)
            for image, label in zip(split.images, split.labels.tolist(), strict=True):
                (root / folders[label] / f"{counts[label]:04}.png").write_bytes(png(image))
                counts[label] += 1
        write_json(new / ABOUT, {**content.described, "folders": folders})


def _write_pt(path: Path, content: Content) -> None:
    about = content.described
    written = torch_bytes({**_tensors(content), **{key: about[key] for key in _BESIDE}, "about": about})
    write_atomically(path, lambda temporary: temporary.write_bytes(written))


def _write_npz(path: Path, content: Content) -> None:
    about = content.described
    arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in _tensors(content).items()}
    # Text, and numbers of float64: arrays of objects would need pickle. An unknown mean is an empty array.
    arrays |= {key: np.array([] if about[key] is None else about[key]) for key in _BESIDE}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, about=np.array(json_text(about)))
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


_BESIDE = ("class_names", "mean", "std", "values")


def _tensors(content: Content) -> dict[str, Tensor]:
    """The tensors of a .pt or .npz file by name, each with a storage of its own."""
    named = {"": content.train, **({} if content.test is None else {"test_": content.test})}
    return {
        f"{prefix}{key}": tensor.contiguous().clone()
        for prefix, split in named.items()
        for key, tensor in split._asdict().items()
    }


def _write_hf(path: Path, content: Content) -> None:
    datasets = import_library()
    import pyarrow as pa
    import pyarrow.parquet

    columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=content.class_names)}
    schema = datasets.Features(columns).arrow_schema  # with what the library needs to know of the columns
    with _new_folder(path) as new:
        for name, split in content.splits.items():
            rows = {
                "image": [{"bytes": png(image), "path": None} for image in split.images],
                "label": split.labels.tolist(),
            }
            pa.parquet.write_table(pa.Table.from_pydict(rows, schema), new / f"{name}-00000-of-00001.parquet")
        # Not a JSON file, which the library would take for data.
        about = json_text(content.described, indent=2)
        (new / "README.md").write_text(_CARD.format(about=about), encoding="utf-8")


_CARD = """---
tags:
- dataset-distillation
---

The images of a synthetic training set of FreD, frequency domain-based dataset distillation
([paper](https://arxiv.org/abs/2311.08819)).

```json
{about}
```
"""

KINDS: dict[str, Callable[[Path, Content], None]] = {
    "folder": _write_folder, "pt": _write_pt, "npz": _write_npz, "hf": _write_hf,
}  # fmt: skip


def png(image: Tensor) -> bytes:
    """The PNG file of an image, uint8 [ch, H, W] with ch 1 or 3."""
    from PIL import Image

    pixels = image.numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that is called `path` at the end; nothing is left of it after an error."""
    path = path.absolute()
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        new.mkdir(parents=True)
        yield new
        new.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(new)
