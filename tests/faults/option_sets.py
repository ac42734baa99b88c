"""Option sets at random, over all scripts: most are only asked what they would do, some are run, twice."""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from common.config.evaluate_options import EvaluateOptions
from common.config.options import BufferOptions
from common.robustness.options import RobustnessOptions
from common.system.scripts import load_script
from tests.command_line import call
from tests.faults.commands import OUT, Undisturbed
from tests.faults.kind import REFUSED, RIGHT, Fault, Kind, assert_same, judged
from tests.forks import forked
from tests.outcomes import everything

_COUNT = 5_000
_RUN_EVERY = 20  # one set of so many is run; a run takes a hundred times as long as an answer

_NUMBERS = (
    "0", "1", "2", "3", "-1", "7", "16", "64", "0.5", "1e-3", "1e9", "1e308", "nan", "inf", "-inf", "", "x", "None",
    "99999999999999999999", "9223372036854775807", "1000000000000", "2147483648", "1_000", "٣",
)  # fmt: skip
_SMALL = ("0", "1", "2", "-1", "0.5", "nan", "", "x")  # of what makes a run long
_BOOLEANS = ("True", "False", "maybe", "")
_TEXTS = ("", "x", "run", "../x", "a/b", ".", "~nosuch/x", "\x1b[2J", "é\n", "\udce9", "-", "x" * 300, "None")
_NAMES = {
    "dataset": (
        "digits", "folder:in/images", "folder:in/none", "folder:", "hf:in/none", "MNIST", "3D-MNIST", "nosuch", "",
        "imagenet-imagewoof", "ImageNet", "imagenet-", "CIFAR10",
    ),
    "model": (
        "ConvNetD1W16", "ConvNet", "ConvNetBN", "ConvNetD9", "ConvNetD1W16IN", "MLP", "LeNet", "AlexNet", "ViT",
        "VGG11", "ResNet18", "Conv3DNet", "by_size", "convnet", "", "ConvNetD0", "ConvNetW0",
    ),
    "recipe": ("digits", "CIFAR10", "MNIST", "nosuch", ""),
    "subset": ("a", "imagewoof", "nosuch", ""),
    "data_path": ("in/imagenet", "in/none", "in/set.safetensors", ""),
    "buffer_path": ("in/buffers", "in/none", ""),
    "synset": ("in/set.safetensors", "in/two.toml", "in", "in/none", "hf://x", ""),
    "device": ("cpu", "auto", "cuda", "cuda:7", "mps", "meta", "x", ""),
    "dsa_strategy": ("color", "flip_rotate", "none", "", "nosuch", "color__flip"),
    "models": ("ConvNetD1W16,MLP", "MLP", "nosuch", ",", ""),
    "seeds": ("0", "0-1", "1,2", "2-0", "x", ""),
    "references": ("random", "full,random", "nosuch", ""),
}  # fmt: skip
# What decides how long a run takes, or what it asks of others.
_COSTLY = frozenset({
    "Iteration", "num_eval", "epoch_eval_train", "train_epochs", "num_experts", "coreset_epochs", "full_epochs",
    "find_lr_updates", "outer_loop", "inner_loop", "syn_steps", "ipc", "n", "bits_per_class", "experts_per_iteration",
    "image_size", "batch_real", "batch_syn", "keep_epochs", "seeds",
})  # fmt: skip
_NOT_RUN = frozenset({"find_lr"})  # which takes minutes, whatever the other options are
# Not drawn: they give the case another meaning (help), or need what is not there (a compiler, trackers).
_NOT_DRAWN = frozenset({"dry_run", "compile", "track", "track_project", "track_group", "wait", "save_path", "output"})

_QUICK = "--model ConvNetD1W16 --device cpu --no_download"
_BASE = {
    "distil": f"--dataset digits {_QUICK} --num_eval 1 --epoch_eval_train 0 --msz_per_channel 16 --lr_freq 1 "
    "--Iteration 1 --name run --save_path out",
    "experts": f"--dataset digits {_QUICK} --num_experts 1 --train_epochs 1 --buffer_path out",
    "evaluate": "--synset in/set.safetensors --device cpu --no_download --num_eval 1 --epoch_eval_train 0 "
    "--output out/result.json",
}


@dataclass(frozen=True)
class Script:
    """A script, its options, and flags with which it is quick."""

    path: str
    options: type
    flags: str
    previews: bool = True

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """The type of every option that is drawn."""
        types_of = typing.get_type_hints(self.options)
        names = [field.name for field in dataclasses.fields(self.options)]
        return {name: types_of[name] for name in names if name not in _NOT_DRAWN}


def scripts() -> list[Script]:
    """All of them that take options of a class."""
    steps = "--syn_steps 1 --max_start_epoch 2 --expert_epochs 1 --buffer_path in/buffers --lr_lr 1e-6"
    objectives = {"DM": "", "DC": "--outer_loop 1 --inner_loop 1", "TM": steps}
    distil = [
        Script(f"{name}/distill.py", load_script(f"{name}/distill.py").Options, f"{_BASE['distil']} {flags}")
        for name, flags in objectives.items()
    ]
    return [
        *distil,
        Script("TM/buffer.py", BufferOptions, _BASE["experts"]),
        Script("ImageNet-abcde/buffer.py", load_script("ImageNet-abcde/buffer.py").Options, _BASE["experts"]),
        Script(
            "ImageNet-abcde/distill.py", load_script("ImageNet-abcde/distill.py").DM,
            f"--objective DM {_BASE['distil']}",
        ),
        Script(
            "3D-MNIST/distill.py", load_script("3D-MNIST/distill.py").Options,
            f"{_BASE['distil']} --dataset 3D-MNIST --data_path in/voxels --model Conv3DNet --msz_per_channel 2048 "
            "--batch_real 1",
        ),
        Script("DM/evaluate.py", EvaluateOptions, _BASE["evaluate"]),
        Script("ImageNet-abcde/evaluate.py", EvaluateOptions, _BASE["evaluate"]),
        Script(
            "corruption-exp/evaluate.py", RobustnessOptions, f"{_BASE['evaluate']} --target_path in/corrupted",
            previews=False,
        ),
    ]  # fmt: skip


def _members(kind: Any) -> list[Any]:
    """The types of a union, without None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return [member for each in typing.get_args(kind) if each is not type(None) for member in _members(each)]
    return [kind]


def _value(name: str, kind: Any, draws: Random, costs: bool) -> str:
    """A value for an option; costs: as any, else one with which a run stays short."""
    members = _members(kind)
    if name in _NAMES:
        return draws.choice(_NAMES[name])
    choices = [str(each) for member in members for each in typing.get_args(member) if not isinstance(each, type)]
    if choices:
        return draws.choice([*choices, *choices, "nosuch", ""])
    if bool in members:
        return draws.choice(_BOOLEANS)
    if int in members or float in members:
        numbers = _NUMBERS if costs or name not in _COSTLY else _SMALL
        # Words that are no number of the type end in the parser, the same for each option.
        likely = [each for each in numbers if each.lstrip("-").isascii() and each.lstrip("-").isdigit()]
        return draws.choice(likely if int in members and draws.random() < 0.8 else numbers)
    return draws.choice(_TEXTS)


def flags_of(script: Script, draws: Random, costs: bool) -> list[str]:
    """One to six options of a script with values at random; rarely a word that is none, or one twice."""
    known = sorted(script.drawn.keys() - (set() if costs else _NOT_RUN))
    names = draws.sample(known, draws.randint(1, 6))
    words = [f"--{name}={_value(name, script.drawn[name], draws, costs)}" for name in names]
    if draws.random() < 0.05:
        words.append(draws.choice(("--nosuch", "x", "--ipc", "--", "-h1", words[0])))
    return words


def answer(known: Sequence[Script], number: int, draws: Random) -> str:
    """An option set is right or refused; one that is run leaves the same when it is run once more elsewhere."""
    script = known[number % len(known)]
    # The next digit, so that every script is run.
    is_run = not script.previews or number // len(known) % _RUN_EVERY == 0
    drawn = flags_of(script, draws, costs=not is_run)
    words = [*script.flags.split(), *drawn]
    if not is_run:
        return _told(call(script.path, *words, "--dry_run"), drawn)
    results = []
    for place in ("first", "second"):
        inputs = Path("in").resolve()
        Path(place).mkdir()
        os.chdir(place)
        Path("in").symlink_to(inputs)
        result = forked(lambda: call(script.path, *words))
        results.append((_told(result, drawn), everything(OUT) if OUT.exists() else {}))
        os.chdir("..")
    if results[0][0] != results[1][0]:
        raise Fault(f"once {results[0][0]}, once {results[1][0]}: {script.path} {drawn}")
    if results[0][0] == RIGHT:
        assert_same(results[0][1], Path("second") / OUT, f"{script.path} {drawn} run twice")
    return results[0][0]


def _told(result: SimpleNamespace, words: Sequence[str]) -> str:
    """As `judged`; refusals of tyro, which reads the words, are boxes, not sentences."""
    if result.code == 2 and "error: " not in result.err and "For full helptext, " in result.err:
        return REFUSED
    try:
        return judged(result)
    except Fault as error:
        raise Fault(f"{words}: {error}") from error


def kinds(undisturbed: Undisturbed) -> dict[str, Kind]:
    """By name."""

    def prepare(_: Path, numbers: Sequence[int]) -> list[Script]:
        assert undisturbed.inputs.is_dir()  # made here, not in a fork
        return scripts()

    def case(known: list[Script], number: int, draws: Random) -> str:
        undisturbed.link()
        return answer(known, number, draws)

    return {"option": Kind("option sets", _COUNT, prepare, case)}
