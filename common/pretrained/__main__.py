"""Synthetic sets that others made: `python -m common.pretrained list|download|convert|check|push|pull`.

list                          the published cells, and which of their sets are here
download                      the authors' sets, from their folder on Google Drive
convert FILE --output FILE    the authors' files in our format: coefficients and positions, recovered from the images
check FILE                    train networks on a set, and compare with the published accuracy
push FILE hf://owner/name     share a set of your own on the Hugging Face hub; pull hf://owner/name gets one
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from common import recipes
from common.config.command_line import parse_command, with_recipe
from common.config.options import DistillOptions, EvaluateOptions
from common.datasets import PREFIXES
from common.pretrained import drive, share
from common.pretrained.convert import Provenance, defaults_of, from_authors, likely_objective
from common.synset import hub
from common.synset.authors import is_authors, read_authors
from common.synset.file import StoredSet, load_synset, save_synset
from common.system.command import run_command
from common.system.errors import InputError
from common.system.files import write_json
from common.system.text import in_percent, published_with_std
from common.training.evaluate_command import evaluate_file

FOLDER = "pretrained"
# Trajectory matching learns a step size that its files do not hold; the authors' corruption script trains with this.
LR_NET = 0.01

File = Annotated[str, tyro.conf.Positional]


@dataclass
class List:
    """The published accuracies, and which of the authors' sets are here."""

    folder: str = FOLDER
    """where the sets were downloaded to"""

    def run(self) -> None:
        here = {
            (provenance.dataset, provenance.ipc)
            for provenance in map(drive.provenance_of, _images_files(Path(self.folder)))
        }
        print(f"{'objective':18} {'dataset':22} {'ipc':>3}  published  here")
        for objective, dataset, ipc, published in drive.published_cells():
            there = "yes" if objective == "TM" and (dataset, ipc) in here else "-"
            print(f"{objective:18} {dataset:22} {ipc:3}  {published['accuracy']:7.1f} %  {there}")
        print(f"\nexpected in {self.folder}/ (python -m common.pretrained download, or by hand from {drive.URL}):")
        for name in drive.expected_files():
            print(f"{name} + labels_best.pt")


@dataclass
class Download:
    """Fetch the authors' sets from Google Drive; the same command goes on where it ended."""

    folder: str = FOLDER
    """where to put them"""

    def run(self) -> None:
        recorded = drive.download(Path(self.folder))
        print(f"{len(recorded)} files in {self.folder}, checksums in {Path(self.folder) / drive.RECORD}")


@dataclass
class Convert(Provenance):
    """Write an authors' file in our format. What it does not say stays unknown unless a flag says it."""

    file: File = field(kw_only=True)
    """images_*.pt or labels_*.pt of a pair, or res_*.pt"""
    output: str = field(kw_only=True)
    """file to write, .safetensors"""
    exp: int | None = None
    """experiment in a res_*.pt, counted from 0 (default: the last, as a rule the only one)"""
    as_pixels: bool = False
    """keep the images as they are, for sets that were not made with FreD"""

    def run(self) -> None:
        if not self.output.endswith(hub.SUFFIX):
            raise InputError(f"--output {self.output} is to be a {hub.SUFFIX} file")
        authors = read_authors(self.file, self.exp)
        synset, metadata = from_authors(authors, self, self.as_pixels)
        save_synset(synset, Path(self.output), metadata)
        print(synset.describe_budget())
        if not self.as_pixels:
            print(f"left out: at most {metadata['source']['residual']:.1e} of the mean magnitude of what is kept")
        unknown = [key for key in ("dataset", "network", "evaluation") if metadata[key] is None]
        if metadata["evaluation"] is not None and "lr" not in metadata["evaluation"]:
            unknown.append("step size of the networks (--lr_net)")
        print(f"{self.output} written" + (f"; unknown in it: {', '.join(unknown)}" if unknown else ""))


@dataclass
class Check(EvaluateOptions):
    """Train networks on sets, as published, and compare. Other files than ours are judged by name and by flags."""

    file: File = field(kw_only=True)
    """a set, or a folder with some: the authors' files, ours, or hf://owner/name"""
    objective: str | None = None
    """objective that made it: TM, DM, DC, ImageNet-abcde/TM, ... (default: as the file says, or the first of these that
    has published figures)"""
    ipc: int | None = None
    """budget in images per class (default: as the file or its name says)"""
    as_pixels: bool = False
    """take the images as they are, for sets that were not made with FreD"""
    synset: Annotated[str | None, tyro.conf.Suppress] = None
    baseline: Annotated[None, tyro.conf.Suppress] = None
    recipe: Annotated[str | None, tyro.conf.Suppress] = None
    cifar100_stats: Annotated[None, tyro.conf.Suppress] = None

    def run(self) -> None:
        folder = Path(self.file)
        files = [self.file] if not folder.is_dir() else [str(path) for path in _images_files(folder)]
        if not files:
            raise InputError(
                f"there is no synthetic set in {folder}: python -m common.pretrained download fetches some"
            )
        results, failed = [], 0
        for file in files:
            try:
                results.append(check(self, file))
            except InputError as error:
                if len(files) == 1:
                    raise
                failed += 1
                print(f"not checked: {error}", flush=True)
        if self.output:
            write_json(Path(self.output), results)
        if failed:
            raise InputError(f"{failed} of {len(files)} sets in {folder} could not be checked, see above")


@dataclass
class Push:
    """Share a set on the Hugging Face hub, with a README.md made from what its file says."""

    file: File
    """a .safetensors file of this project"""
    address: File
    """hf://owner/name or hf://owner/name/FILE.safetensors: a dataset repository, made if there is none"""
    private: bool = False
    """make it a private one"""

    def run(self) -> None:
        place, described = share.push(Path(self.file), self.address, self.private)
        print(f"{place} uploaded, see {place.url}" + ("" if described else " (its README.md is as it was)"))


@dataclass
class Pull:
    """Get a set from the Hugging Face hub."""

    address: File
    """hf://owner/name or hf://owner/name/FILE.safetensors"""
    output: str | None = None
    """file to write (default: its own name, in this folder)"""

    def run(self) -> None:
        path = hub.pull(self.address, None if self.output is None else Path(self.output))
        print(f"{path} written: {load_synset(path)[0].describe_budget()}")


COMMANDS: dict[str, type] = {
    "list": List, "download": Download, "convert": Convert, "check": Check, "push": Push, "pull": Pull,
}  # fmt: skip


def check(options: Check, file: str) -> dict[str, Any]:
    """Evaluate one set and print it beside the published accuracy; what `evaluate_file` returns, and the comparison.

    Raises InputError where the dataset cannot be told, and for whatever an evaluation refuses.
    """
    stored, cell = _open(options, file)
    synset, metadata = stored
    objective, dataset, ipc = cell
    recipe = recipes.find(objective, dataset, ipc)
    notes = []
    if not options.as_pixels and synset.ipc != ipc:
        notes.append(f"what it holds is a budget of {synset.ipc} images per class, not {ipc}")
    evaluation = metadata["evaluation"] or {}
    asked = dataclasses.replace(options, synset=file, dataset=options.dataset or dataset, ipc=None)
    learned = "lr" not in evaluation and "step_size" not in metadata
    if learned and options.lr_net is None and (options.eval_protocol or evaluation.get("kind", "dc")) == "dc":
        asked.lr_net = LR_NET
        notes.append(
            f"step size {LR_NET:g}, that of the authors' corruption script: the learned one is not in the file"
        )
    result = evaluate_file(asked, objective, {}, stored)
    notes += _shortened(options, result, objective, recipe)
    published = recipes.published(objective, dataset, ipc, synset.im_size[0])
    line = f"{objective} {dataset} ipc {ipc}: ours {in_percent(result)} ({result['n']} x {result['network']})"
    if published is None:
        line += "; nothing is published for this cell"
    else:
        line += f", published {published_with_std(published, '+-')} %"
        if result["mean"] is not None:  # of a pool, others than the principal network may be all that did not diverge
            line += f", difference {100 * result['mean'] - published['accuracy']:+.2f} points"
    print(line + "".join(f"\n  {note}" for note in notes), flush=True)
    return {**result, "file": file, "objective": objective, "ipc": ipc, "published": published, "notes": notes}


def _open(options: Check, file: str) -> tuple[StoredSet, tuple[str, str, int]]:
    """The set with its metadata, and (objective, dataset, ipc): flag, else file, else the file's name."""
    path = hub.fetch(file) if file.startswith(hub.PREFIX) else Path(file)
    if not is_authors(path):
        synset, metadata = load_synset(path)
        dataset = _made_from(options.dataset, metadata.get("dataset"))
        objective = options.objective or metadata.get("objective")
        if dataset is None:
            raise InputError(f"{file} does not say what it was made from: give --dataset")
        ipc = options.ipc or synset.ipc
        return (synset, {"evaluation": None, **metadata}), (objective or likely_objective(dataset, ipc), dataset, ipc)
    named = drive.provenance_of(path)
    provenance = Provenance(
        dataset=_made_from(options.dataset, named.dataset),
        subset=options.subset,
        objective=options.objective or named.objective,
        model=options.model or named.model,
        ipc=options.ipc or named.ipc,
        zca=bool(options.zca),
    )
    if provenance.dataset is None:
        raise InputError(f"{file} does not say what it was made from, nor do the folders above it: give --dataset")
    # The ipc of a name says which cell is meant; what the file holds speaks for itself.
    synset, metadata = from_authors(read_authors(path), dataclasses.replace(provenance, ipc=None), options.as_pixels)
    ipc = provenance.ipc or synset.ipc
    return (synset, metadata), (metadata["objective"], provenance.dataset, ipc)


def _made_from(asked: str | None, recorded: str | None) -> str | None:
    """The dataset whose cell is meant: folder: and hf: say where the test images are, not which those are."""
    return recorded if recorded and (asked is None or asked.startswith(tuple(PREFIXES))) else asked


def _shortened(options: Check, result: dict[str, Any], objective: str, recipe: recipes.Recipe) -> list[str]:
    """How the evaluation was less than the published one."""
    like = with_recipe(DistillOptions, recipe)
    epochs = defaults_of(objective, recipe).get("epoch_eval_train", like.epoch_eval_train)
    short = []
    if epochs is not None and result["evaluation"]["epochs"] < epochs:
        short.append(f"{result['evaluation']['epochs']} of {epochs} epochs")
    if options.num_eval < like.num_eval:
        short.append(f"{options.num_eval} of {like.num_eval} networks")
    return [f"shortened: {', '.join(short)}"] if short else []


def _images_files(folder: Path) -> list[Path]:
    """The sets below a folder, of pairs the images file."""
    found = drive.find_files(folder) if folder.is_dir() else []
    return [path for path in found if not path.name.rpartition("#")[2].startswith("labels")]


def main() -> None:
    run_command(lambda: parse_command(COMMANDS, "python -m common.pretrained").run())


if __name__ == "__main__":
    main()
