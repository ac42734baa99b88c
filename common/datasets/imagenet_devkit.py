"""What says of which class each validation image of ILSVRC 2012 is: its development kit, or Kaggle's table."""

from __future__ import annotations

import csv
import io
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from common.datasets.files import read_variables
from common.disk.paths import is_file, is_folder, unreadable

DEVKIT = "ILSVRC2012_devkit_t12"
META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
CLASSES = 1000  # ids 1..1000 are classes, those above are their ancestors in WordNet

SOLUTION = "LOC_val_solution.csv"
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")

_INNER = Path("ILSVRC/Data/CLS-LOC")  # of Kaggle's archive
_WNID = re.compile(r"n\d{8}")


class Unusable(Exception):
    """What a folder of ImageNet lacks, or what is wrong with it, to be put into a sentence."""


def kaggle_root(folder: Path) -> Path:
    """The folder with train/ and val/ where `folder` is what Kaggle's archive unpacks to; otherwise `folder`."""
    inner = folder / _INNER
    return inner if is_folder(inner / "train") and not is_folder(folder / "train") else folder


def validation_wnids(folder: Path) -> dict[int, str]:
    """The WordNet ids of the validation images, by their numbers, counted from 1.

    They are those of the devkit, which lies in `folder` unpacked or as it was downloaded, or, without it, those of
    Kaggle's table, which lies there or beside ILSVRC/, where its archive unpacks it. Raises `Unusable` where both are
    missing, or one is damaged or not what it should be. Reading them runs no code.
    """
    has_devkit = is_folder(folder / DEVKIT) or is_file(folder / f"{DEVKIT}.tar.gz")
    beside = [folder.parents[2]] if folder.parts[-3:] == _INNER.parts else []
    table = next((each / SOLUTION for each in [folder, *beside] if is_file(each / SOLUTION)), None)
    return _of_table(table) if table is not None and not has_devkit else _of_devkit(folder)


def _of_table(file: Path) -> dict[int, str]:
    """Kaggle's table: ILSVRC2012_val_00000001, and behind a comma its WordNet id and boxes."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = [(row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(stream)]
    except OSError as error:
        raise unreadable(file, error) from error
    except (UnicodeDecodeError, csv.Error, LookupError, AttributeError) as error:
        raise Unusable(
            f"{SOLUTION} is truncated or damaged: it is a table of ImageId and PredictionString, which begins with the "
            "WordNet id"
        ) from error
    found = {}
    for name, wnid in rows:
        number = VALIDATION_NAME.fullmatch(name)
        if number is None or not _WNID.fullmatch(wnid):
            raise Unusable(f"{SOLUTION} has {name!r} with {wnid!r}, where an image and its WordNet id should be")
        found[int(number[1])] = wnid
    if not found:
        raise Unusable(f"{SOLUTION} is empty")
    return found


def _of_devkit(folder: Path) -> dict[int, str]:
    place, meta, truth = _read(folder)
    wnid_of = _wnids(place, meta)
    try:
        ids = [int(line) for line in truth.split()]
    except ValueError as error:
        raise Unusable(f"{TRUTH} in {place} is not a list of numbers") from error
    if not ids:
        raise Unusable(f"{TRUTH} in {place} is empty")
    if wrong := [each for each in ids if each not in wnid_of]:
        raise Unusable(f"{TRUTH} in {place} has {wrong[0]}, where classes are 1 to {CLASSES}")
    return {number: wnid_of[each] for number, each in enumerate(ids, 1)}


def _read(folder: Path) -> tuple[str, bytes, bytes]:
    """Where the devkit was found, and the content of its two files."""
    archive = folder / f"{DEVKIT}.tar.gz"
    if is_folder(folder / DEVKIT):
        for file in (META, TRUTH):
            if not is_file(folder / DEVKIT / file):
                raise Unusable(f"{DEVKIT}/ has no {file}")
        return DEVKIT, (folder / DEVKIT / META).read_bytes(), (folder / DEVKIT / TRUTH).read_bytes()
    if not is_file(archive):
        raise Unusable(
            f"val/ has no class folders, and {DEVKIT} or {SOLUTION}, which say what its images show, are not there"
        )
    try:
        with tarfile.open(archive, "r:gz") as packed:
            contents = [packed.extractfile(f"{DEVKIT}/{file}") for file in (META, TRUTH)]
            meta, truth = (b"" if content is None else content.read() for content in contents)
    except (tarfile.TarError, OSError, EOFError, LookupError, ValueError, zlib.error) as error:
        raise Unusable(f"{archive.name} is truncated or damaged ({error})") from error
    return archive.name, meta, truth


def _wnids(place: str, meta: bytes) -> dict[int, str]:
    """The WordNet id of each class by the number that the ground truth has for it."""
    content = read_variables(io.BytesIO(meta), "synsets")
    if content is None:
        raise Unusable(f"{META} in {place} is truncated or damaged")
    synsets = content["synsets"]  # a struct array of one row or column
    if not {"ILSVRC2012_ID", "WNID"} <= set(synsets.dtype.names or ()):
        raise Unusable(f"{META} in {place} has no table of synsets")
    wnid_of: dict[int, str] = {}
    for number, wnid in zip(synsets["ILSVRC2012_ID"].flat, synsets["WNID"].flat, strict=True):
        number, wnid = np.asarray(number), np.asarray(wnid)
        if number.size != 1 or number.dtype.kind not in "iuf" or wnid.size != 1 or wnid.dtype.kind != "U":
            raise Unusable(f"{META} in {place} has a synset without a number or a WordNet id")
        if not _WNID.fullmatch(wnid.item()):
            raise Unusable(f"{META} in {place} has {wnid.item()!r} where a WordNet id should be")
        if 1 <= number.item() <= CLASSES:
            wnid_of[int(number.item())] = wnid.item()
    if len(set(wnid_of.values())) != len(wnid_of) or not wnid_of:
        raise Unusable(f"{META} in {place} gives several classes one WordNet id, or has none")
    return wnid_of
