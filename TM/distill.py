"""Trajectory matching (TM, also MTT) with FreD: `python TM/distill.py --help`.

    loss = || theta_T - theta* ||^2 / || theta_0 - theta* ||^2                              s = IDCT(coefficients)
    theta_{t+1} = theta_t - step_size * d CE(network(theta_t, A(s_t)), y_t) / d theta_t     t = 0 .. T-1

An expert is a network that was trained on real images. theta_0 are its weights after a random number of epochs, and
theta* are its weights `expert_epochs` later. The student starts at theta_0 and takes T = `syn_steps` training steps.
Step t uses a batch s_t of the synthetic images with labels y_t, under the augmentation A; CE is the cross-entropy. The
loss is low when the student arrives near theta* (Cazenavette et al., CVPR 2022). Both the coefficients and the
student's step size are learned.

python TM/buffer.py; python TM/distill.py                      distils the built-in digits at ipc 1 in 7 minutes on one
                            CPU core. Accuracy: 93.9 +- 1.0 % over 3 networks, 85.2 % before the first update
                            (results/demos_digits.csv)
sh TM/scripts/run_buffer.sh; sh TM/scripts/run_TM_FreD.sh      distils CIFAR-10 at ipc 1 with the published settings;
                            meant for a GPU, and not measured yet
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.checks import check_least, check_positive
from common.config.command_line import parse
from common.config.options import BufferOptions, DistillOptions, Sources
from common.config.rule import is_left, steps_of_student
from common.experts.buffer import ExpertOrder
from common.experts.curve import suggest_max_start_epoch
from common.experts.folder import describe
from common.experts.open import find_buffer, open_buffer
from common.matching import augment, trajectory
from common.matching.step_size import StepSize
from common.matching.trajectory import Step, Unroll
from common.networks import has_batchnorm
from common.preview.command import distill_command
from common.runs.loop import Distillation
from common.runs.setup import check_chunk, check_no_dropout
from common.system import parallel
from common.system.command import run_command
from common.system.devices import free_memory, to_device
from common.system.errors import InputError


@dataclass
class Options(DistillOptions):
    """Distil a dataset into FreD coefficients by trajectory matching (TM, also MTT)."""

    Iteration: int = 15000
    """updates of the synthetic set"""
    eval_it: int = 500
    """updates between two evaluations (0: only before the first and after the last update)"""
    buffer_path: str = BufferOptions.buffer_path
    """folder of the expert trajectories from TM/buffer.py, which are in <dataset>[_zca]/<model>"""
    syn_steps: int = 0
    """training steps of the student on synthetic images per update (0: from the recipe)"""
    expert_epochs: int = 2
    """the student's syn_steps have to lead it to the weights that the expert has this many epochs after the start"""
    max_start_epoch: int = 0
    """the student starts from the expert's weights after 0 to max_start_epoch - 1 epochs (0: from the recipe)"""
    batch_syn: int = 0
    """synthetic images per step of the student (0: all)"""
    lr_teacher: float = 0.01
    """initial learning rate of the student, which is then learned (the learned step size)"""
    lr_lr: float = 0.0
    """learning rate of the student's learned step size (0: from the recipe)"""
    experts_per_iteration: int = 1
    """expert trajectories averaged per update. If the number of processes divides it, they are shared out among the
    processes; otherwise all processes work on each one together"""
    max_experts: int | None = None
    """use at most this many expert trajectories (default: all)"""
    memory_budget: float | None = None
    """GB for what the adjoint then need not compute twice, which saves up to a quarter of the work and changes no
    result (default: half of the memory that is free at the start, shared among the processes of a CPU).
    Not for compiled networks and --cuda_graphs, which keep no graphs, and --unroll plain, which keeps all"""
    unroll: Unroll = "adjoint"
    """how to differentiate through the student's steps. adjoint: exact gradient at constant memory; plain: ordinary
    backpropagation, whose memory grows with syn_steps"""


def distill(options: Options, sources: Sources, objective: str = "TM") -> Distillation:
    """Return the finished run. Raises the errors of `Distillation`, and InputError for experts that do not fit."""
    check_trajectory(options, sources)
    with Distillation(options, sources, objective) as run:
        check_chunk(options, run.network)
        check_no_dropout(options, run.network)
        folder = find_buffer(options.buffer_path, run.train.name, run.options.model, options.zca)
        if is_left(sources, "max_start_epoch"):
            options = run.settle(options, max_start_epoch=suggest_max_start_epoch(folder, options.expert_epochs) or 0)
        if is_left(sources, "syn_steps"):
            steps = steps_of_student(options.syn_steps, options.expert_epochs, len(run.train.labels))
            options = run.settle(options, syn_steps=steps)
        last_epoch = options.max_start_epoch - 1 + options.expert_epochs if options.max_start_epoch else None
        made_for = describe(run.train, run.options.model, run.network, options.validation)
        buffer = open_buffer(folder, made_for, last_epoch, options, objective)
        order = ExpertOrder(buffer, options.seed, options.max_experts)
        step_size = StepSize(options.lr_teacher, options.lr_lr, run.device)
        run.keep(step_size=step_size, source=order)
        student = trajectory.build_student(
            run.network, run.compiler, run.graphs if options.unroll == "adjoint" else None
        )
        labels, count, experts = run.synset.labels, len(run.synset.labels), options.experts_per_iteration
        batch = min(options.batch_syn or count, count)
        # Each process matches its share of an update's experts. If the number of processes does not divide the number
        # of experts, all processes match each expert together.
        dealt = experts % parallel.world() == 0
        here = range(*(parallel.share(experts) if dealt else (0, experts)))
        chunk = None  # BatchNorm needs the whole batch in one pass
        if not has_batchnorm(run.network):
            chunk = options.chunk or trajectory.default_chunk(run.device, run.train.im_size)
            if not dealt:
                chunk = min(chunk, math.ceil(batch / parallel.world()))  # so that there is a chunk for every process

        memory = memory_of(options, run.device)
        for iteration in run:
            synthetic = run.synset.decode()  # [C * n, ch, H, W], differentiable
            means: list[Tensor] = []  # of the three results of `match`, over the experts
            for number in here:
                draws = run.draws(iteration, number) if number else run.draws(iteration)
                drawing = draws.generator("trajectory")
                start = int(torch.randint(options.max_start_epoch, (), generator=drawing))
                expert = order.expert(iteration * experts + number)
                theta, target = buffer.pair(expert, start, options.expert_epochs)  # P weights each, on the CPU
                with run.matching(run.network, draws):  # sets the precision
                    # The loss [], and its gradients with respect to the images and the learned step size [].
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
                        memory=memory,
                    )
                parts = [part / experts for part in matched]
                means = [mean.add_(part) for mean, part in zip(means, parts, strict=True)] if means else parts
            loss, gradient, to_step_size = means
            run.update(synthetic, gradient, loss, to_step_size, whole=not dealt)  # back through the inverse DCT
            step_size.update(to_step_size)
    return run


def memory_of(options: Options, device: torch.device) -> int:
    """Bytes for graphs of the student's steps: --memory_budget, or half of what is free on a process's GPU or CPU."""
    if options.memory_budget is not None:
        return int(options.memory_budget * 1e9)
    sharing = parallel.launch().local_world if device.type == "cpu" else 1
    return (free_memory(device) or 0) // 2 // sharing


def student_steps(
    options: Options, count: int, batch: int, im_size: tuple[int, ...], device: torch.device, draws: torch.Generator
) -> list[Step]:
    """The student's batches, in which every image comes once before any comes again.

    count: synthetic images in all. batch: images per step. Augmentation parameters are drawn per image.
    """
    steps: list[Step] = []
    while len(steps) < options.syn_steps:
        shuffled = torch.randperm(count, generator=draws) if batch < count else torch.arange(count)
        for rows in shuffled.split(batch):
            drawn = augment.sample(options.strategy, len(rows), draws, im_size, one_strategy=True, device=device)
            steps.append(Step(to_device(rows, device) if batch < count else None, drawn))
    return steps[: options.syn_steps]


def check_trajectory(options: Options, sources: Sources) -> None:
    """Raises InputError for the first option of trajectory matching that cannot work."""
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
        if not is_left(sources, key):
            check_least(options, key, 1)
    if options.unroll == "plain" and options.experts_per_iteration % parallel.world():
        raise InputError(
            f"--unroll plain cannot share an expert among {parallel.world()} processes: give "
            f"--experts_per_iteration {parallel.world()} or a multiple of it, or --unroll adjoint"
        )
    if options.memory_budget is not None and not 0 <= options.memory_budget < math.inf:
        raise InputError(f"--memory_budget is {options.memory_budget}: give gigabytes, 0 or more")
    if options.memory_budget and (options.unroll == "plain" or options.compile):
        why = "--unroll plain keeps every graph" if options.unroll == "plain" else "compiled networks keep no graphs"
        raise InputError(f"--memory_budget has no use here, because {why}: leave it out")
    for key in ("lr_teacher", "lr_lr"):
        check_positive(options, key)


def main(kind: type[Options] = Options, objective: str = "TM") -> None:
    """Run the command line. The script in ImageNet-abcde/ gives `kind` other defaults."""
    distill_command(distill, *parse(kind, objective), objective)


if __name__ == "__main__":
    run_command(main, several=True)
