"""The commands that are disturbed, in the smallest form, and what each leaves when nothing happens to it."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.command_line import call
from tests.faults.events import counted
from tests.faults.kind import enter
from tests.forks import forked
from tests.image_sets import make_folder
from tests.imagenet_sets import make_imagenet
from tests.outcomes import everything
from tests.voxel_sets import make_voxels, write_voxels

OUT = Path("out")
INPUTS = Path("in")  # a link to what all cases read
_MODEL = "ConvNetD1W16"
_CPU = f"--model {_MODEL} --device cpu"
_RUN = f"{_CPU} --num_eval 1 --epoch_eval_train 1 --eval_it 2 --checkpoint_every 2 --name run --save_path out"
_DIGITS = f"--dataset digits --msz_per_channel 16 --lr_freq 1 {_RUN}"
_FOLDER = "--dataset folder:in/images --msz_per_channel 36 --lr_freq 1"
_STEPS = "--syn_steps 2 --max_start_epoch 2 --expert_epochs 1 --lr_teacher 0.05 --buffer_path in/buffers"
_WOOF = f"--dataset imagenet-imagewoof --res 16 --msz_per_channel 128 --data_path in/imagenet {_RUN}"
_EXPERTS = f"--model {_MODEL} --device cpu --num_experts 2 --train_epochs 2"
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_EVALUATE = "--num_eval 2 --epoch_eval_train 1 --device cpu"


@dataclass(frozen=True)
class Command:
    """A command whose results are in the folder out. script: relative to the repository's root."""

    script: str
    flags: str

    @property
    def locks(self) -> bool:
        """Whether it locks the folders that it writes."""
        return "evaluate" not in self.script and "pretrained" not in self.script

    @property
    def words(self) -> list[str]:
        return self.flags.split()

    def run(self, *more: str) -> SimpleNamespace:
        """Run it in the current folder and this process: its exit code and what it printed."""
        return call(self.script, *self.words, *more)


COMMANDS = {
    "DM": Command("DM/distill.py", f"{_DIGITS} --Iteration 5 --batch_real 8"),
    "DC": Command("DC/distill.py", f"{_DIGITS} --Iteration 4 --batch_real 8 --outer_loop 2 --inner_loop 1"),
    "TM": Command("TM/distill.py", f"{_DIGITS} --Iteration 5 --lr_lr 1e-5 {_STEPS}"),
    "DM of own images": Command("DM/distill.py", f"{_FOLDER} {_RUN} --Iteration 4 --batch_real 2 --storage int8"),
    "DM, seeds": Command("DM/distill.py", f"{_DIGITS} --Iteration 2 --batch_real 8 --seeds 0-1"),
    "experts": Command("TM/buffer.py", f"--dataset digits {_EXPERTS} --buffer_path out"),
    "voxels": Command(
        "3D-MNIST/distill.py",
        f"--data_path in/voxels --msz_per_channel 4096 --lr_freq 1 --Iteration 1 --batch_real 1 "
        f"{_RUN.replace(_MODEL, 'Conv3DNet')} --epoch_eval_train 0 --eval_it 0",
    ),
    "ImageNet": Command(
        "ImageNet-abcde/distill.py", f"--objective DM {_WOOF} --Iteration 4 --batch_real 2 --eval_mode S"
    ),
    "ImageNet experts": Command(
        "ImageNet-abcde/buffer.py",
        f"--dataset imagenet-imagewoof --res 16 --data_path in/imagenet {_EXPERTS} --buffer_path out",
    ),
    "evaluate": Command("DM/evaluate.py", f"--synset in/set.safetensors {_EVALUATE} --output out/result.json"),
    "corruptions": Command(
        "corruption-exp/evaluate.py",
        f"--baseline random --dataset folder:in/ten --ipc 1 --model {_MODEL} --target_path in/corrupted "
        f"--target_dataset CIFAR10-C --corruptions fog --level 1 {_EVALUATE} --output out",
    ),
    "export": Command(
        "common/pretrained/__main__.py", "export in/set.safetensors --to npz:out/set.npz --no_check --device cpu"
    ),
    "ablate": Command(
        "ablate.py",
        f"--transforms dct dwt --selections low --Iteration 1 --num_eval 1 --epoch_eval_train 0 --batch_real 8 "
        f"--model {_MODEL} --output out",
    ),
    "compare": Command("compare.py", "in/two.toml --output out"),
    "reproduce": Command(
        "reproduce.py", "run --table dm-lowres --cells MNIST/1 --scale smoke --device cpu --output out"
    ),
}

_EXPERIMENT = f"""
title = "digits"
objective = "DM"
dataset = "digits"
seeds = "3-4"
[flags]
model = "{_MODEL}"
Iteration = 2
batch_real = 8
num_eval = 1
eval_it = 0
epoch_eval_train = 1
[search]
seed = 100
validation_share = 0.2
[[rows]]
name = "float32"
lr_freq = [256]
[[rows]]
name = "8 bits"
flags = {{ storage = "int8", optimizer = "adam" }}
lr_freq = [0.1]
against = ["float32"]
"""


def make_inputs(folder: Path) -> None:
    """What the commands read: images, volumes, experts and a set, each made by its own command where there is one."""
    make_folder(folder / "images", size=(6, 6), count=4)
    make_folder(folder / "ten", names=_CIFAR10, size=(32, 32), count=2)
    make_imagenet(folder / "imagenet")
    write_voxels(folder / "voxels" / "full_dataset_vectors.h5", make_voxels())
    corrupted = folder / "corrupted" / "CIFAR10-C"
    corrupted.mkdir(parents=True)
    draws = np.random.default_rng(0)
    np.save(corrupted / "fog.npy", draws.integers(0, 256, (5 * 20, 32, 32, 3)).astype(np.uint8))
    np.save(corrupted / "labels.npy", np.arange(5 * 20) % 10)
    (folder / "two.toml").write_text(_EXPERIMENT)
    for command, flags, name in (
        (COMMANDS["experts"], ("--buffer_path", str(folder / "buffers")), "experts"),
        (COMMANDS["DM"], ("--save_path", str(folder / "runs")), "a set"),
    ):
        result = command.run(*flags)
        assert result.code == 0, f"{name}: {result.err}"
    (folder / "runs/DM/digits/ipc1/run/synset.safetensors").rename(folder / "set.safetensors")


class Undisturbed:
    """What commands leave when nothing happens to them, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left: dict[str, dict[str, Any]] = {}
        self._events: dict[str, int] = {}
        self._locks: dict[str, list[str]] = {}

    @cached_property
    def inputs(self) -> Path:
        inputs = self._folder / "inputs"
        inputs.mkdir()
        os.chdir(self._folder)
        make_inputs(inputs)
        return inputs

    def enter(self, folder: Path) -> Path:
        """Make a new folder the current one, with the inputs in it."""
        inputs = self.inputs  # which other folders are entered for
        enter(folder)
        INPUTS.symlink_to(inputs)
        return folder

    def link(self) -> Undisturbed:
        """Put the inputs into the current folder."""
        INPUTS.symlink_to(self.inputs)
        return self

    def prepare(self, names: Collection[str], events: bool = False) -> Undisturbed:
        """Run these commands in this process, so that its forks find all modules imported. events: count theirs."""
        for name in sorted(names):
            if name not in self._left:
                self.enter(self._folder / "undisturbed" / name.replace(" ", "-"))
                result = COMMANDS[name].run()
                assert result.code == 0, f"{name}: {result.err}"
                self._left[name] = everything(OUT)
                assert self._left[name], f"{name} leaves nothing"
                self._locks[name] = sorted(path.relative_to(OUT).as_posix() for path in OUT.rglob("*.lock"))
            if events and name not in self._events:
                self.enter(self._folder / "counted" / name.replace(" ", "-"))
                self._events[name] = forked(lambda name=name: counted(COMMANDS[name].run))
        return self

    def left(self, name: str) -> dict[str, Any]:
        """The results of a command."""
        return self._left[name]

    def events(self, name: str) -> int:
        """How many events a command has; see `events`."""
        return self._events[name]

    def locks(self, name: str) -> list[str]:
        """The locks that a command takes, below out."""
        return self._locks[name]
