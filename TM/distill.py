"""Trajectory matching (TM, MTT) with FreD: `python TM/distill.py --help`.

    loss = || theta_T - theta* ||^2 / || theta_0 - theta* ||^2                              s = IDCT(coefficients)
    theta_{t+1} = theta_t - step_size * d CE(network(theta_t, A(s_t)), y_t) / d theta_t     t = 0 .. T-1

An expert was trained on real images; theta_0 and theta* are its weights after some epochs and a few epochs later. A
student starts at theta_0 and takes T steps on batches s_t of the synthetic images, which are to lead it to theta*
(Cazenavette et al., CVPR 2022). The coefficients are learned, and the student's step size with them.

python TM/buffer.py; python TM/distill.py                            the built-in digits, ipc 1: 93.9 +- 1.0 % (3
                                         networks; 85.2 before the first update), 3 minutes on one CPU core for six
                                         experts and 4 for the set (results/demos_digits.csv)
sh TM/scripts/run_buffer.sh; sh TM/scripts/run_TM_FreD.sh            CIFAR-10, ipc 1, as published: 100 experts and
                                         15,000 updates, for a GPU, not yet measured
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.checks import check_least, check_positive
from common.config.command_line import parse
from common.config.options import DistillOptions, Sources
from common.experts.buffer import ExpertOrder
from common.experts.folder import describe
from common.experts.open import find_buffer, open_buffer
from common.matching import augment, trajectory
from common.matching.step_size import StepSize
from common.matching.trajectory import Step, Unroll
from common.networks import has_batchnorm
from common.runs.loop import Distillation
from common.runs.setup import check_chunk, check_no_dropout
from common.system import parallel
from common.system.command import run_command
from common.system.devices import to_device
from common.system.errors import InputError


@dataclass
class Options(DistillOptions):
    """Distil a dataset by trajectory matching (TM, MTT) of FreD coefficients."""

    Iteration: int = 15000
    """updates of the synthetic set"""
    eval_it: int = 500
    """updates between two evaluations (0: only before the first and after the last update)"""
    buffer_path: str = "buffers"
    """where TM/buffer.py left the experts: below it lies <dataset>[_zca]/<model>"""
    syn_steps: int = 0
    """steps that the student takes on synthetic images (0: from the recipe)"""
    expert_epochs: int = 2
    """epochs of the expert that these steps have to reach"""
    max_start_epoch: int = 0
    """the student starts where the expert was after 0 to max_start_epoch - 1 epochs (0: from the recipe)"""
    batch_syn: int = 0
    """synthetic images per step of the student (0: all)"""
    lr_teacher: float = 0.01
    """step size of the student, to begin with"""
    lr_lr: float = 0.0
    """step size with which the student's is learned (0: from the recipe)"""
    experts_per_iteration: int = 1
    """experts that an update averages over; if the number of processes divides it, each takes its share, otherwise all
    work on every expert together"""
    max_experts: int | None = None
    """use so many experts at most (default: all that there are)"""
    unroll: Unroll = "adjoint"
    """adjoint: exact gradient at constant memory; plain: the textbook's, whose memory grows with syn_steps"""


def distill(options: Options, sources: Sources, objective: str = "TM") -> None:
    """Distil as the options say. objective: what the run is filed under. Raises as `Distillation`."""
    check_trajectory(options, sources)
    with Distillation(options, sources, objective) as run:
        check_chunk(options, run.network)
        check_no_dropout(options, run.network)
        buffer = open_buffer(
            find_buffer(options.buffer_path, run.train.name, options.model, options.zca),
            describe(run.train, options.model, run.network),
            options.max_start_epoch - 1 + options.expert_epochs,
            options,
            objective,
        )
        order = ExpertOrder(buffer, options.seed, options.max_experts)
        step_size = StepSize(options.lr_teacher, options.lr_lr, run.device)
        run.keep(step_size, order)
        student = trajectory.build_student(run.network, run.compiler)
        labels, count, experts = run.synset.labels, len(run.synset.labels), options.experts_per_iteration
        batch = min(options.batch_syn or count, count)

        # Each process follows its share of the experts; where they do not divide, all follow each of them together.
        dealt = experts % parallel.world() == 0
        here = range(*(parallel.share(experts) if dealt else (0, experts)))
        chunk = None  # batch statistics run over the whole batch
        if not has_batchnorm(run.network):
            chunk = options.chunk or trajectory.default_chunk(run.device, run.train.im_size)
            if not dealt:
                chunk = min(chunk, math.ceil(batch / parallel.world()))  # else there might be nothing to share

        for iteration in run:
            synthetic = run.synset.decode()  # [C * n, ch, H, W], differentiable
            means: list[Tensor] = []  # over the experts, of what `match` gives
            for number in here:
                draws = run.draws(iteration, number) if number else run.draws(iteration)
                drawing = draws.generator("trajectory")
                start = int(torch.randint(options.max_start_epoch, (), generator=drawing))
                expert = order.expert(iteration * experts + number)
                theta, target = buffer.pair(expert, start, options.expert_epochs)  # [P] each, on the CPU
                with run.matching(run.network, draws):  # precision
                    # The loss [], and its gradients with respect to the images and to the step size [].
                    matched = trajectory.match(
                        student,
                        to_device(theta, run.device),
                        to_device(target, run.device),
                        synthetic,
                        labels,
                        step_size.value,
                        student_steps(options, count, batch, run.train.im_size, run.device, drawing),
                        chunk=chunk,
                        unroll=options.unroll,
                        team=None if dealt else parallel,
                    )
                parts = [part / experts for part in matched]
                means = [mean.add_(part) for mean, part in zip(means, parts, strict=True)] if means else parts
            loss, gradient, to_step_size = means
            run.update(synthetic, gradient, loss, to_step_size, whole=not dealt)  # back through the inverse DCT, a step
            step_size.update(to_step_size)


def student_steps(
    options: Options, count: int, batch: int, im_size: tuple[int, ...], device: torch.device, draws: torch.Generator
) -> list[Step]:
    """The student's batches, each of the `count` images once before any comes again, with augmentation per image."""
    steps: list[Step] = []
    while len(steps) < options.syn_steps:
        shuffled = torch.randperm(count, generator=draws) if batch < count else torch.arange(count)
        for rows in shuffled.split(batch):
            drawn = augment.sample(options.strategy, len(rows), draws, im_size, one_strategy=True, device=device)
            steps.append(Step(rows.to(device, non_blocking=True) if batch < count else None, drawn))
    return steps[: options.syn_steps]


def check_trajectory(options: Options, sources: Sources) -> None:
    """Raises InputError for the first option of the trajectories that cannot work."""
    if sources["lr_net"] == "flag":
        raise InputError(
            "--lr_net has no use in TM: networks are evaluated with the learned step size, which --lr_teacher begins; "
            "leave it out"
        )
    for key in ("syn_steps", "expert_epochs", "max_start_epoch", "lr_lr"):
        if getattr(options, key) == 0 and sources[key] == "default":
            raise InputError(
                f"no recipe for TM on {options.recipe or options.dataset} at ipc {options.ipc} says --{key}: give it, "
                "or --recipe NAME to borrow another dataset's"
            )
    for key in ("syn_steps", "expert_epochs", "max_start_epoch", "experts_per_iteration", "max_experts"):
        check_least(options, key, 1)
    if options.unroll == "plain" and options.experts_per_iteration % parallel.world():
        raise InputError(
            f"--unroll plain cannot share an expert among {parallel.world()} processes: give "
            f"--experts_per_iteration {parallel.world()} or a multiple of it, or --unroll adjoint"
        )
    for key in ("lr_teacher", "lr_lr"):
        check_positive(options, key)


def main(kind: type[Options] = Options, objective: str = "TM") -> None:
    """The command line; ImageNet-abcde gives a kind of options with other defaults."""
    distill(*parse(kind, objective), objective)


if __name__ == "__main__":
    run_command(main, several=True)
