"""Trajectory matching (TM, MTT): training on synthetic images leads a network where training on real ones led it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.checks import check_float32, check_least, check_positive
from common.config.options import DistillOptions, Sources
from common.experts.buffer import ExpertOrder
from common.experts.folder import describe
from common.experts.open import find_buffer, open_buffer
from common.matching import augment
from common.matching.step_size import StepSize
from common.matching.trajectory import Step, Unroll, build_student, match
from common.networks import has_batchnorm
from common.runs.loop import distill
from common.runs.setup import prepare
from common.system import parallel
from common.system.devices import precision
from common.system.errors import InputError
from common.system.seeds import generator

_GPU_PIXELS = 1024 * 32 * 32


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
    """experts that an update averages over; several processes share them if they can be dealt out evenly, else each"""
    max_experts: int | None = None
    """use so many experts at most (default: all that there are)"""
    unroll: Unroll = "adjoint"
    """adjoint: exact gradient at constant memory; plain: the textbook's, whose memory grows with syn_steps"""


def run(options: Options, sources: Sources, objective: str = "TM") -> None:
    """Distil as the options say. objective: what the run is filed under."""
    check_trajectory(options, sources)
    setting = prepare(options, sources, objective)
    setting.check_chunk()
    setting.check_no_dropout()
    train, synset, device, seed = setting.train, setting.synset, setting.device, options.seed
    network = setting.network()
    buffer = open_buffer(
        find_buffer(options.buffer_path, train.name, options.model, options.zca),
        describe(train, options.model, network),
        options.max_start_epoch - 1 + options.expert_epochs,
        options,
        objective,
    )
    order = ExpertOrder(buffer, seed, options.max_experts)
    chunk = None if has_batchnorm(network) else options.chunk or default_chunk(device, train.im_size)
    student = build_student(network, setting.compiler)
    step_size = StepSize(options.lr_teacher, options.lr_lr, device)
    count = len(synset.labels)
    batch = min(options.batch_syn or count, count)
    experts = options.experts_per_iteration
    dealt = experts % parallel.world() == 0
    if not dealt and chunk is not None:
        chunk = min(chunk, math.ceil(batch / parallel.world()))  # else there might be nothing to share

    def step(iteration: int) -> Tensor:
        images = synset.decode()
        numbers = range(*(parallel.share(experts) if dealt else (0, experts)))
        # The means over the experts: of the loss, and of its gradients with respect to images and step size.
        means = [part / experts for part in follow(iteration, numbers[0], images)]
        for number in numbers[1:]:
            for mean, part in zip(means, follow(iteration, number, images), strict=True):
                mean += part / experts
        loss, gradient, to_step_size = means
        synset.optim_zero_grad()
        images.backward(gradient)
        assert synset.coefficients.grad is not None
        if dealt:
            parallel.sum_(loss, to_step_size, synset.coefficients.grad)
        else:  # all have the whole of it, and processors of several kinds may have rounded it differently
            parallel.copy_from_main_([loss, to_step_size, synset.coefficients.grad])
        synset.optim_step()
        step_size.update(to_step_size)
        return loss

    def follow(iteration: int, number: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        draws = generator(seed, "trajectory", *((iteration, number) if number else (iteration,)))
        start = int(torch.randint(options.max_start_epoch, (), generator=draws))
        theta, target = buffer.pair(order.expert(iteration * experts + number), start, options.expert_epochs)
        with precision(options.precision, device):
            return match(
                student,
                to_device(theta, device),
                to_device(target, device),
                images,
                synset.labels,
                step_size.value,
                steps(draws),
                chunk=chunk,
                unroll=options.unroll,
                team=None if dealt else parallel,
            )

    def steps(draws: torch.Generator) -> list[Step]:
        """The student's batches, each image once before any comes again, and augmentation, a parameter set an image."""
        batches: list[Step] = []
        while len(batches) < options.syn_steps:
            shuffled = torch.randperm(count, generator=draws) if batch < count else torch.arange(count)
            for rows in shuffled.split(batch):
                drawn = augment.sample(
                    options.strategy, len(rows), draws, train.im_size, one_strategy=True, device=device
                )
                batches.append(Step(rows.to(device, non_blocking=True) if batch < count else None, drawn))
        return batches[: options.syn_steps]

    distill(setting, step, step_size, order)


def to_device(weights: Tensor, device: torch.device) -> Tensor:
    """Weights [P] of the CPU on the device. Only from pinned memory does a GPU copy without keeping the CPU waiting."""
    return weights.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else weights.to(device)


def default_chunk(device: torch.device, im_size: tuple[int, ...]) -> int:
    """Images per pass. On a CPU 32 stay in the cache, 1.6 times as fast as all 160; on a GPU about 6 GB, untried."""
    return 32 if device.type == "cpu" else max(1, _GPU_PIXELS // math.prod(im_size))


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
        check_float32(options, key)
