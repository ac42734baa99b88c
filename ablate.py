"""Compares transforms and selection rules at the same budget: `python ablate.py --help`.

python ablate.py                                    4 transforms x 4 rules on the built-in digits
python ablate.py --dataset MNIST --Iteration 100    flags not listed by --help are passed to the objective's distill.py

Every variant stores ipc * d real numbers per class and channel (d pixels per image) and starts from the same images.
All have the same learning rate, the recipe's lr_freq, in orthonormal units. The last row of the table is plain pixels:
ipc whole images per class with the learning rate of their own recipe. If the command is stopped, running it again
resumes the work.

python ablate.py --dataset CIFAR10 --stored_as jpeg avif    also random real images in files, at as many bytes

Their rows are measured by the objective's evaluate.py, with the networks and epochs of the other rows, each time anew.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from common import frequency
from common.config.command_line import data_flags, find_recipe, parse_some, with_recipe
from common.config.options import DataOptions, DistillOptions
from common.config.places import dataset_folder, run_folder
from common.frequency import TransformName
from common.images.pixels import StoredAs
from common.report import pictures
from common.report.description import needed_bytes
from common.report.evaluated import read_result
from common.report.record import read_run
from common.synset.file import load_synset
from common.synset.selection import SelectionRule
from common.system.command import run_command
from common.system.errors import InputError
from common.system.files import write_csv
from common.system.scripts import evaluate_script, run_script
from common.system.text import counted, diverged_in, hardware_in_words, in_percent, percent
from common.terminal.next_step import to_gallery
from common.training.stored_real import describe_storage, storage_columns


@dataclass
class Options(DataOptions):
    """Distil with every transform and selection rule at the same budget and print a table of accuracies.

    Flags that are not listed here are passed to distill.py.
    """

    objective: Literal["DM", "DC"] = "DM"
    """objective whose distill.py is run"""
    ipc: int = 1
    """budget: storage per class, in images of the dataset"""
    transforms: tuple[TransformName, ...] = get_args(TransformName)
    """transforms to compare"""
    selections: tuple[SelectionRule, ...] = get_args(SelectionRule)
    """selection rules to compare"""
    msz_per_channel: int = 0
    """k, real numbers kept per channel of a synthetic image, the same for every variant (0: from the recipe)"""
    lr_freq: float = 0.0
    """learning rate in units of the unnormalised DCT, converted for the other transforms (0: from the recipe)"""
    stored_as: tuple[StoredAs, ...] = ()
    """also train on random real images in files of these kinds, ipc float32 images' bytes per class"""
    count_headers: bool = True
    """whether those bytes pay for whole files, see evaluate.py --help"""
    output: str = "runs/ablation"
    """folder for the run folders, <objective>_<dataset>_ipc<ipc>.csv and <objective>_<dataset>_ipc<ipc>_masks.png"""


@dataclass(frozen=True)
class Variant:
    """One variant to distil. For plain pixels, k is the number d of pixels and the selection is "all"."""

    transform: str
    selection: str
    k: int
    lr_freq: float

    @property
    def name(self) -> str:
        """The last part of the path of the variant's run folder."""
        return f"{self.transform}-{self.selection}"


def main() -> None:
    options, passed_on = parse_some(Options)
    check(options, passed_on)
    # Only the image size is needed, which whitening does not change.
    im_size = dataclasses.replace(options, zca=False).load()[0].im_size
    # By all that the run folders tell apart, so that no table overwrites another's.
    output = Path(options.output)
    name = f"{options.objective}_{dataset_folder(options.dataset)}_ipc{options.ipc}"
    rows: list[dict[str, Any]] = []
    real: list[tuple[dict[str, Any], dict[str, Any]]] = []
    folders = []
    for variant in variants(options, im_size):
        row, folder = measure(variant, options, passed_on)
        if not rows:  # the first run says how to train; what cannot be stored ends the table before the others
            files = {codec: output / f"{name}_{codec}.json" for codec in options.stored_as}
            real = [measure_real(codec, options, row, folder, file) for codec, file in files.items()]
        rows.append(row)
        folders.append(folder)
    columns = dict.fromkeys(key for row, _ in real for key in row)
    table = [dict.fromkeys(columns, "-") | row for row in [*rows, *(row for row, _ in real)]]
    write_csv(output / f"{name}.csv", without_empty_counts(table))
    show(options, rows)
    for row, storage in real:
        print(f"{row['stored_as']:<10}{in_percent(row).replace(' %', ''):>24}  ({describe_storage(storage)})")
    print(f"\ntable    {output / f'{name}.csv'}")
    if draw(output / f"{name}_masks.png", options, rows, folders):
        print(f"picture  {output / f'{name}_masks.png'}")
    print(to_gallery(output))


def check(options: Options, passed_on: list[str]) -> None:
    """Raise InputError for flags that the table itself sets, and if there are no transforms or selection rules."""
    given = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in passed_on if word.startswith("--")}
    if own := sorted(given & {"transform", "selection", "save_path", "name"}):
        raise InputError(
            f"--{own[0]} is decided by the table: give --transforms, --selections or --output (a folder) instead"
        )
    if given & {"storage", "bits_per_class"}:
        raise InputError(
            "the table compares what float32 sets keep, as --storage fp32: leave out --storage and its flags"
        )
    if not (options.transforms and options.selections):
        raise InputError("there is nothing to compare: give at least one of --transforms and one of --selections")
    if not (options.stored_as or options.count_headers):
        raise InputError("--count_headers is about real images in files: give --stored_as, too, or leave it out")


def variants(options: Options, im_size: tuple[int, ...]) -> list[Variant]:
    """The variants to compare: every transform with every selection rule, then plain pixels.

    Raises InputError if neither a recipe nor a flag gives k and the learning rate.
    """
    recipe, pixels = (
        with_recipe(
            DistillOptions,
            find_recipe(options.objective, options.dataset, options.ipc, options.recipe, transform),
        )
        for transform in ("dct", "identity")
    )
    k, lr_freq = options.msz_per_channel or recipe.msz_per_channel, options.lr_freq or recipe.lr_freq
    if not (k > 0 and lr_freq > 0):
        raise InputError(
            f"no recipe for {options.objective} on {options.recipe or options.dataset} at ipc {options.ipc}: "
            "give --msz_per_channel and --lr_freq, or --recipe NAME to borrow another dataset's"
        )
    return [
        *(
            Variant(transform, selection, k, frequency.convert_step(lr_freq, im_size, "dct", transform))
            for transform in options.transforms
            for selection in options.selections
        ),
        Variant("identity", "all", math.prod(im_size), pixels.lr_freq),
    ]


def measure(variant: Variant, options: Options, passed_on: list[str]) -> tuple[dict[str, Any], Path]:
    """Distil one variant; return its row of the CSV file and its run folder.

    The row has the accuracies and everything needed to reproduce them: options, code version, hardware and command.
    """
    flags: list[object] = ["--ipc", options.ipc, "--transform", variant.transform]
    flags += ["--selection", variant.selection] if variant.selection != "all" else []
    flags += ["--msz_per_channel", variant.k, "--lr_freq", variant.lr_freq]
    flags += data_flags(options, unless=DataOptions())
    script = f"{options.objective}/distill.py"
    command = run_script(script, *flags, *passed_on, "--save_path", options.output, "--name", variant.name)
    folder = run_folder(options.output, options.objective, options.dataset, options.ipc, variant.name)
    run = read_run(folder)
    if run.summary is None:
        raise InputError(f"{folder} is not finished: run the command again, which continues it")
    summary = run.summary
    row = {
        "dataset": dataset_folder(options.dataset),
        "objective": options.objective,
        "ipc": options.ipc,
        "transform": variant.transform,
        "selection": variant.selection,
        "selection_images": run.option("selection_images") if variant.selection in ("variance", "energy") else "-",
        "k": variant.k,
        "n": summary["budget"]["images_per_class"],
        "set_bytes": needed_bytes(summary["budget"]),
        "paper_bytes": summary["budget"]["coefficient_bytes"],
        "lr_freq": variant.lr_freq,
        "updates": summary["last"]["iteration"],
        "batch_real": "-" if run.option("batch_real") is None else run.option("batch_real"),
        "networks": summary["last"]["n"],
        "epochs": run.option("epoch_eval_train"),
        "start_mean": _rounded(summary["start"]["mean"]),
        "start_std": _rounded(summary["start"]["std"]),
        "mean": _rounded(summary["last"]["mean"]),
        "std": _rounded(summary["last"]["std"]),
        "start_diverged": diverged_in(summary["start"]),
        "diverged": diverged_in(summary["last"]),
        "seconds": summary["seconds"],
        "version": summary["version"],
        "hardware": hardware_in_words(run.config.get("hardware", {})),
        "command": command,
    }
    return row, folder


def measure_real(
    codec: StoredAs, options: Options, like: dict[str, Any], folder: Path, output: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train on random real images in files; return a row with the columns of `like`, and what the files take.

    folder: the run folder that the row `like` is of; networks are trained as its last ones were. output: the
    JSON file that evaluate.py writes, with a table beside it.
    """
    used = read_run(folder).option
    strategy = used("dsa_strategy") if used("dsa") else "none"
    flags: list[object] = ["--baseline", "random", "--stored_as", codec, "--ipc", options.ipc]
    flags += ["--count_headers", options.count_headers, "--dsa_strategy", strategy, "--output", output]
    keys = [
        "model", "num_eval", "epoch_eval_train", "batch_train", "eval_mode", "eval_protocol", "networks_at_once",
        "seed", "device", "precision", "compile",
    ]  # fmt: skip
    keys += ["lr_net"] if used("eval_protocol") == "dc" else []  # the other protocol has its own
    for key in keys:
        flags += [] if used(key) is None else [f"--{key}", used(key)]
    flags += data_flags(options, unless=DataOptions())
    command = run_script(evaluate_script(options.objective), *flags)
    result = read_result(output)
    row = dict.fromkeys(like, "-") | {
        "dataset": like["dataset"],
        "objective": options.objective,
        "ipc": options.ipc,
        "transform": "files",
        "selection": "random",
        "updates": 0,
        "networks": result["n"],
        "epochs": result["evaluation"]["epochs"],
        "mean": _rounded(result["mean"]),
        "std": _rounded(result["std"]),
        "start_diverged": 0,
        "diverged": diverged_in(result),
        "seconds": round(sum(map(sum, result["seconds"].values())), 1),
        "version": result["version"],
        "hardware": hardware_in_words(result["hardware"]),
        "command": command,
    }
    return row | storage_columns(result["storage"]), result["storage"]


def _rounded(fraction: float | None) -> float | None:
    return None if fraction is None else round(fraction, 4)


def without_empty_counts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns that count diverged networks, if there are none in the whole table."""
    empty = {key for key in ("start_diverged", "diverged") if not any(row[key] for row in rows)}
    return [{key: value for key, value in row.items() if key not in empty} for row in rows]


def show(options: Options, rows: list[dict[str, Any]]) -> None:
    """Print the table of accuracies after (and before) optimisation: one line per transform, one column per rule."""
    cells = {(row["transform"], row["selection"]): row for row in rows}
    first = rows[0]
    print(
        f"\n{first['dataset']}, {options.objective}, ipc {options.ipc}, k {first['k']}, n {first['n']}: test accuracy "
        f"in % after {first['updates']} updates (before any), {counted(first['networks'], 'network')} each"
    )
    print(f"{'':<10}" + "".join(f"{selection:>24}" for selection in options.selections))
    for transform in options.transforms:
        print(f"{transform:<10}" + "".join(f"{_cell(cells[transform, rule]):>24}" for rule in options.selections))
    print(f"{'pixels':<10}{_cell(cells['identity', 'all']):>24}  ({options.ipc} whole images per class)")


def _cell(row: dict[str, Any]) -> str:
    before = percent(row["start_mean"]) + (f", {count} diverged" if (count := row["start_diverged"]) else "")
    return f"{in_percent(row).replace(' %', '')} ({before})"


def draw(path: Path, options: Options, rows: list[dict[str, Any]], folders: list[Path]) -> bool:
    """Draw the kept positions of every variant except plain pixels; returns whether there is a picture.

    Three-dimensional images give no picture.
    """
    cells = []
    for row, folder in zip(rows[:-1], folders, strict=False):
        mask = load_synset(folder / "synset.safetensors")[0].mask  # [C, H, W]
        if mask.dim() != 3:
            return False
        cells.append((f"{row['transform']}, {row['selection']}\n{in_percent(row)}", mask.float().mean(dim=0)))
    first = rows[0]
    title = (
        f"{first['dataset']}, {options.objective}, ipc {options.ipc}: positions kept (k {first['k']}), and accuracy. "
        "Low frequencies: dct, dwt top left; dft corners, real parts in one half, imaginary in the other."
    )
    pictures.draw_shares(path, cells, len(options.selections), title)
    return True


if __name__ == "__main__":
    run_command(main)
