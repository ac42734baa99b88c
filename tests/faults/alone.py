"""Files that are read by themselves, without a command, in milliseconds: one of every kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from common.datasets import load_dataset
from common.experts.folder import read_manifest, read_snapshots
from common.experts.open import open_buffer
from common.images import mapped
from common.pretrained.found import read_tensors
from common.synset.authors import read_authors
from common.synset.file import export_pair, load_synset
from tests.authors_files import write_results
from tests.command_line import SHORT, call
from tests.expert_buffers import EPOCHS, MODEL, made_for, random_rows, replay
from tests.faults.commands import Undisturbed
from tests.image_sets import make_folder

_PAIR = ("images_best.pt", "labels_best.pt")
# Flags of a distillation, by the storage of its set.
_STORED = {
    "int8": ("--storage", "int8", "--msz_per_channel", "16"),
    "coded": ("--storage", "coded", "--n", "20", "--bits_per_class", "1500"),
}
_PARTS = 2 * 3 * 6 * 6  # bytes of a mapped cache that have a checksum of their own: two images


@dataclass(frozen=True)
class File:
    """A file that is read by itself. is_noticed: whether its numbers have a checksum, so that no change is missed."""

    path: Path
    read: Callable[[Path], Any]
    is_noticed: bool = True

    @cached_property
    def before(self) -> Any:
        """What is read while nothing has happened to it."""
        return self.read(self.path)


def files_alone(folder: Path, undisturbed: Undisturbed) -> list[File]:
    """A file of every kind that can be read by itself."""
    files = [*_sets_and_experts(folder, undisturbed), *_imports(folder), *_datasets(folder)]
    for file in files:
        assert file.before is not None  # made here, not in a fork
    return files


# -- sets and experts --------------------------------------------------------------------------------------------


def _sets_and_experts(folder: Path, undisturbed: Undisturbed) -> list[File]:
    kept = folder / "kept"
    synset = load_synset(undisturbed.inputs / "set.safetensors")[0]
    export_pair(synset, kept)
    images, labels = synset.get(need_copy=True)
    write_results(kept / "res_x.pt", (images, labels))
    for name, flags in _STORED.items():
        made = call("DM/distill.py", *SHORT, *flags, "--save_path", folder / name)
        assert made.code == 0, made.err
        (stored,) = (folder / name).rglob("synset.safetensors")
        shutil.copy(stored, kept / f"{name}.safetensors")
    shutil.copy(undisturbed.inputs / "set.safetensors", kept / "set.safetensors")
    (buffer,) = (undisturbed.inputs / "buffers").glob("*/*")
    shutil.copytree(buffer, kept / "buffer")
    experts = sorted((kept / "buffer").glob("expert_*.safetensors"))
    theirs = replay(folder / "made up_NO_ZCA" / MODEL, random_rows(count=1))
    return [
        *(File(kept / f"{name}.safetensors", _set) for name in ("set", *_STORED)),
        *(File(kept / name, lambda path: _authors(path.parent / "images_best.pt")) for name in _PAIR),
        File(kept / "res_x.pt", _authors),
        File(kept / "buffer/manifest.json", lambda path: read_manifest(path.parent)),
        File(experts[0], lambda path: list(read_snapshots(path, [0, 1, 2]))),
        File(theirs / "replay_buffer_0.pt", _replayed),
    ]


def _set(path: Path) -> Any:
    synset, metadata = load_synset(path)
    return metadata, *(tensor.detach() for tensor in synset.get(need_copy=True))


def _replayed(path: Path) -> Any:
    (expert,) = open_buffer(path.parent, made_for()).experts
    return [expert.snapshot(epoch).clone() for epoch in range(EPOCHS + 1)]


def _authors(path: Path) -> Any:
    found = read_authors(path)
    return found.images, found.labels, found.kind


# -- images of others --------------------------------------------------------------------------------------------


def _imports(folder: Path) -> list[File]:
    """What `import` reads: an .npz as numpy writes it, one that is packed, and a .pt."""
    place = folder / "imports"
    place.mkdir()
    draws = np.random.default_rng(0)
    content = {"images": draws.integers(0, 99, (20, 1, 8, 8)).astype(np.uint8), "labels": np.arange(20) // 2}
    named = content | {"class_names": np.array([f"class {number}" for number in range(10)])}
    np.savez(place / "plain.npz", **named)
    np.savez_compressed(place / "packed.npz", **named)
    torch.save({key: torch.from_numpy(value) for key, value in content.items()}, place / "x.pt")
    return [File(place / name, lambda path: tuple(read_tensors(path, None))) for name in sorted(os.listdir(place))]  # noqa: PTH208


# -- datasets ----------------------------------------------------------------------------------------------------


def _datasets(folder: Path) -> list[File]:
    """The cache of decoded images, read as a whole and mapped, and parquet files, if their library is there.

    Columns of a parquet file have no checksums, and neither have its labels: they are read, or refused.
    """
    images = make_folder(folder / "images", size=(6, 6), count=4)
    files = []
    for name, map_above in (("whole", None), ("mapped", 0)):
        read = partial(_cached, f"folder:{images}", map_above)
        (folder / "caches" / name).mkdir(parents=True)
        read(folder / "caches" / name / "x")
        (cache,) = (folder / "caches" / name).iterdir()
        files.append(File(cache, read))
    try:
        import datasets
    except ImportError:
        return files
    return [*files, *(File(path, _parquet, is_noticed=False) for path in _write_parquet(datasets, folder / "parquet"))]


def _cached(name: str, map_above: int | None, path: Path) -> Any:
    """All that training sees of a dataset whose images are cached in the folder of this path."""
    with patch.dict(os.environ, FRED_CACHE=str(path.parent.absolute())), patch.object(mapped, "PART_BYTES", _PARTS):
        both = load_dataset(name, map_above=map_above, progress=False)
        return [(each.batch(slice(None)), each.labels, each.mean, each.std, each.class_names) for each in both]


def _write_parquet(datasets: Any, folder: Path) -> Sequence[Path]:
    with _library(folder.parent / "library"):
        for split, count in (("train", 12), ("test", 6)):
            content = {
                "image": [Image.new("RGB", (6, 6), (20 * number, 7, 9)) for number in range(count)],
                "label": [number % 3 for number in range(count)],
            }
            kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
            folder.mkdir(exist_ok=True)
            made = datasets.Dataset.from_dict(content, features=datasets.Features(kinds))
            made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return sorted(folder.iterdir())


def _parquet(path: Path) -> Any:
    with _library(Path.cwd() / "library"):
        return _cached(f"hf:{path.parent.absolute()}", None, Path.cwd() / "cache" / "x")


@contextmanager
def _library(cache: Path) -> Iterator[None]:
    """The library with a cache of its own, and without bars."""
    import datasets

    datasets.utils.disable_progress_bars()
    with patch.object(datasets.config, "HF_DATASETS_CACHE", cache):
        yield
