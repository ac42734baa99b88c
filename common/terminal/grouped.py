"""The help of a command with many options: the ten that matter first, then the others by what they are about."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_type_hints

import tyro

MANY = 20  # options: fewer are read at a glance, without groups
_FIRST = 10
_WIDEST = 120  # characters
_BREAK_OF_A_LINE = re.compile(r"(?<![.;:])\n")  # of the source; behind one of these begins another thing
_DEFAULT = re.compile(r"default: |\(default")
_DEFAULT_LAST = re.compile(r"\s+(\(default: [^()]*\))$")
(_POSITIONAL,) = get_args(tyro.conf.Positional[str])[1:]
# Of these, in this order, the first ten that a command has.
MATTER_FIRST = (
    "synset", "synset_path", "baseline", "table", "cells", "scale", "launcher", "target_dataset", "level", "objective",
    "dataset", "ipc", "storage", "num_experts", "train_epochs", "Iteration", "model", "models", "references",
    "num_eval", "seeds", "device", "output", "dry_run", "name", "buffer_path", "data_path", "transforms", "selections",
    "image_size", "zca",
)  # fmt: skip
GROUPS = {
    "data": (
        "dataset", "subset", "data_path", "no_download", "image_size", "resize", "antialias", "decoding",
        "skip_corrupt", "recipe", "zca", "cifar100_stats", "workers", "validation_share", "validation_seed",
        "target_dataset", "target_path", "target_stats", "level", "corruptions", "versions", "images", "pixels",
    ),
    "budget": (
        "ipc", "msz_per_channel", "bits_per_class", "n", "storage", "transform", "transforms", "selection",
        "selections", "selection_images", "colour", "block", "positions", "rate_weight", "stored_as", "count_headers",
    ),
    "matching": (
        "objective", "method", "model", "Iteration", "lr_freq", "mom_freq", "optimizer", "batch_real", "batch_syn",
        "dsa", "dsa_strategy", "dis_metric", "outer_loop", "inner_loop", "syn_steps", "expert_epochs",
        "max_start_epoch", "lr_teacher", "lr_lr", "experts_per_iteration", "max_experts", "memory_budget", "unroll",
    ),
    "evaluation": (
        "synset", "synset_path", "baseline", "coreset_epochs", "num_eval", "epoch_eval_train", "batch_train", "lr_net",
        "eval_mode", "eval_protocol", "models", "networks_at_once", "eval_it", "wait_eval", "soft_labels",
        "augmentation", "references", "full_epochs", "relative_to",
    ),
    "training": (
        "num_experts", "train_epochs", "keep_epochs", "mom", "l2", "decay", "test_every",
    ),
    "run": (
        "table", "cells", "scale", "seed", "seeds", "device", "precision", "compile", "cuda_graphs", "chunk",
        "save_path", "name", "output", "buffer_path", "resume", "checkpoint_every", "export", "track",
        "track_project", "track_group", "dry_run", "ignore_memory", "find_lr", "find_lr_updates", "wait", "launcher",
        "nproc", "parallel", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min", "partition", "account",
    ),
}  # fmt: skip
"""Options by what they are about. test_options looks that each one has a place."""
# A buffer.py trains experts and matches nothing: what these say is about the experts.
_OF_EXPERTS = ("model", "batch_train", "lr_teacher", "dsa", "dsa_strategy")
_TOLD = {
    "main": "What matters first; all other options are below, with defaults that suit most runs.",
    "data": "The images, and how they are read.",
    "budget": "What is stored of a set, and in how much room.",
    "matching": "How the set is optimised.",
    "evaluation": "How networks are trained on the images, and tested.",
    "training": "How experts are trained.",
    "run": "Where the command computes, reads and writes.",
}


def grouped(kind: type, default: Any = None) -> type:
    """A dataclass with the options of `kind` for its help, in groups if they are many.

    It is `kind` itself if no option has a text below it, or there is no source. Flags, types, help texts and defaults
    are the same. default: an instance that has the defaults.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    try:
        hints, texts = get_type_hints(kind, include_extras=True), _docstrings(kind)
    except OSError:  # there is no source to read the texts from, and tyro shows what it can
        return kind
    if len(fields) <= MANY:
        if not texts:
            return kind
        flat = [
            (name, _told(name, hints[name], texts.get(name), field.default), _given(field, default))
            for name, field in fields.items()
        ]
        return _made(kind.__name__, flat, kind.__doc__)
    members: dict[str, list[tuple[str, Any, Any]]] = {name: [] for name in _TOLD}
    main = [name for name in MATTER_FIRST if name in fields][:_FIRST]
    for name in (*main, *(name for name in fields if name not in main)):
        field, hint = fields[name], _told(name, hints[name], texts.get(name), fields[name].default)
        given = _given(field, default)
        group = "main" if name in main else group_of(name, experts="num_experts" in fields)
        members[group].append((name, hint, given))
    parts = []
    for name, of_group in members.items():
        if of_group:
            # tyro heads a box with the name of the option that holds the group.
            made = _made(name, of_group, _TOLD[name])
            needed = any(field.default is field.default_factory for field in dataclasses.fields(made))  # both missing
            held = dataclasses.field() if needed else dataclasses.field(default_factory=made)
            parts.append((name, Annotated[made, tyro.conf.OmitArgPrefixes], held))
    return _made(kind.__name__, parts, kind.__doc__)


@contextmanager
def in_one_column() -> Iterator[None]:
    """Inside, tyro writes help in one column: from 130 characters on it would put boxes beside each other."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(_WIDEST, shutil.get_terminal_size().columns))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def group_of(name: str, experts: bool = False) -> str:
    """The group of an option. experts: whether the command trains experts. Options without a place are the run's."""
    if experts and name in _OF_EXPERTS:
        return "training"
    return next((group for group, names in GROUPS.items() if name in names), "run")


def _told(name: str, hint: Any, text: str | None, default: Any) -> Any:
    """The annotation `hint` of an option, with its help text in whole paragraphs and its default said once.

    An argument without a flag is shown by its name. text: from below the option in the source; None if the annotation
    has the text. default: that of the class.
    """
    marks = getattr(hint, "__metadata__", ())
    for each in marks:
        text = getattr(each, "help", None) or text
    if text is None:
        return hint
    whole = _BREAK_OF_A_LINE.sub(" ", text)
    text, last, _ = _DEFAULT_LAST.split(whole) if _DEFAULT_LAST.search(whole) else (whole, "", "")

    def said(label: str) -> str:
        known = _DEFAULT.search(whole) and label in ("", "None", str(default))
        return last if known else f"{last} (default: {label or 'none'})".strip()

    if _POSITIONAL in marks:
        hint = Annotated[hint, tyro.conf.arg(metavar=name.upper())]
    return Annotated[hint, tyro.conf.arg(help=text, help_behavior_hint=said)]


def _made(name: str, fields: list[tuple[str, Any, Any]], told: str | None) -> Any:
    return dataclasses.make_dataclass(name, fields, namespace={"__doc__": told}, kw_only=True)


def _given(field: dataclasses.Field[Any], default: Any) -> Any:
    """A field with the default that `default` has, or without it with that of `field`."""
    if default is not None:
        return dataclasses.field(default=getattr(default, field.name))
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return dataclasses.field(default=field.default)


def _docstrings(kind: type) -> dict[str, str]:
    """The text below each option in the source of a dataclass and of those it is made from."""
    texts: dict[str, str] = {}
    for each in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        (made,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(made, ast.ClassDef)
        for line, below in zip(made.body, [*made.body[1:], None], strict=True):
            if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
                continue
            texts.pop(line.target.id, None)  # an option that is declared anew has its own text
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[line.target.id] = inspect.cleandoc(str(below.value.value))
    return texts
