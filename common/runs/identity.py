"""Which run a folder is of: the options that decide what is computed, and the name that is made from them.

Folders outlive the code that wrote them, so a new option must not make another run of an old one. A run that knows
nothing of an option is taken to have had its default. Adding an option needs nothing done here, but its default must be
the value with which the code does what it did before, and must stay that: what new runs should have instead is for a
recipe, or a subclass, to say.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from common.config.options import NOT_PART_OF_A_RUN, DistillOptions
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

# By objective, the options that its runs had when names began to be kept. These are part of a name whatever their
# value, all others only where they are not at their default. So nothing is ever added here: it would rename every run.
# An objective that came later has no line, and needs none.
ALWAYS_NAMED = {
    "DM": _DM,
    "DC": _DC,
    "TM": _TM,
    "ImageNet-abcde/DM": _DM | {"objective"},
    "ImageNet-abcde/DC": _DC | {"objective"},
    "ImageNet-abcde/TM": _TM | {"objective"},
}


def identity(options: DistillOptions) -> dict[str, Any]:
    """What makes these options' run another than others, as JSON has it: every option that bears on the result."""
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in NOT_PART_OF_A_RUN}
    return json.loads(json.dumps(values))  # which has no tuples


def automatic_name(options: DistillOptions, objective: str) -> str:
    """The name of a run folder that was given none, the same for the same run in every version of the code."""
    always, defaults = ALWAYS_NAMED.get(objective, frozenset()), _declared_defaults(type(options))
    named = {key: value for key, value in identity(options).items() if key in always or value != defaults[key]}
    return hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=5).hexdigest()


def differences(stored: dict[str, Any], options: DistillOptions) -> str:
    """In words, what is otherwise in the run whose identity is stored than in these options; "" if nothing is."""
    asked, there = identity(options), _declared_defaults(type(options)) | stored
    told = [difference(f"--{key}", there[key], asked[key]) for key in sorted(asked) if there[key] != asked[key]]
    gone = sorted(stored.keys() - asked.keys() - NOT_PART_OF_A_RUN)
    return ", ".join([*told, *(difference(f"--{key}", stored[key], "no such option") for key in gone)])


def _declared_defaults(kind: type[DistillOptions]) -> dict[str, Any]:
    """Of every option that bears on the result the default in the class that declares it, as JSON has it.

    A subclass that says otherwise may have begun to when the option came, and runs from before then never heard of it.
    """
    declared = {}
    for each in filter(dataclasses.is_dataclass, kind.__mro__):  # the classes that declare come last
        for field in dataclasses.fields(each):
            made = field.default_factory
            declared[field.name] = field.default if made is dataclasses.MISSING else made()
    return json.loads(json.dumps({key: value for key, value in declared.items() if key not in NOT_PART_OF_A_RUN}))
