"""What the tests of several processes run, in one process and under torchrun: `python tests/parallel_cases.py ...`.

One job makes many runs, for its start takes longer than any of them.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from common.config.command_line import parse, parse_buffer, parse_plain
from common.config.evaluate_options import EvaluateOptions
from common.config.options import BufferOptions
from common.matching import distribution, gradient, trajectory
from common.system import parallel
from common.system.command import run_command
from common.training.evaluate_command import show
from DC import distill as dc
from DM import distill as dm
from tests.in_float64 import in_float64
from tests.left_out import leave_out
from TM import buffer
from TM import distill as tm

UPDATES = 5
SMALL = [
    "--dataset", "digits", "--model", "ConvNetD1W16", "--device", "cpu", "--Iteration", UPDATES, "--eval_it", 0,
    "--num_eval", 1, "--epoch_eval_train", 0,
]  # fmt: skip
BY_CLASS = [*SMALL, "--batch_real", 8]
# Where an input of ReLU is zero but for rounding, a student's gradient jumps.
SMOOTH = ["--model", "ConvNetD1W16ASwish"]
FOLLOWING = [*SMALL, *SMOOTH, "--syn_steps", 3, "--max_start_epoch", 2, "--expert_epochs", 2, "--lr_teacher", 0.05]
TWO_CLASSES = [*BY_CLASS, "--recipe", "digits", "--image_size", 8]  # and --dataset folder:...
TOGETHER = ["--num_eval", 5, "--networks_at_once", 2]
BN = ["--model", "ConvNetD1W16BN"]

# name: type, objective, flags
CASES = {
    "dm": (torch.float64, "DM", [*BY_CLASS, "--num_eval", 5, "--epoch_eval_train", 3]),
    "dm-float32": (torch.float32, "DM", BY_CLASS),
    "dm-some": (torch.float64, "DM", [*BY_CLASS, "--batch_syn", 2, "--chunk", 5, *TOGETHER]),
    "dm-bn": (torch.float64, "DM", [*BY_CLASS, *BN]),
    "dc": (torch.float64, "DC", [*BY_CLASS, "--outer_loop", 3, "--inner_loop", 2, "--method", "DSA"]),
    "dc-bn": (torch.float64, "DC", [*BY_CLASS, *BN, "--outer_loop", 2, "--inner_loop", 1]),
    "tm": (torch.float64, "TM", FOLLOWING),
    "tm-batches": (torch.float64, "TM", [*FOLLOWING, "--batch_syn", 7, "--experts_per_iteration", 3]),
    "tm-dealt": (torch.float64, "TM", [*FOLLOWING, "--experts_per_iteration", 2, "--unroll", "plain"]),
    "tm-bn": (torch.float64, "TM", [*FOLLOWING, *BN]),
    "dm-two": (torch.float64, "DM", TWO_CLASSES),
    "dc-two": (torch.float64, "DC", [*TWO_CLASSES, "--outer_loop", 2, "--inner_loop", 1]),
}  # fmt: skip
EXPERTS = ["--dataset", "digits", "--model", "ConvNetD1W16", "--device", "cpu", "--num_experts", 3, "--train_epochs", 3]


def distil(name: str, save_path: Path, *flags: object) -> None:
    """Make the run of a case, and write beside its objective how many images each process matched."""
    kind, objective, own = CASES[name]
    words = [str(word) for word in [*own, *flags, "--save_path", save_path, "--name", name]]
    matched: list[int] = []
    precisely = in_float64() if kind == torch.float64 else contextlib.nullcontext()
    with pytest.MonkeyPatch.context() as patch, precisely:
        count_images(patch, matched)
        leave_out(patch)
        if objective == "DM":
            dm.distill(*parse(dm.Options, "DM", words))
        elif objective == "DC":
            dc.distill(*parse(dc.Options, "DC", words))
        else:
            tm.distill(*parse(tm.Options, "TM", words))
    counts = parallel.gather(sum(matched))
    if parallel.is_main():
        (save_path / f"{name}.json").write_text(json.dumps(counts))


def count_images(patch: pytest.MonkeyPatch, matched: list[int]) -> None:
    """Note the synthetic images of each call of DM's and DC's match, and of each gradient of TM's student."""
    for module in (distribution, gradient):
        original = module.match

        def counted(network, real, synthetic, *more, original=original, **named):
            if not synthetic.is_meta:  # of an estimate
                matched.append(len(synthetic))
            return original(network, real, synthetic, *more, **named)

        patch.setattr(module, "match", counted)
    build = trajectory.build_student

    def build_student(*positional):
        student = build(*positional)

        def counted_gradient(theta, images, labels):
            if not images.is_meta:
                matched.append(len(images))
            return student.gradient(theta, images, labels)

        return dataclasses.replace(student, gradient=counted_gradient)

    patch.setattr(trajectory, "build_student", build_student)


def train_experts(path: Path, *flags: object) -> None:
    buffer.train_experts(
        parse_buffer(BufferOptions, "TM", [str(word) for word in [*EXPERTS, *flags, "--buffer_path", path]])
    )


def evaluate(file: Path, output: Path) -> None:
    words = ["--synset", file, "--device", "cpu", "--num_eval", 5, "--epoch_eval_train", 3, "--output", output]
    show(parse_plain(EvaluateOptions, [str(word) for word in words]), "DM", {})


def kill_one(save_path: Path, *flags: object) -> None:
    """The run in which process 1 is killed within update 4."""
    original, calls = distribution.match, []

    def counted(*positional, **named):
        calls.append(None)
        if parallel.rank() == 1 and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*positional, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "match", counted)
        distil("dm-float32", save_path, *flags)


def run_all(path: Path, buffers: Path, images: Path, names: list[str]) -> None:
    """Cases by name, and more; results lie below `path`.

    experts, experts-bn: train them. evaluation: of the set of case dm-float32, which comes before. killed: the run in
    which a process is killed. conflict: the folder of case dm-two with another configuration. cuda-...: a case on GPUs.
    buffers: where TM finds experts. images: a folder of images of two classes.
    """
    two_classes = ["--dataset", f"folder:{images}"]
    for name in names:
        if name == "experts":
            train_experts(path / "buffers", *SMOOTH)
        elif name == "experts-bn":
            train_experts(path / "buffers", *BN)
        elif name == "evaluation":
            evaluate(folder_of(path, "dm-float32") / "synset.safetensors", path / "evaluation.json")
        elif name == "killed":
            kill_one(path / "killed", "--checkpoint_every", 2)
        elif name == "conflict":
            distil("dm-two", path, *two_classes, "--seed", 1)
        else:
            case = name.removeprefix("cuda-")
            more = ["--device", "cuda"] if case != name else []
            more += ["--buffer_path", buffers] if CASES[case][1] == "TM" else []
            distil(case, path, *more, *(two_classes if case.endswith("two") else []))


def folder_of(path: Path, name: str) -> Path:
    (folder,) = (path / CASES[name][1]).glob(f"*/ipc1/{name}")
    return folder


if __name__ == "__main__":
    first, second, third, *names = sys.argv[1:]
    run_command(lambda: run_all(Path(first), Path(second), Path(third), names), several=True)
