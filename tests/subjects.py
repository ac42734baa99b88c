"""Every kind of file that is read back: what it says, how it is written with other metadata, and what reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from common.experts.curve import suggest_max_start_epoch
from common.experts.folder import read_manifest, read_snapshots
from common.pretrained.drive import record
from common.pretrained.export import Export
from common.report.evaluated import read_result
from common.report.seeds import named_runs
from common.robustness.conditions import Condition, Part, Target
from common.robustness.figures import baseline_errors
from common.synset.file import load_synset
from common.system.files import json_checksum
from reproduction.jobs import read_record, record_file
from reproduction.plan import Plan
from reproduction.results import row_of
from reproduction.tables import Cell
from tests.command_line import run_folder
from tests.conftest import ROOT
from tests.mutations import answered, mutations
from tests.readers import HARDWARE, opened, shown_on_a_page, used, with_metadata

OLD = ROOT / "tests/old_runs"
_FIGURES = {"mean": 0.5, "std": 0.0, "n": 1, "accuracies": [0.5]}
_NESTED = "[[["  # in the text of what is nested too deeply to be parsed here


@dataclass(frozen=True)
class Subject:
    """Metadata of one kind.

    content: what they say. file: where they are. write: writes the file with this JSON in their place.
    readers: whatever reads them. least: the share of changes that the first reader has to refuse.
    skip: keys that are left alone.
    """

    content: dict[str, Any]
    file: Path
    write: Callable[[str], object]
    readers: Sequence[Callable[[], object]]
    least: float = 0.5
    skip: tuple[str, ...] = ()

    def changes(self) -> Iterator[tuple[str, str]]:
        """(what was changed, the JSON text) of every key with every kind of wrong value."""
        return mutations(self.content, self.skip)

    def answer(self, text: str) -> list[bool]:
        """Write metadata, and read them by each reader; which of them refuse. Any other error is raised."""
        self.write(text)
        return [answered(read, self.file.parent) for read in self.readers]


def _completed(whole: dict[str, Any], text: str) -> str:
    """Changed keys among all the others."""
    return json.dumps(whole | json.loads(text)) if _NESTED not in text else text


# -- synthetic sets ----------------------------------------------------------------------------------------------


def synthetic_set(whole: Path, folder: Path, old: bool = False) -> Subject:
    """A set of this version, or of the first one."""
    source = OLD / "finished/TM.safetensors" if old else run_folder(whole) / "synset.safetensors"
    tensors, metadata = load_file(source), load_synset(source)[1]
    metadata.pop("step_size", None)
    metadata |= {"source": {"residual": 0.1}, "tried_n": {"1": 0.5}, "zca": {"eps": 0.1, "fingerprint": None}}
    metadata |= {"files": {"kind": "png", "name": "x", "bytes": 3, "bits_per_class": 9}, "validation": {"share": 0.1}}
    file = folder / "set.safetensors"
    skip = ("content",) if old else ()
    return Subject(metadata, file, partial(with_metadata, file, tensors), [lambda: used(file)], skip=skip)


def exported_set(whole: Path, folder: Path) -> Subject:
    """The keys that an export uses: each takes 10 ms."""
    source = run_folder(whole) / "synset.safetensors"
    tensors, metadata = load_file(source), load_synset(source)[1]
    kept = ("mean", "std", "class_names", "dataset", "zca", "evaluation", "objective")
    file = folder / "set.safetensors"

    def write(text: str) -> None:
        with_metadata(file, tensors, _completed(metadata, text))

    def export() -> None:
        Export(str(file), to=f"pt:{folder / 'out.pt'}", check=False, device="cpu").run()

    return Subject({key: metadata[key] for key in kept}, file, write, [export])


# -- runs --------------------------------------------------------------------------------------------------------


def _copied(whole: Path, folder: Path, without: Sequence[str] = ()) -> Path:
    """The run folder of a copy of a finished run."""
    copy = run_folder(shutil.copytree(whole, folder / "copy"))
    for name in without:
        (copy / name).unlink()
    return copy


def shown_file(whole: Path, folder: Path, name: str) -> Subject:
    """config.json or summary.json, on a page. Options and the identity are all alike: some of them do."""
    copy = _copied(whole, folder, ["synset.safetensors"])
    content = json.loads((copy / name).read_text())
    options = content.get("options", {})
    for key in options.keys() - {"dataset", "ipc", "name", "Iteration", "msz_per_channel"}:
        del options[key]
    if "identity" in content:
        content["identity"] = {"ipc": 1}
    return Subject(content, copy / name, (copy / name).write_text, [lambda: shown_on_a_page(copy)], least=0.4)


def opened_file(whole: Path, folder: Path, name: str) -> Subject:
    """config.json, summary.json or checksums.json, of which a run goes on; what it writes again is put back."""
    copy = _copied(whole, folder)
    kept = {each: (copy / each).read_bytes() for each in ("config.json", "summary.json", "checksums.json")}
    content = json.loads(kept[name])
    some = {key: content[key] for key in ("content", "budget") if key in content}
    if "identity" in content:
        some["identity"] = {key: content["identity"][key] for key in ("ipc", "dataset")}

    def write(text: str) -> None:
        for each, before in kept.items():
            (copy / each).write_bytes(before)
        (copy / name).write_text(_completed(content, text))

    return Subject(some, copy / name, write, [lambda: opened(copy.parents[3])], least=0)


def line_of_metrics(whole: Path, folder: Path, kind: str) -> Subject:
    """A line of metrics.jsonl, of a loss or an evaluation, among others."""
    copy = _copied(whole, folder, ["synset.safetensors"])
    file = copy / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    loss, evaluation = (next(line for line in lines if key in line) for key in ("loss", "evaluation"))

    def write(text: str) -> None:
        file.write_text(f"{json.dumps(evaluation)}\n{text}\n{json.dumps(loss)}\n")

    content = {"loss": loss, "evaluation": evaluation}[kind]
    return Subject(content, file, write, [lambda: shown_on_a_page(copy)], least=0.3)


# -- experts -----------------------------------------------------------------------------------------------------


def manifest(whole: Path, folder: Path, version: int) -> Subject:
    """A buffer's; from version 2 on with a checksum."""
    (source,) = (OLD / "buffers").glob("*/*/manifest.json")
    content = json.loads(source.read_text()) | {"parameters": {"x": [1]}}
    file = folder / "manifest.json"

    def write(text: str) -> None:
        if version == 2 and _NESTED not in text:
            text = json.dumps({**json.loads(text), "checksum": json_checksum(json.loads(text))})
        file.write_text(text)

    content = {"format_version": 2, "mean": [0.5], "zca": None} if version == 2 else content
    return Subject(content, file, write, [lambda: read_manifest(folder)])


def expert(whole: Path, folder: Path) -> Subject:
    """The metadata of a trajectory."""
    content = {
        "format": "fred-experts", "format_version": 2, "accuracies": {"1": 0.5, "2": None}, "checksums": ["a"] * 3,
    }  # fmt: skip
    file = folder / "expert_0000.safetensors"

    def write(text: str) -> None:
        save_file({"trajectory": torch.zeros(3, 2)}, file, metadata={"fred": text})

    readers = [lambda: list(read_snapshots(file, [0])), lambda: suggest_max_start_epoch(folder, 1)]
    return Subject(content, file, write, readers)


# -- results -----------------------------------------------------------------------------------------------------


def robustness(whole: Path, folder: Path) -> Subject:
    """Figures on corrupted images, as a baseline of others."""
    file = folder / "x.json"
    target = Target("CIFAR10-C", {Condition("fog", 1): Part(10, lambda: None)})
    content = {
        "target": "CIFAR10-C", "target_stats": "own", "images": {"fog 1": 10},
        "conditions": [{"kind": "fog", "level": 1, "mean": 0.5}],
    }  # fmt: skip
    return Subject(content, file, file.write_text, [lambda: baseline_errors(file, target, "own")], least=0.7)


def seeds(whole: Path, folder: Path) -> Subject:
    """Which runs are those of --seeds."""
    file = folder / "seeds.json"
    return Subject({"runs": {"0": "a"}}, file, file.write_text, [lambda: named_runs(folder)])


def evaluated(whole: Path, folder: Path) -> Subject:
    """What an evaluation writes with --output."""
    file = folder / "x.json"
    content = {
        **_FIGURES, "network": "ConvNet", "evaluation": {"epochs": 1, "lr": 0.1, "batch": 2, "strategy": ""},
        "seconds": {"ConvNet": [1.0]}, "version": "1", "hardware": HARDWARE,
    }  # fmt: skip
    return Subject(content, file, file.write_text, [lambda: read_result(file)])


def checksums_of_files(whole: Path, folder: Path) -> Subject:
    """The checksums of a download."""
    (folder / "images_best.pt").write_text("x")
    file = folder / "sha256.json"
    return Subject({"sha256": {"images_best.pt": "a"}}, file, file.write_text, [lambda: record(folder)])


def record_of_a_cell(whole: Path, folder: Path) -> Subject:
    """How a cell of the published tables ended."""
    cell, plan = Cell("dm-lowres", "DM", "MNIST", 1), Plan(scale="smoke", output=str(folder))
    file = record_file(cell, plan)
    file.parent.mkdir(parents=True)
    content = {
        "state": "failed", "seconds": 3.0, "interruptions": 1, "commands": ["a"], "reason": "x", "script": None,
        "images": "", "begun_by": "1", "seeds": None,
    }  # fmt: skip
    return Subject(content, file, file.write_text, [lambda: read_record(cell, plan), lambda: row_of(cell, plan)])


SUBJECTS: dict[str, Callable[[Path, Path], Subject]] = {
    "set": synthetic_set,
    "set of the first version": partial(synthetic_set, old=True),
    "set that is exported": exported_set,
    "config.json on a page": partial(shown_file, name="config.json"),
    "summary.json on a page": partial(shown_file, name="summary.json"),
    "config.json of a run that goes on": partial(opened_file, name="config.json"),
    "summary.json of a run that goes on": partial(opened_file, name="summary.json"),
    "checksums.json": partial(opened_file, name="checksums.json"),
    "loss": partial(line_of_metrics, kind="loss"),
    "evaluation": partial(line_of_metrics, kind="evaluation"),
    "manifest of the first version": partial(manifest, version=1),
    "manifest": partial(manifest, version=2),
    "expert": expert,
    "robustness": robustness,
    "seeds.json": seeds,
    "evaluation's output": evaluated,
    "sha256.json": checksums_of_files,
    "record of a cell": record_of_a_cell,
}
"""For each kind of file: makes its subject from the folder of a finished run (`readers.made`), in an empty folder."""
