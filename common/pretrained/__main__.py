"""Synthetic sets made elsewhere, and ours for use elsewhere: `python -m common.pretrained list|download|convert|...`.

list                          list the published accuracies, and which of the authors' sets are on this machine
download                      download the authors' sets from their folder on Google Drive
convert FILE --output FILE    convert the authors' files into our format: coefficients and positions are recovered
export FILE --to KIND:PATH    write a set's images as PNG files, for torch, numpy or the library datasets
import PATH --output FILE     make a set of images that others made, in class folders, .npz or .pt
check FILE                    train networks on a set, and compare their accuracy with the published one
push FILE hf://owner/name     upload a set of your own to the Hugging Face hub
pull hf://owner/name          download a set from the Hugging Face hub
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from common import recipes
from common.config.checks import check_json
from common.config.command_line import parse_command, with_recipe
from common.config.evaluate_options import EvaluateOptions
from common.config.options import DistillOptions
from common.datasets import PREFIXES
from common.disk.paths import is_folder
from common.pretrained import drive, share
from common.pretrained.bring_in import Import
from common.pretrained.convert import Provenance, defaults_of, from_authors, likely_objective
from common.pretrained.export import Export
from common.report.description import describe_files
from common.report.verdict import in_words, judge_networks
from common.robustness.authors_set import AUTHORS_LR
from common.synset import hub
from common.synset.authors import is_authors, read_authors
from common.synset.file import StoredSet, load_synset, save_synset
from common.synset.open import check_no_pixels
from common.system.command import run_command
from common.system.errors import InputError
from common.system.files import write_json
from common.system.text import counted, in_percent, published_with_std
from common.terminal.next_step import to_show
from common.training.evaluate_command import evaluate_file

FOLDER = "pretrained"
# The authors' files lack the learned step size; their corruption script trains with this learning rate.
LR_NET = AUTHORS_LR

File = Annotated[str, tyro.conf.Positional]


@dataclass
class List:
    """List the published accuracies, and which of the authors' sets are on this machine."""

    folder: str = FOLDER
    """folder that the sets were downloaded to"""

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
    """Download the authors' sets from Google Drive. The same command resumes a download that was stopped."""

    folder: str = FOLDER
    """folder to download the sets to"""

    def run(self) -> None:
        recorded = drive.download(Path(self.folder))
        print(f"{counted(len(recorded), 'file')} in {self.folder}, checksums in {Path(self.folder) / drive.RECORD}")


@dataclass
class Convert(Provenance):
    """Convert an authors' file into our format. What it does not say stays unknown unless a flag says it."""

    file: File = field(kw_only=True)
    """the authors' file: images_*.pt or labels_*.pt of a pair, or res_*.pt"""
    output: str = field(kw_only=True)
    """the .safetensors file to write"""
    exp: int | None = None
    """number of the experiment in a res_*.pt, counted from 0 (default: the last, usually the only one)"""
    as_pixels: bool = False
    """store the images unchanged, for sets that were not made with FreD"""

    def run(self) -> None:
        if not self.output.endswith(hub.SUFFIX):
            raise InputError(f"--output {self.output} is to be a {hub.SUFFIX} file")
        authors = read_authors(self.file, self.exp, self.pixels, self.soft_labels)
        synset, metadata = from_authors(authors, self, self.as_pixels)
        save_synset(synset, Path(self.output), metadata)
        print(synset.describe_budget())
        if not self.as_pixels:
            print(f"left out: at most {metadata['source']['residual']:.1e} of the mean magnitude of what is kept")
        unknown = [key for key in ("dataset", "network", "evaluation") if metadata[key] is None]
        if metadata["evaluation"] is not None and "lr" not in metadata["evaluation"]:
            unknown.append("step size of the networks (--lr_net)")
        print(f"{self.output} written" + (f"; unknown in it: {', '.join(unknown)}" if unknown else ""))
        print(to_show(self.output))


@dataclass
class Check(EvaluateOptions):
    """Train networks on synthetic sets and compare with the published accuracy.

    What the authors' files do not say is taken from their names and from flags.
    """

    file: File = field(kw_only=True)
    """a synthetic set or a folder of sets: the authors' files, ours, or hf://owner/name"""
    objective: str | None = None
    """objective that made the set: TM, DM, DC, ImageNet-abcde/TM, ... (default: from the file, or the first of these
    with a published accuracy)"""
    ipc: int | None = None
    """budget in images per class (default: from the file or its name)"""
    as_pixels: bool = False
    """use the images unchanged, for sets that were not made with FreD"""
    synset: Annotated[str | None, tyro.conf.Suppress] = None
    baseline: Annotated[None, tyro.conf.Suppress] = None
    stored_as: Annotated[None, tyro.conf.Suppress] = None
    bits_per_class: Annotated[None, tyro.conf.Suppress] = None
    n: Annotated[None, tyro.conf.Suppress] = None
    count_headers: Annotated[None, tyro.conf.Suppress] = None
    references: Annotated[None, tyro.conf.Suppress] = None
    full_epochs: Annotated[None, tyro.conf.Suppress] = None
    recipe: Annotated[str | None, tyro.conf.Suppress] = None
    cifar100_stats: Annotated[None, tyro.conf.Suppress] = None

    def run(self) -> None:
        if self.output:
            check_json(self.output, self.file)
        folder = Path(self.file)
        files = [self.file] if not is_folder(folder) else [str(path) for path in _images_files(folder)]
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
    """Upload a set to the Hugging Face hub, with a README.md made from its metadata."""

    file: File
    """a .safetensors file of this project"""
    address: File
    """dataset repository, hf://owner/name or hf://owner/name/FILE.safetensors; created if it does not exist"""
    private: bool = False
    """if the repository is created, make it private"""

    def run(self) -> None:
        place, described = share.push(Path(self.file), self.address, self.private)
        print(f"{place} uploaded, see {place.url}" + ("" if described else " (its README.md is as it was)"))


@dataclass
class Pull:
    """Download a set from the Hugging Face hub."""

    address: File
    """hf://owner/name or hf://owner/name/FILE.safetensors"""
    output: str | None = None
    """file to write (default: the set's own file name, in the current folder)"""

    def run(self) -> None:
        path = hub.pull(self.address, None if self.output is None else Path(self.output))
        print(f"{path} written: {load_synset(path)[0].describe_budget()}\n{to_show(path)}")


COMMANDS: dict[str, type] = {
    "list": List, "download": Download, "convert": Convert, "export": Export, "import": Import, "check": Check,
    "push": Push, "pull": Pull,
}  # fmt: skip


def check(options: Check, file: str) -> dict[str, Any]:
    """Evaluate one set, and print its accuracy beside the published one.

    Returns the result of `evaluate_file` with the comparison added. Raises InputError if the dataset is unknown, and
    the same errors as `evaluate_file`.
    """
    stored, cell = _open(options, file)
    synset, metadata = stored
    objective, dataset, ipc = cell
    recipe = recipes.find(objective, dataset, ipc)
    notes = []
    if not options.as_pixels and synset.ipc != ipc:
        notes.append(f"what it holds is a budget of {counted(synset.ipc, 'image')} per class, not {ipc}")
    evaluation = metadata["evaluation"] or {}
    asked = dataclasses.replace(options, synset=file, dataset=options.dataset or dataset, ipc=None)
    learned = "lr" not in evaluation and "step_size" not in metadata
    if learned and options.lr_net is None and (options.eval_protocol or evaluation.get("kind", "dc")) == "dc":
        asked.lr_net = LR_NET
        notes.append(
            f"step size {LR_NET:g}, that of the authors' corruption script: the learned one is not in the file"
        )
    if storage := metadata.get("storage"):
        notes.append(
            f"stored as {storage['kind']} in {storage['bytes']:,} bytes, {storage['bits_per_class']:,} bits per class: "
            "published figures are of float32 numbers"
        )
    if files := metadata.get("files"):
        notes.append(f"{describe_files(files)}: published figures are of float32 numbers")
    result = evaluate_file(asked, objective, {}, stored)
    notes += _shortened(options, result, objective, recipe)
    published = recipes.published(objective, dataset, ipc, synset.im_size[0])
    line = f"{objective} {dataset} ipc {ipc}: ours {in_percent(result)} ({result['n']} x {result['network']})"
    if published is None:
        line += "; nothing is published for this cell"
    else:
        line += f", published {published_with_std(published, '+-')} %"
        verdict = judge_networks(result, published)
        if verdict is not None:  # of a pool, others than the principal network may be all that did not diverge
            line += f", difference {in_words(verdict)}"
    print(line + "".join(f"\n  {note}" for note in notes), flush=True)
    return {**result, "file": file, "objective": objective, "ipc": ipc, "published": published, "notes": notes}


def _open(options: Check, file: str) -> tuple[StoredSet, tuple[str, str, int]]:
    """The set with its metadata, and (objective, dataset, ipc), each from a flag, else the file, else its name."""
    path = hub.fetch(file) if file.startswith(hub.PREFIX) else Path(file)
    if not is_authors(path):
        check_no_pixels(file, options.pixels, options.soft_labels)
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
        pixels=options.pixels,
    )
    if provenance.dataset is None:
        raise InputError(f"{file} does not say what it was made from, nor do the folders above it: give --dataset")
    # The ipc in a name tells which published cell to compare with; the real budget is recovered from the images.
    synset, metadata = from_authors(
        read_authors(path, pixels=options.pixels, soft_labels=options.soft_labels),
        dataclasses.replace(provenance, ipc=None),
        options.as_pixels,
    )
    ipc = provenance.ipc or synset.ipc
    return (synset, metadata), (metadata["objective"], provenance.dataset, ipc)


def _made_from(asked: str | None, recorded: str | None) -> str | None:
    """The dataset to compare with. folder: and hf: only say where the test images are, so they do not replace it."""
    return recorded if recorded and (asked is None or asked.startswith(tuple(PREFIXES))) else asked


def _shortened(options: Check, result: dict[str, Any], objective: str, recipe: recipes.Recipe) -> list[str]:
    """Notes on how the evaluation was shorter than the published one: fewer epochs, fewer networks."""
    like = with_recipe(DistillOptions, recipe)
    epochs = defaults_of(objective, recipe).get("epoch_eval_train", like.epoch_eval_train)
    short = []
    if epochs is not None and result["evaluation"]["epochs"] < epochs:
        short.append(f"{result['evaluation']['epochs']} of {epochs} epochs")
    if options.num_eval < like.num_eval:
        short.append(f"{options.num_eval} of {like.num_eval} networks")
    return [f"shortened: {', '.join(short)}"] if short else []


def _images_files(folder: Path) -> list[Path]:
    """The synthetic-set files below a folder; of a pair only the images file."""
    found = drive.find_files(folder) if is_folder(folder) else []
    return [path for path in found if not path.name.rpartition("#")[2].startswith("labels")]


def main() -> None:
    run_command(lambda: parse_command(COMMANDS, "python -m common.pretrained").run())


if __name__ == "__main__":
    main()
