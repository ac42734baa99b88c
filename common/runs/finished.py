"""Whether the folder of a finished run still holds what the run wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.schemas import door
from common.synset.file import load_synset
from common.system.errors import InputError
from common.system.files import UNREADABLE, check_torch_file, checksum, load_torch, reason_of, write_json
from common.system.text import counted

SETS = ("synset.safetensors", "synset_best.safetensors")
"""The synthetic set of the last and of the best evaluation."""
CHECKPOINTS = ("checkpoint.pt", "checkpoint_previous.pt")
SUMMARY, METRICS, CHECKSUMS, CONFIG = "summary.json", "metrics.jsonl", "checksums.json", "config.json"


def write_finished(folder: Path, summary: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write summary.json, then the checksums of what a run leaves: from now on the run is finished.

    identity: the run's, as in config.json; it says whose checksums these are.
    """
    write_json(folder / SUMMARY, summary)
    sums = {name: checksum(folder / name) for name in (*_sets_of(summary), METRICS, SUMMARY, CONFIG)}
    write_json(folder / CHECKSUMS, sums | {"identity": identity})


def read_finished(folder: Path, say: Callable[[str], None]) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the summary of a finished run, and check the files beside it.

    Returns (summary, []) where all are whole, (None, names of the files that are not) where some are damaged or
    missing, and (None, []) where the run has not finished. Runs of versions that kept no checksums are believed if
    their sets can be read; `say` gets one line about that. Raises InputError if the files are whole and of another run
    than config.json says.
    """
    if not (folder / SUMMARY).exists():
        return None, []
    from common.schemas.run import REMEDY, Checksums, Identity, Summary

    try:
        summary = door.read(folder / SUMMARY, Summary, REMEDY)
    except InputError as error:
        say(str(error))
        return None, [SUMMARY]
    try:
        checksums = door.read(folder / CHECKSUMS, Checksums, REMEDY) if (folder / CHECKSUMS).exists() else None
    except InputError as error:
        say(str(error))
        return None, [CHECKSUMS]
    identity = door.read(folder / CONFIG, Identity, REMEDY)["identity"]
    if checksums is None and "content" in summary:  # it was killed between the two files
        return None, []
    if checksums is None:
        broken = [name for name in _sets_of(summary) if not _is_set(folder / name)]
        if not broken:
            say(f"{folder} was finished by a version that kept no checksums: its files are believed")
    else:
        names = (*_sets_of(summary), METRICS, SUMMARY)
        broken = [name for name in names if not is_whole(folder / name, checksums.get(name))]
        if not broken and checksums.get("identity", identity) != identity:
            raise InputError(
                f"{folder} has the results of another run than its {CONFIG} says: restore its own files, give another "
                "--name, or --resume never to start over"
            )
        if CONFIG in checksums and not is_whole(folder / CONFIG, checksums[CONFIG]):  # older versions left it out
            broken.append(CONFIG)
    return (None if broken else summary), broken


def is_finished_run(folder: Path) -> bool:
    """Whether a folder is that of a finished run whose files are whole."""
    try:
        return read_finished(folder, lambda line: None)[0] is not None
    except InputError:
        return False


def _sets_of(summary: dict[str, Any]) -> tuple[str, ...]:
    """The synthetic sets of a run: no best one if a network diverged in every evaluation."""
    return SETS if summary.get("best_on_validation", summary["best_on_test"]) is not None else SETS[:1]


def is_whole(path: Path, expected: str | None) -> bool:
    """Whether a file is there and has the expected checksum."""
    try:
        return checksum(path) == expected
    except OSError:
        return False


def _is_set(path: Path) -> bool:
    """Whether a file is a whole synthetic set."""
    try:
        load_synset(path)
    except InputError:
        return False
    return True


def read_checkpoint(path: Path, remedy: str = "restore the file") -> dict[str, Any]:
    """The content of a checkpoint, which fits its schema. Raises InputError for one that is damaged."""
    from common.schemas.run import Checkpoint

    try:
        if not check_torch_file(path, storages=False):  # `load_torch` compares those
            raise InputError(f"{path} is damaged (it holds no checksums): {remedy}")
        content = load_torch(path)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} is damaged ({reason_of(error)}): {remedy}") from error
    return door.check(content, Checkpoint, f"{path} is damaged: it", remedy)


def how_far(folder: Path, iterations: int) -> tuple[str, int]:
    """What a run folder holds, in words ("new", "begun, ..." or "finished"), and how many iterations of it are made.

    iterations: of the whole run. Nothing is written; whether the folder is that of the same options is not compared.
    """
    if is_finished_run(folder):
        return "finished", iterations
    if not (folder / CONFIG).exists():
        return "new", 0
    try:
        made = read_checkpoint(folder / CHECKPOINTS[0])["state"]["iteration"]
    except InputError:
        return "begun, without a checkpoint that can be read", 0
    return f"begun, {made:,} of {counted(iterations, 'iteration')} are made", made
