"""Our side of the comparison: each function prepares one piece of a run and returns a function that computes it once.

The pieces are made and called as DM/distill.py, DC/distill.py, TM/distill.py, TM/buffer.py and the evaluations do, with
the options of the command line, so that a default that changes there changes here. Only the images are random, and the
step sizes so small that the work stays the same from one call to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from sizes import Size, random_images, training_images
from torch import Tensor

from common.config.command_line import parse, parse_buffer
from common.config.options import BufferOptions, DistillOptions, Sources
from common.datasets import ImageData
from common.experts.train import ExpertProtocol, expert_epochs
from common.matching import augment, distribution, gradient, trajectory
from common.matching.step_size import StepSize
from common.networks import build_network, reinitialise
from common.networks.graphs import graphed_forward
from common.runs.pieces import Pieces
from common.runs.setup import set_up
from common.synset.selection import select
from common.system import parallel
from common.system.devices import can_compile, to_device, total_memory
from common.system.seeds import derive, generator
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol, accuracy, gradients_of
from DC.distill import Options as DCOptions
from DM.distill import Options as DMOptions
from TM.distill import Options as TMOptions
from TM.distill import memory_of, student_steps

Run = Callable[[], object]
AnyOptions = TypeVar("AnyOptions", bound=DistillOptions)

# So small that coefficients, step size and weights stay what they are, whatever the random images ask for.
STILL = 1e-20


def options_of(
    kind: type[AnyOptions], objective: str, size: Size, budget: tuple[int, int], device: torch.device, compile: bool
) -> tuple[AnyOptions, Sources]:
    """The options of a command line for CIFAR-10 at this size, which load random images of this size."""
    ipc, k = budget
    given = {
        "dataset": "CIFAR10", "model": size.model, "ipc": ipc, "msz_per_channel": k, "lr_freq": STILL,
        "batch_train": size.batch_train, "epoch_eval_train": size.evaluation_epochs, "device": device,
        "compile": compile,
    }  # fmt: skip
    if kind is TMOptions:
        given |= {"lr_lr": STILL, "syn_steps": size.syn_steps}
    else:
        given["batch_real"] = size.batch_real
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    options, sources = parse(kind, objective, words)
    data = training_images(size, device)
    loading: Any = type(kind.__name__, (kind,), {"load": lambda self: (data, data)})
    return loading(**asdict(options)), sources


# -- selecting, decoding, augmenting -----------------------------------------------------------------------------


def selection(size: Size, device: torch.device) -> Run:
    """Choose the k positions of one class from n images [n, 3, side, side]."""
    images = training_images(size, device).batch(slice(size.per_class_synthetic(size.tm)))
    return lambda: select(DistillOptions.selection, [[images]], size.tm[1], DistillOptions.transform)


def decode(size: Size, device: torch.device) -> Run:
    """Decode TM's whole set, and backpropagate from the images to the coefficients."""
    run = Pieces(set_up(*options_of(TMOptions, "TM", size, size.tm, device, False)))
    ones = torch.ones_like(run.synset.decode())

    def once() -> None:
        run.synset.optim_zero_grad()
        run.synset.decode().backward(ones)

    return once


def augment_class(strategy: str, size: Size, device: torch.device) -> Run:
    """Augment the images of a class alike: m real ones, and n synthetic ones with their gradient."""
    data = training_images(size, device)
    real = data.batch(slice(size.batch_real))
    synthetic = data.batch(slice(size.per_class_synthetic(size.dm))).requires_grad_()
    ones, draws = torch.ones_like(synthetic), generator(0, "augmentation")

    def once() -> None:
        drawn = augment.sample(strategy, 1, draws, size.im_size, device=device)
        with torch.no_grad():
            augment.apply(real, drawn)
        torch.autograd.grad(augment.apply(synthetic, drawn), synthetic, ones)

    return once


def augment_each(strategy: str, size: Size, device: torch.device) -> Run:
    """Augment a batch to train a network on, each image by parameters of its own."""
    images = training_images(size, device).batch(slice(size.batch_train))
    draws = generator(0, "augmentation")

    def once() -> None:
        drawn = augment.sample(strategy, len(images), draws, size.im_size, one_strategy=True, device=device)
        augment.apply(images, drawn)

    return once


# -- one update ----------------------------------------------------------------------------------------------------


def step(run: Pieces, synthetic: Tensor, gradient: Tensor, *also: Tensor, whole: bool = False) -> None:
    """What `Distillation.update` computes: loss, gradients and `also` are those of the processes together."""
    run.synset.optim_zero_grad()
    synthetic.backward(gradient)
    assert run.synset.coefficients.grad is not None
    combine = parallel.copy_from_main_ if whole else lambda parts: parallel.sum_(*parts)
    combine([*also, run.synset.coefficients.grad])
    run.synset.optim_step()


def dm(size: Size, device: torch.device, compile: bool) -> Run:
    """One update of DM, as in DM/distill.py."""
    options, sources = options_of(DMOptions, "DM", size, size.dm, device, compile)
    run = Pieces(set_up(options, sources))
    network = run.share_statistics(run.network.requires_grad_(False))
    embed = run.compiled(network.embed)
    chunk = options.chunk or distribution.default_chunk(run.device, options.batch_real, run.train.im_size)
    iterations = count()

    def update() -> None:
        draws = run.draws(next(iterations))
        reinitialise(network, draws.seed("network"))
        real, synthetic = run.real(options.batch_real, draws), run.synthetic(options.batch_syn, draws)
        augmentation = run.augmentation(draws)
        with run.matching(network, draws):
            loss, to_images = distribution.match(embed, real, synthetic, run.share.count, augmentation, chunk)
        step(run, synthetic, to_images, loss)

    return update


def dc(size: Size, device: torch.device, compile: bool) -> Run:
    """One update of DC, as in DC/distill.py at ipc 1 and 2, where each network serves for a single update."""
    options, sources = options_of(DCOptions, "DC", size, size.dc, device, compile)
    run = Pieces(set_up(options, sources))
    chunk = options.chunk or gradient.default_chunk(
        run.device, options.batch_real, run.compiler is not None, run.train.im_size, total_memory(run.device)
    )
    iterations = count()

    def update() -> None:
        draws = run.draws(next(iterations), 0)
        reinitialise(run.network, draws.seed("network"))
        real, synthetic = run.real(options.batch_real, draws), run.synthetic(options.batch_syn, draws)
        with run.matching(run.network, draws):
            loss, to_images = gradient.match(
                run.network, real, synthetic, run.share.count, None, options.dis_metric, chunk, run.compiler
            )
        step(run, synthetic, to_images, loss)

    return update


def tm(size: Size, device: torch.device, compile: bool, graphs: bool = False, experts: int = 1) -> Run:
    """One update of TM, as in TM/distill.py, with an expert in memory, which is followed `experts` times."""
    options, sources = options_of(TMOptions, "TM", size, size.tm, device, compile)
    run = Pieces(set_up(options, sources))
    step_size = StepSize(options.lr_teacher, options.lr_lr, run.device)
    student = trajectory.build_student(run.network, run.compiler, device if graphs else None)
    labels, number = run.synset.labels, len(run.synset.labels)
    dealt = experts % parallel.world() == 0
    here = range(*(parallel.share(experts) if dealt else (0, experts)))
    chunk = options.chunk or trajectory.default_chunk(run.device, run.train.im_size)
    if not dealt:
        chunk = min(chunk, math.ceil(number / parallel.world()))
    theta = trajectory.flatten(run.network.parameters()).cpu()
    target, iterations = theta * 0.99, count()
    memory = memory_of(options, run.device) * size.syn_steps // size.published_steps  # its share for these steps

    def update() -> None:
        iteration, synthetic = next(iterations), run.synset.decode()
        means: list[Tensor] = []
        for expert in here:
            draws = run.draws(iteration, expert) if expert else run.draws(iteration)
            steps = student_steps(options, number, number, run.train.im_size, run.device, draws.generator("trajectory"))
            with run.matching(run.network, draws):
                matched = trajectory.match(
                    student,
                    to_device(theta, run.device),
                    to_device(target, run.device),
                    synthetic,
                    labels,
                    step_size.value,
                    steps,
                    chunk=chunk,
                    unroll=options.unroll,
                    team=None if dealt else parallel,
                    memory=memory,
                )
            parts = [part / experts for part in matched]
            means = [mean.add_(part) for mean, part in zip(means, parts, strict=True)] if means else parts
        loss, to_images, to_step_size = means
        step(run, synthetic, to_images, loss, to_step_size, whole=not dealt)
        step_size.update(to_step_size)

    return update


# -- training and testing networks ---------------------------------------------------------------------------------


def expert(size: Size, device: torch.device, compile: bool, graphs: bool = False) -> Run:
    """Train an expert on a part of an epoch, as TM/buffer.py does."""
    given = f"--dataset CIFAR10 --model {size.model} --keep_epochs 1 --batch_train {size.batch_train}"
    options = parse_buffer(BufferOptions, "TM", given.split())
    data, network = random_images(size, size.expert_images, device), _network(size, device)
    forward, protocol = _compiled(network, compile), ExpertProtocol.of(options)
    gradients = gradients_of(network, forward, device) if graphs else None
    return lambda: list(expert_epochs(network, data, protocol, 0, forward, gradients=gradients))


def test_pass(size: Size, device: torch.device, compile: bool, graphs: bool) -> Run:
    """Test one network."""
    data, network = random_images(size, size.test_images, device), _network(size, device)
    forward = _compiled(network, compile)
    tested = graphed_forward(forward, device) if graphs else forward
    return lambda: accuracy(network, data, tested)


def test_batches(size: Size, device: torch.device) -> Run:
    """Make the batches of a test: the test of a network that answers without looking at the images."""
    data, network = random_images(size, size.test_images, device), _network(size, device)
    answers = torch.zeros(len(data), size.classes, device=device)
    return lambda: accuracy(network, data, lambda images: answers[: len(images)])


def evaluation(
    networks: int,
    size: Size,
    device: torch.device,
    compile: bool = False,
    together: int = DistillOptions.networks_at_once,
    graphs: bool = False,
) -> Run:
    """Train networks on TM's set as an evaluation does (together: --networks_at_once), and test them on one image."""
    options, sources = options_of(TMOptions, "TM", size, size.tm, device, compile)
    run = Pieces(set_up(options, sources))
    batches, one = Batches(*run.synset.get(need_copy=True)), _first(run.test)
    pool = {size.model: EvaluationNetwork(_network(size, device), compile, graphs)}
    protocol = EvaluationProtocol.of(options)
    return lambda: evaluate_pool(
        pool,
        lambda number: batches,
        one,
        protocol,
        networks,
        options.seed,
        dataset=options.dataset,
        together=together,
        precision=options.precision,
        progress=False,
    )


def network_step(size: Size, device: torch.device) -> Run:
    """A network's own part of a training step: forward, loss, backward."""
    network = _network(size, device).train()
    images = training_images(size, device).batch(slice(size.batch_train))
    labels = torch.zeros(size.batch_train, dtype=torch.long, device=device)

    def once() -> None:
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()

    return once


def network_test(size: Size, device: torch.device) -> Run:
    """A network's own part of a batch of a test: forward."""
    network = _network(size, device).eval()
    images = training_images(size, device).batch(slice(size.batch_train))
    return torch.no_grad()(lambda: network(images))


def _network(size: Size, device: torch.device) -> torch.nn.Module:
    network = build_network(size.model, 3, size.classes, size.im_size).to(device)
    reinitialise(network, derive(0, "network"))
    return network


def _compiled(network: torch.nn.Module, compile: bool) -> Callable[[Tensor], Tensor]:
    return torch.compile(network) if compile and can_compile() else network


def _first(data: ImageData) -> ImageData:
    return ImageData(data.images[:1], data.labels[:1], data.mean, data.std, data.class_names, data.name)
