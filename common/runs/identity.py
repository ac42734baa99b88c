"""Which run a folder belongs to: the options that decide what is computed, and the folder name made from them.

Run folders outlive the code that wrote them, so a new option must not turn an old run into a different one. If a run
was made before an option existed, the run is taken to have had the option's default. A new option needs no change here.
But its default must be the value with which the code does what it did before, and that default must never change. If
new runs should have another value, set it in a recipe or in a subclass.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from common.config.options import NOT_PART_OF_A_RUN, DistillOptions
from common.config.places import dataset_folder, run_folder
from common.system.errors import InputError
from common.system.text import difference

_EVERY_OBJECTIVE = frozenset({
    "dataset", "subset", "image_size", "resize", "antialias", "skip_corrupt", "recipe", "zca", "cifar100_stats",
    "num_eval", "epoch_eval_train", "batch_train", "lr_net", "eval_mode", "eval_protocol", "networks_at_once",
    "model", "ipc", "msz_per_channel", "lr_freq", "mom_freq", "transform", "selection", "selection_images",
    "Iteration", "dsa", "dsa_strategy", "eval_it", "wait_eval", "seed", "precision", "compile", "chunk", "batch_syn",
})  # fmt: skip
_DM = _EVERY_OBJECTIVE | {"batch_real"}
_DC = _EVERY_OBJECTIVE | {"batch_real", "method", "dis_metric", "outer_loop", "inner_loop"}
_TM = _EVERY_OBJECTIVE | {
    "syn_steps", "expert_epochs", "max_start_epoch", "lr_teacher", "lr_lr", "experts_per_iteration", "max_experts",
    "unroll",
}  # fmt: skip

# For each objective, the options that existed when run names became stable. These options are always part of a name;
# all other options are part of it only if they differ from their default. Never add an option here: that would rename
# every run. An objective that was added later needs no line.
ALWAYS_NAMED = {
    "DM": _DM,
    "DC": _DC,
    "TM": _TM,
    "ImageNet-abcde/DM": _DM | {"objective"},
    "ImageNet-abcde/DC": _DC | {"objective"},
    "ImageNet-abcde/TM": _TM | {"objective"},
}


def identity(options: DistillOptions) -> dict[str, Any]:
    """Every option that affects the result, as JSON values. Two runs with equal identities are the same run."""
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in NOT_PART_OF_A_RUN}
    return json.loads(json.dumps(values, default=_refuse))  # turns tuples into lists


def _refuse(value: object) -> str:
    raise InputError(f"an option is a {type(value).__name__}, which config.json cannot hold: give it the type str")


def automatic_name(options: DistillOptions, objective: str) -> str:
    """The name of a run folder without --name. Every version of the code gives the same run the same name."""
    always, defaults = ALWAYS_NAMED.get(objective, frozenset()), _declared_defaults(type(options))
    named = {key: value for key, value in identity(options).items() if key in always or value != defaults[key]}
    return hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=5).hexdigest()


def folder_of(options: DistillOptions, objective: str) -> Path:
    """The run folder, <save_path>/<objective>/<dataset>/ipc<ipc>/<name>; bits<bits> if --bits_per_class is given."""
    name = options.name or automatic_name(options, objective)
    return run_folder(options.save_path, objective, options.dataset, options.ipc, name, options.bits_per_class)


def differences(stored: dict[str, Any], options: DistillOptions) -> str:
    """In words, how the `stored` identity of a run differs from these options; "" if both are the same."""
    asked, there = identity(options), _declared_defaults(type(options)) | stored
    told = [difference(f"--{key}", there[key], asked[key]) for key in sorted(asked) if there[key] != asked[key]]
    gone = sorted(stored.keys() - asked.keys() - NOT_PART_OF_A_RUN)
    return ", ".join([*told, *(difference(f"--{key}", stored[key], "no such option") for key in gone)])


def wherever_it_lies(stored: dict[str, Any], options: DistillOptions) -> dict[str, Any]:
    """The stored identity with the path of the options, if both are of a folder of images with the same last name."""
    there, here = str(stored.get("dataset")), options.dataset
    folders = there.startswith("folder:") and here.startswith("folder:")
    return stored | {"dataset": here} if folders and dataset_folder(there) == dataset_folder(here) else stored


def _declared_defaults(kind: type[DistillOptions]) -> dict[str, Any]:
    """The default of every option that affects the result, as JSON values, from the class that first declares it.

    Defaults of subclasses do not count: they may be as new as the option, and older runs did not have them.
    """
    declared = {}
    for each in filter(dataclasses.is_dataclass, kind.__mro__):  # base classes come last and override subclasses
        for field in dataclasses.fields(each):
            made = field.default_factory
            declared[field.name] = field.default if made is dataclasses.MISSING else made()
    return json.loads(json.dumps({key: value for key, value in declared.items() if key not in NOT_PART_OF_A_RUN}))
