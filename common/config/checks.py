"""Checks of option values: a value that cannot work is refused in one sentence before any data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common import recipes
from common.config.evaluate_options import REFERENCES, EvaluateOptions
from common.config.options import DistillOptions, EvaluationOptions, Sources
from common.config.seeds import parse_seeds
from common.datasets import check_dataset
from common.images.pixels import check_side
from common.matching.augment import parse_strategy
from common.schemas.door import LARGEST
from common.synset.authors import SUFFIXES
from common.synset.hub import SUFFIX
from common.synset.packed import check_shared
from common.system.errors import InputError
from common.system.files import check_not_read, check_writable, table_beside


def check(options: DistillOptions, objective: str, k_follows: bool = False) -> None:
    """Raise InputError for the first option of a distillation that cannot work. No data is read.

    k_follows: k is decided when the images are known.
    """
    check_dataset(options.dataset, options.subset)
    for key in ("ipc", "batch_real", "batch_train", "num_eval", "chunk", "workers", "bits_per_class"):
        check_least(options, key, 1)
    if options.image_size is not None:
        check_side(options.image_size)
    for key in (
        "Iteration",
        "batch_syn",
        "eval_it",
        "networks_at_once",
        "epoch_eval_train",
        "checkpoint_every",
        "mom_freq",
        "seed",
    ):
        check_least(options, key, 0)
    check_numbers(options)
    options.check_validation()
    if options.seeds is not None:
        parse_seeds(options.seeds)
    if options.name is not None and (options.name in ("", ".", "..") or "/" in options.name):
        raise InputError(f"--name '{options.name}' is not the name of a folder: --save_path says where it lies")
    all_pixels = options.transform == "identity" and options.msz_per_channel == 0
    check_storage(options)
    no_k = all_pixels or options.storage == "coded" or k_follows
    if options.lr_freq == 0 or (options.msz_per_channel == 0 and not no_k):
        if not recipes.available(objective):
            raise InputError(f"{objective} has no recipes: give --msz_per_channel and --lr_freq")
        lender = options.recipe or options.dataset
        ipcs = recipes.available(objective).get(lender, [])
        have = f"recipes exist for ipc {', '.join(map(str, ipcs))}" if ipcs else "there is none for this dataset"
        use = "" if ipcs else recipes.elsewhere(objective, lender)
        raise InputError(
            f"no recipe for {objective} on {lender} at ipc {options.ipc} ({have}): {use}give --msz_per_channel and "
            "--lr_freq, or --recipe NAME to borrow another dataset's"
        )
    for key in ("msz_per_channel", "lr_freq", "lr_net"):
        if not (no_k and key == "msz_per_channel"):
            check_positive(options, key)
    parse_strategy(options.strategy)


def check_storage(options: DistillOptions) -> None:
    """Raise InputError for options of storage that contradict each other, or that --storage fp32 has no use for."""
    given = {
        "bits_per_class": options.bits_per_class is not None,
        "n": options.n is not None,
        "colour": options.colour is not None,
        "block": options.block != 0,
        "positions": options.positions == "joint",
        "rate_weight": options.rate_weight != 0,
    }
    check_least(options, "rate_weight", 0)
    if options.rate_weight and options.storage in ("bf16", "int8"):
        raise InputError(
            f"--rate_weight is for --storage coded: {options.storage} has codes of one length, leave it out"
        )
    if options.storage == "fp32":
        for key, is_given in given.items():
            if is_given:
                raise InputError(
                    f"--{key} has no use with --storage fp32, the paper's, whose budget is --ipc and whose k positions "
                    "are those of every channel: give --storage coded, int8 or bf16, or leave it out"
                )
        return
    if options.n == "auto" and options.storage != "coded":
        raise InputError(
            f"--n auto is for --storage coded: with {options.storage}, as many images as fit are the default"
        )
    if options.n != "auto":
        check_least(options, "n", 1)
    if options.transform != "dct":
        raise InputError(f"--storage {options.storage} stores coefficients of the dct: leave out --transform")
    if not options.joint:
        check_shared(options.colour, options.block)


def refuse_flags(sources: Sources, keys: Sequence[str], sentence: str) -> None:
    """Raise InputError with the sentence, in which {flag} is its name, for the first of the options given by a flag."""
    for key in keys:
        if sources[key] == "flag":
            raise InputError(sentence.format(flag=key))


def check_least(options: object, key: str, bound: int) -> None:
    """Raise InputError if the option is below `bound`. An option that is None or does not exist passes."""
    value = getattr(options, key, None)
    if value is not None and value < bound:
        raise InputError(f"--{key} {value} is too small: give at least {bound}")


def check_positive(options: object, key: str) -> None:
    """Raise InputError if the option is not above zero. An option that is None passes."""
    value = getattr(options, key)
    if value is not None and not value > 0:
        raise InputError(f"--{key} {value} must be positive")


def check_training(options: EvaluateOptions) -> None:
    """Raise InputError for the first flag that says how evaluation networks are trained and is out of range."""
    check_least(options, "epoch_eval_train", 0)
    check_positive(options, "lr_net")
    check_least(options, "batch_train", 1)
    if options.dsa_strategy is not None and options.augmentation != "dsa":
        raise InputError(
            f"--dsa_strategy says what --augmentation dsa draws from, and --augmentation {options.augmentation} takes "
            "its place: leave one of them out"
        )


def check_references(options: EvaluateOptions) -> None:
    """Raise InputError for unknown names in --references, or for options that do not go together with it."""
    check_least(options, "full_epochs", 1)
    asked = options.references_asked
    for name in asked:
        if name not in REFERENCES:
            raise InputError(f"--references has no '{name}': give some of {', '.join(REFERENCES)}, joined by commas")
    if options.full_epochs is not None and "full" not in asked:
        raise InputError("--full_epochs is for --references full: leave it out, or add full")
    if "unaugmented" in asked and "random" not in asked:
        raise InputError("--references unaugmented is compared with random images: add random")


def check_stored_as(options: EvaluateOptions) -> None:
    """Raise InputError for options of --stored_as that do not go together or are out of range."""
    for key in ("bits_per_class", "n"):
        check_least(options, key, 1)
    details = (options.bits_per_class, options.n, options.count_headers)
    if options.stored_as is None:
        if any(value is not None for value in details):
            raise InputError(
                "--bits_per_class, --n and --count_headers say how a baseline's images are stored: "
                "give --stored_as, too, or leave them out"
            )
    elif options.baseline not in ("random", "herding", "kcenter"):
        raise InputError("--stored_as stores real images of a budget: give it with --baseline random|herding|kcenter")
    elif options.bits_per_class is not None and options.ipc is not None:
        raise InputError("--ipc and --bits_per_class both name the budget: leave out one of them")
    elif options.stored_as == "png" and options.n is not None:
        raise InputError("--n has no use with --stored_as png, which keeps as many images as fit: leave it out")
    elif options.stored_as == "coded" and options.count_headers is not None:
        raise InputError("--count_headers has no use with --stored_as coded, where everything counts: leave it out")


def refuse_step_size(options: EvaluationOptions, sources: Sources) -> None:
    """Raise InputError if --lr_net is given with --eval_protocol glad, which would ignore it."""
    if options.eval_protocol == "glad" and sources["lr_net"] == "flag":
        raise InputError("--lr_net has no use with --eval_protocol glad, which has step sizes of its own: leave it out")


def check_numbers(options: Any) -> None:
    """Raises InputError for the first number of a dataclass that nothing can use.

    Every command line is checked so: networks and images are float32, and no option means anything beyond it; whole
    numbers have 64 bits, which is also what the files of a run may hold.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for each in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(each, float) and not in_float32(each):
                raise InputError(f"--{field.name} {each} is not finite in float32: give another")
            if isinstance(each, int) and abs(each) >= LARGEST:
                raise InputError(f"--{field.name} {each} is no whole number of 64 bits: give another")


def in_float32(value: float) -> bool:
    """Whether float32 has a finite number for a value."""
    return abs(value) <= torch.finfo(torch.float32).max


def output_files(output: str, synset: str | None) -> tuple[Path, Path]:
    """Return the paths of the JSON file that --output names and of the CSV file beside it.

    synset: name of the set that is evaluated.
    Raises InputError if one of the files would overwrite the other one or the set, or cannot be written.
    """
    check_json(output, synset)
    files = Path(output), table_beside(Path(output))
    check_not_read("--output", files, [synset])
    check_writable(files[1])  # the longer name
    return files


def check_json(output: str, *read: str | None) -> None:
    """Raise InputError if --output has another kind of file's suffix, is a file that is read, or cannot be written."""
    suffix = Path(output).suffix.lower()
    if suffix in (".csv", SUFFIX, *SUFFIXES):
        kind = "the table, which is written beside it," if suffix == ".csv" else "a synthetic set"
        raise InputError(
            f"--output {output} ends like {kind} and is to be a JSON file: give {Path(output).with_suffix('.json')}"
        )
    check_not_read("--output", [Path(output)], read)
    check_writable(Path(output))
