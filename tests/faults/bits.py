"""Flipped bits and cut ends, in files of every kind: what is read is what was there, or the file is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

from common.system.errors import InputError
from tests.bit_flips import same
from tests.damage import cut, flipped
from tests.faults.alone import files_alone
from tests.faults.commands import COMMANDS, INPUTS, OUT, Undisturbed
from tests.faults.events import disturbed
from tests.faults.kind import REFUSED, RIGHT, Different, Fault, Kind, assert_same, enter, judged
from tests.forks import forked

_COUNT = 2_000
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


class Files:
    """What is damaged: files by themselves, folders of commands, and what commands read."""

    def __init__(self, folder: Path, undisturbed: Undisturbed, numbers: Sequence[int]) -> None:
        of_commands = [number for number in numbers if not number % 10]
        left = {_LEFT[number // 20 % len(_LEFT)] for number in of_commands if number % 20}
        read = {tuple(_READ)[number // 20 % len(_READ)] for number in of_commands if not number % 20}
        self.undisturbed = undisturbed.prepare({*left, *read}, events=True)
        self.alone = files_alone(enter(folder / "alone"), undisturbed) if len(of_commands) < len(numbers) else []
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


def _alone(files: Files, draws: Random) -> str:
    source = draws.choice(files.alone)
    # The authors' experts say by the names of their folders what they are of.
    folder = shutil.copytree(source.path.parent, Path(source.path.parent.parent.name) / source.path.parent.name)
    told = _damage(folder / source.path.name, draws)
    try:
        after = source.read(folder / source.path.name)
    except InputError as error:
        if "\n" in str(error) or not str(error).isprintable():
            raise Fault(f"{told}: {error!r} is no sentence") from error
        return REFUSED
    if source.is_noticed and not same(source.before, after):
        raise Different(f"{told}: other values are read")
    return RIGHT


def _left(files: Files, name: str, draws: Random) -> str:
    out = draws.choice(files.left[name])
    files.undisturbed.link()
    shutil.copytree(out, OUT)
    found = [path for path in sorted(OUT.rglob("*")) if path.suffix not in _NO_RESULTS]
    file = draws.choice(_with_content(found))
    told, damaged = _damage(file, draws), file.read_bytes()
    outcome = judged(forked(COMMANDS[name].run))
    if outcome == RIGHT:
        expected = dict(files.undisturbed.left(name))
        if out.parents[1].name == "finished" and file.name == "checkpoint.pt" and file.read_bytes() == damaged:
            file.unlink()  # a finished run has no use for it
            del expected[file.relative_to(OUT).as_posix()]
        assert_same(expected, OUT, f"{told} in the folder of {name}, {out.parent.parent.name}")
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
