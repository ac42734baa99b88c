"""Flipped bits and cut ends, in files of every kind: what is read is what was there, or the file is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from common.experts.folder import read_manifest, read_snapshots
from common.experts.open import open_buffer
from common.synset.authors import read_authors
from common.synset.file import export_pair, load_synset
from common.system.errors import InputError
from tests.authors_files import write_results
from tests.bit_flips import same
from tests.command_line import SHORT, call
from tests.damage import cut, flipped
from tests.expert_buffers import EPOCHS, MODEL, made_for, random_rows, replay
from tests.faults.commands import COMMANDS, INPUTS, OUT, Undisturbed
from tests.faults.events import disturbed
from tests.faults.kind import REFUSED, RIGHT, Different, Fault, Kind, assert_same, enter, judged
from tests.forks import forked

_COUNT = 2_000
_PAIR = ("images_best.pt", "labels_best.pt")
_NO_RESULTS = (".png", ".html", ".lock", ".txt", ".csv")
# What a command reads below in, and whether a change of it is noticed in the first run: images carry no checksum.
_READ = {
    "TM": ("buffers", True),
    "evaluate": ("set.safetensors", True),
    "export": ("set.safetensors", True),
    "DM of own images": ("images", False),
    "ImageNet": ("imagenet", False),
    "voxels": ("voxels", False),
    "corruptions": ("corrupted", False),
}
# Commands whose folder is damaged, finished or begun.
_LEFT = ("DM", "DC", "TM", "DM of own images", "voxels", "experts", "reproduce")


def _with_content(paths: Sequence[Path]) -> list[Path]:
    """The files among them that are not empty."""
    return [path for path in paths if path.is_file() and path.stat().st_size]


def _damage(file: Path, draws: Random) -> str:
    """Flip a bit or cut the end off; what was done."""
    content = file.read_bytes()
    how = draws.choice((flipped, flipped, cut))
    file.write_bytes(how(content, draws))
    return f"{how.__name__} {file.name}"


@dataclass(frozen=True)
class _File:
    """A file that is read by itself, whose numbers have a checksum."""

    path: Path
    read: Callable[[Path], Any]


class Files:
    """What is damaged: files by themselves, folders of commands, and what commands read."""

    def __init__(self, folder: Path, undisturbed: Undisturbed, numbers: Sequence[int]) -> None:
        of_commands = [number for number in numbers if not number % 10]
        left = {_LEFT[number // 20 % len(_LEFT)] for number in of_commands if number % 20}
        read = {tuple(_READ)[number // 20 % len(_READ)] for number in of_commands if not number % 20}
        self.undisturbed = undisturbed.prepare({*left, *read}, events=True)
        self.alone = _files(enter(folder / "alone"), undisturbed) if len(of_commands) < len(numbers) else []
        self.left: dict[str, list[Path]] = {name: [] for name in left}
        for name in sorted(left):
            for state in ("finished", "begun"):
                path = undisturbed.enter(folder / state / name.replace(" ", "-"))
                event = undisturbed.events(name) * 2 // 3
                if state == "finished":
                    forked(COMMANDS[name].run)
                else:
                    forked(lambda name=name, event=event: disturbed(COMMANDS[name].run, event, lambda: os._exit(0)))
                self.left[name].append(path / OUT)


# Flags of a distillation, by the storage of its set.
_STORED = {
    "int8": ("--storage", "int8", "--msz_per_channel", "16"),
    "coded": ("--storage", "coded", "--n", "20", "--bits_per_class", "1500"),
}


def _files(folder: Path, undisturbed: Undisturbed) -> list[_File]:
    """A file of every kind that can be read by itself."""
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
        *(_File(kept / f"{name}.safetensors", _set) for name in ("set", *_STORED)),
        *(_File(kept / name, lambda path: _authors(path.parent / "images_best.pt")) for name in _PAIR),
        _File(kept / "res_x.pt", _authors),
        _File(kept / "buffer/manifest.json", lambda path: read_manifest(path.parent)),
        _File(experts[0], lambda path: list(read_snapshots(path, [0, 1, 2]))),
        _File(theirs / "replay_buffer_0.pt", _replayed),
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


def _alone(files: Files, draws: Random) -> str:
    source = draws.choice(files.alone)
    # The authors' experts say by the names of their folders what they are of.
    folder = shutil.copytree(source.path.parent, Path(source.path.parent.parent.name) / source.path.parent.name)
    before = source.read(source.path)
    told = _damage(folder / source.path.name, draws)
    try:
        after = source.read(folder / source.path.name)
    except InputError as error:
        if "\n" in str(error) or not str(error).isprintable():
            raise Fault(f"{told}: {error!r} is no sentence") from error
        return REFUSED
    if not same(before, after):
        raise Different(f"{told}: other values are read")
    return RIGHT


def _left(files: Files, name: str, draws: Random) -> str:
    out = draws.choice(files.left[name])
    files.undisturbed.link()
    shutil.copytree(out, OUT)
    found = [path for path in sorted(OUT.rglob("*")) if path.suffix not in _NO_RESULTS]
    told = _damage(draws.choice(_with_content(found)), draws)
    outcome = judged(forked(COMMANDS[name].run))
    if outcome == RIGHT:
        assert_same(files.undisturbed.left(name), OUT, f"{told} in the folder of {name}, {out.parent.parent.name}")
    return outcome


def _read(files: Files, name: str, draws: Random) -> str:
    below, is_noticed = _READ[name]
    INPUTS.mkdir()
    for path in files.undisturbed.inputs.iterdir():
        if path.name != below:
            (INPUTS / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, INPUTS / below)
        else:
            shutil.copy(path, INPUTS / below)
    found = [INPUTS / below, *sorted((INPUTS / below).rglob("*"))]
    told = _damage(draws.choice(_with_content(found)), draws)
    outcome = judged(forked(COMMANDS[name].run))
    if outcome == RIGHT and is_noticed:
        assert_same(files.undisturbed.left(name), OUT, f"{told} of what {name} reads")
    return outcome


def damage(files: Files, number: int, draws: Random) -> str:
    """Nine of ten cases are of files by themselves, which take milliseconds; the others of commands."""
    if number % 10:
        return _alone(files, draws)
    if number % 20:
        return _left(files, _LEFT[number // 20 % len(_LEFT)], draws)
    return _read(files, tuple(_READ)[number // 20 % len(_READ)], draws)


def kinds(undisturbed: Undisturbed) -> dict[str, Kind]:
    """By name."""
    about = "flipped bits and cut ends, in every kind of file"
    return {"bit": Kind(about, _COUNT, lambda folder, numbers: Files(folder, undisturbed, numbers), damage)}
