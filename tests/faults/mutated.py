"""Files whose metadata are wrong in one place, over all readers: by structure first, then at random."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

import pytest
import torch

from common.synset.file import load_synset
from tests.command_line import run_folder
from tests.damage import change
from tests.faults.kind import REFUSED, RIGHT, Different, Kind
from tests.readers import content, lighten, made, read_everything
from tests.subjects import SUBJECTS, Subject

_COUNT = 10_000
_ENDS = (".json", ".jsonl", ".pt", ".safetensors")


class Whole:
    """Files that nothing has happened to. places: (kind of file, number of its change) of every change by structure."""

    def __init__(self, folder: Path, numbers: Sequence[int]) -> None:
        self.folder = made(folder / "whole")
        content()  # kept for the forks
        self.places: list[tuple[str, int]] = []
        for name in SUBJECTS:
            (folder / name.replace("'", "")).mkdir()
            subject = SUBJECTS[name](self.folder, folder / name.replace("'", ""))
            self.places += [(name, number) for number, _ in enumerate(subject.changes())]
        files = [path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.suffix in _ENDS]
        self.files: Sequence[Path] = files
        self.coefficients = load_synset(run_folder(self.folder) / "synset.safetensors")[0].coefficients


@lru_cache
def _lightened() -> None:
    lighten(pytest.MonkeyPatch())  # in a fork, which ends with it


@lru_cache
def _subject(whole: Path, name: str) -> tuple[Subject, list[str]]:
    """The subject of this process, and the texts of its changes."""
    subject = SUBJECTS[name](whole, Path(tempfile.mkdtemp(dir=Path.cwd().parent)))
    return subject, [text for _, text in subject.changes()]


def mutate(whole: Whole, number: int, draws: Random) -> str:
    """One change by structure while there are any, then one at random."""
    _lightened()
    if number < len(whole.places):
        name, place = whole.places[number]
        subject, texts = _subject(whole.folder, name)
        return REFUSED if any(subject.answer(texts[place])) else RIGHT
    path = shutil.copytree(whole.folder, Path("copy").absolute())
    change(path / draws.choice(whole.files), draws)
    refused = read_everything(path)
    if not refused[0]:
        after = load_synset(run_folder(path) / "synset.safetensors")[0].coefficients
        if not torch.equal(whole.coefficients, after):
            raise Different("other coefficients are read")
    return REFUSED if any(refused) else RIGHT


def kinds() -> dict[str, Kind]:
    """By name."""
    return {"file": Kind("changed files, over all readers", _COUNT, Whole, mutate, limit=60)}
