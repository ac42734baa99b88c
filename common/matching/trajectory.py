"""Trajectory matching (Cazenavette et al., CVPR 2022): a student trained on synthetic images follows an expert.

    theta_{t+1} = theta_t - s * grad_theta CE(network(theta_t, A_t(x_t)), y_t)        t = 0 .. T-1
    loss        = || theta_T - theta* ||^2 / || theta_0 - theta* ||^2

theta_0 and theta* are weights of the expert at two epochs, s is the learned step size, x_t a batch of the synthetic
images with labels y_t, and A_t a differentiable augmentation. Plain unrolling keeps the activations of all T steps in
memory until one backward pass. The adjoint method keeps only theta_0 .. theta_T. It goes back through the steps one by
one, starting from lambda_T = dloss / dtheta_T, and approximates nothing. With g_t the gradient in step t:

    lambda_t      = lambda_{t+1} - s * d<g_t, lambda_{t+1}> / dtheta_t
    dloss / dx_t  = -s * d<g_t, lambda_{t+1}> / dx_t
    dloss / ds    = - sum over t of <g_t, lambda_{t+1}>

Cross-entropy is a mean over the batch, so g_t and these derivatives are sums over images. A step can therefore be cut
into chunks, and memory holds only the T + 1 vectors theta_t and the activations of one chunk.

Every g_t is computed on the way forward, and again on the way back, for its graph. Where memory allows, the graphs of
the last chunks are kept instead, which saves a quarter of the work and changes no bit of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, grad_and_value

from common.matching.augment import DSAParams, apply
from common.networks import has_batchnorm
from common.networks.graphs import Graphed
from common.system.errors import InputError

Unroll = Literal["adjoint", "plain"]

_GPU_PIXELS = 1024 * 32 * 32

# (theta [P], images [B, ch, ...], labels [B]) -> d CE / d theta [P], the cross-entropy summed over the images
Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]
# (theta, images, labels, direction [P]) -> d<g, direction> / d theta [P], d<g, direction> / d images, <g, direction>
Pullback = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Graph(NamedTuple):
    """The graph of a gradient g on some images, for which a pullback need not compute g again."""

    theta: Tensor
    """leaf [P]"""
    images: Tensor
    """leaf [B, ch, ...]"""
    gradient: Tensor
    """d CE / d theta [P], the cross-entropy summed over the images; its graph leads to both leaves"""

    def pull(self, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a `Pullback` returns. The graph is freed."""
        to_theta, to_images = torch.autograd.grad(self.gradient, (self.theta, self.images), direction)
        return to_theta, to_images, self.gradient.detach() @ direction


class Step(NamedTuple):
    """One step of the student."""

    rows: Tensor | None = None
    """int64 [B], indices of the images in the batch, on the images' device; None for all images"""
    augmentation: DSAParams | None = None
    """one parameter set per image of the batch, on the images' device; None for no augmentation"""


@dataclass(frozen=True)
class Student:
    """A network as functions of its parameters, which are one flat vector [P]; built by `build_student`."""

    num_parameters: int
    batch_statistics: bool  # the images of a batch influence each other, so a step cannot be cut into chunks
    gradient: Gradient
    pullback: Pullback
    graph: Callable[[Tensor, Tensor, Tensor], Graph] | None = None
    """(theta, images, labels) -> the graph of their gradient; None for a compiled or captured student"""
    weights: dict[int, int] = field(default_factory=dict)
    """number of images -> what `graph_bytes` has measured"""


class Team(Protocol):
    """Processes that compute the same steps together, each with a share of the parts of every step."""

    def share(self, count: int) -> tuple[int, int]:
        """Return the range [first, last) of the `count` parts that this process computes."""
        ...

    def sum_(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes of the team."""
        ...


def default_chunk(device: torch.device, im_size: Sequence[int]) -> int:
    """Return the images per pass: on a CPU 32; on a GPU as many as take about 6 GB (untried).

    On a CPU, 32 images stay in the cache, which is 1.6 times as fast as all 160 at once.
    """
    return 32 if device.type == "cpu" else max(1, _GPU_PIXELS // math.prod(im_size))


def flatten(parameters: Iterable[Tensor]) -> Tensor:
    """Concatenate parameters, in the order of `network.parameters()`, into one vector [P] without a graph."""
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def build_student(
    network: nn.Module, compiled: Callable[[Any], Any] | None = None, graphs: torch.device | None = None
) -> Student:
    """Build the student that `match` trains; one student serves a whole run.

    Only the architecture, the mode and the buffers of the network are used, not its weights, and the network is not
    changed. Batch normalisation in training mode normalises over the batch and keeps its running statistics. The
    network must be deterministic, because each step is computed in the forward and again in the backward direction.
    compiled: torch.compile, or None. Both functions of the student take only tensors and compile once per part size.
    graphs: the device on which both are captured as CUDA graphs, once per part size, or None. No graph of autograd is
    kept then, so each step is computed in both directions whatever the memory. Not for the unroll "plain".
    """
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]
    sizes = [p.numel() for p in network.parameters()]

    def cross_entropy(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        pieces = zip(names, theta.split(sizes), shapes, strict=True)
        state = {name: piece.view(shape) for name, piece, shape in pieces}
        # Batch normalisation writes into its buffers, so it gets copies.
        state.update((name, buffer.clone()) for name, buffer in network.named_buffers())
        return F.cross_entropy(functional_call(network, state, (images,)), labels, reduction="sum")

    def gradient(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        # Always with a graph: without one, GroupNorm's derivative is computed by another formula, with other bits.
        wanted = torch.is_grad_enabled() and (theta.requires_grad or images.requires_grad)
        with torch.enable_grad():
            leaf = theta if theta.requires_grad else theta.detach().requires_grad_()
            g = torch.autograd.grad(cross_entropy(leaf, images, labels), leaf, create_graph=True)[0]
        return g if wanted else g.detach()

    def graph(theta: Tensor, images: Tensor, labels: Tensor) -> Graph:
        leaves = theta.detach().requires_grad_(), images.detach().requires_grad_()
        with torch.enable_grad():
            return Graph(*leaves, gradient(*leaves, labels))

    def pullback(theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return graph(theta, images, labels).pull(direction)

    # torch.compile differentiates twice only through torch.func, which is slower and takes more memory without it.
    gradient_pure: Gradient = grad(cross_entropy)

    def pullback_pure(
        theta: Tensor, images: Tensor, labels: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def product(theta: Tensor, images: Tensor) -> Tensor:
            return gradient_pure(theta, images, labels) @ direction

        (to_theta, to_images), value = grad_and_value(product, argnums=(0, 1))(theta, images)
        return to_theta, to_images, value

    whole = has_batchnorm(network)
    if compiled is None and graphs is None:
        return Student(sum(sizes), whole, gradient, pullback, graph)
    once, back = (gradient, pullback) if compiled is None else (compiled(gradient_pure), compiled(pullback_pure))
    if graphs is not None:
        once, back = _captured(once, graphs), _captured(back, graphs)
    return Student(sum(sizes), whole, once, back, None)


def _captured(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function as a CUDA graph; its results, a tensor or several, hold until the next call."""

    def several(*inputs: Tensor) -> Sequence[Tensor]:
        results = function(*inputs)
        return (results,) if isinstance(results, Tensor) else results

    graphed = Graphed(several, device)

    def call(*inputs: Tensor) -> Any:
        results = graphed(*inputs)
        return results[0] if len(results) == 1 else results

    return call


@torch.no_grad()
def graph_bytes(student: Student, theta: Tensor, images: Tensor, labels: Tensor) -> int:
    """The memory in bytes that the graph of the gradient on these images holds, with room for an augmentation's.

    It is measured once per number of images.

    Raises ValueError for a compiled student, which has no graphs.
    """
    if student.graph is None:
        raise ValueError("a compiled student keeps no graphs")
    if len(images) not in student.weights:
        # By their addresses, since a tensor may be saved several times. None is freed before all are counted.
        storages: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with saved_tensors_hooks(count, lambda tensor: tensor):
            graph = student.graph(theta, images, labels)
        storages.pop(theta.untyped_storage().data_ptr(), None)  # theta is kept anyway
        # Before and after the augmentation, and with what it keeps, a part is held up to 3.7 times.
        student.weights[len(images)] = sum(storages.values()) + graph.gradient.nbytes + 4 * images.nbytes
    return student.weights[len(images)]


def match(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    steps: Sequence[Step],
    *,
    chunk: int | None = None,
    unroll: Unroll = "adjoint",
    team: Team | None = None,
    memory: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss (a scalar) and its gradients with respect to the images and to the step size, without graph.

    start: theta_0 [P]. target: theta* [P]. images: [N, ch, ...]. labels: int64 [N]. step_size: s, a scalar. All are on
    one device. steps: the T steps of the student, at least one.
    chunk: at most this many images per pass, None for whole batches. A batch is cut into parts whose sizes differ by at
    most one image; the chunk does not change the result.
    unroll: "adjoint", or "plain" for the textbook method, whose memory grows with T whatever the chunk.
    team: the processes that share the parts. All of them pass the same arguments and get the whole result. "plain"
    cannot be shared.
    memory: bytes for the graphs of chunks that the adjoint then need not compute twice. It does not change the result;
    a compiled or captured student and "plain" do not use it.
    If the student diverges or start equals target, the result is NaN or infinite and no exception is raised, because
    this function never waits for the device.
    Raises InputError if start or target belongs to another network, and for a chunk with a network that normalises over
    the batch; ValueError for an augmentation that was not drawn for its batch, and for a team with "plain".
    """
    if team is not None and unroll == "plain":
        raise ValueError("One graph cannot be shared by a team: unroll by the adjoint.")
    if chunk is not None and student.batch_statistics:
        raise InputError("A network that normalises over the batch takes a whole batch at once: leave out the chunk.")
    for name, theta in (("start", start), ("target", target)):
        if theta.shape != (student.num_parameters,):
            given = f"The trajectory's {name} has shape {list(theta.shape)}"
            raise InputError(f"{given}, the network has {student.num_parameters} parameters: are they of one network?")
    for t, step in enumerate(steps):
        batch = _batch_size(images, step)
        if step.augmentation is not None and step.augmentation.groups != batch:
            raise ValueError(f"Step {t} has {batch} images and an augmentation for {step.augmentation.groups}.")
    tensors = start.detach(), target.detach(), images.detach(), labels, step_size.detach()
    if unroll == "plain":
        return _plain(student, *tensors, steps, chunk)
    return _adjoint(student, *tensors, steps, chunk, team, memory)


@torch.no_grad()
def _adjoint(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    steps: Sequence[Step],
    chunk: int | None,
    team: Team | None,
    memory: int,
) -> tuple[Tensor, Tensor, Tensor]:
    def opened(rows: slice | Tensor, augmentation: DSAParams | None) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            part = images[rows].requires_grad_()
            return part, _augment(part, augmentation)

    parts = [list(_parts(images, step, chunk, team)) for step in steps]
    # The last graphs are kept, because the way back needs them first.
    twice = sum(map(len, parts)) - (_graphs_within(memory, student, start, images, labels, parts) if memory else 0)
    kept: dict[tuple[int, int], tuple[Tensor, Tensor, Graph]] = {}
    thetas = [start]
    for t, step in enumerate(steps):
        total = torch.zeros_like(start)
        for i, (rows, augmentation) in enumerate(parts[t]):
            if twice > 0 or student.graph is None:
                total += student.gradient(thetas[t], _augment(images[rows], augmentation), labels[rows])
                twice -= 1
            else:
                part, seen = opened(rows, augmentation)
                kept[t, i] = part, seen, student.graph(thetas[t], seen, labels[rows])
                total += kept[t, i][2].gradient
        if team is not None:
            team.sum_(total)
        thetas.append(thetas[t] - step_size * (total / _batch_size(images, step)))
    distance = (start - target).square().sum()
    difference = thetas.pop() - target
    direction = 2 * difference / distance  # lambda_T
    to_images = torch.zeros_like(images)
    to_step_size = torch.zeros_like(step_size)
    for t, step in reversed(list(enumerate(steps))):
        theta, batch = thetas.pop(), _batch_size(images, step)
        to_theta = torch.zeros_like(theta)
        for i, (rows, augmentation) in enumerate(parts[t]):
            if (t, i) in kept:
                part, seen, graph = kept.pop((t, i))
                some_theta, to_seen, product = graph.pull(direction)
            else:
                part, seen = opened(rows, augmentation)
                some_theta, to_seen, product = student.pullback(theta, seen.detach(), labels[rows], direction)
            # A separate backward pass through the augmentation: it is not differentiated twice, and it would otherwise
            # be compiled once per strategy.
            (to_part,) = torch.autograd.grad(seen, part, to_seen)
            _add(to_images, rows, to_part * (-step_size / batch))
            to_theta += some_theta
            to_step_size -= product / batch
        if team is not None:
            team.sum_(to_theta)
        direction = direction - step_size / batch * to_theta  # lambda_t
    if team is not None:
        team.sum_(to_images, to_step_size)
    return difference.square().sum() / distance, to_images, to_step_size


def _graphs_within(
    memory: int,
    student: Student,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    parts: Sequence[Sequence[tuple[slice | Tensor, DSAParams | None]]],
) -> int:
    """How many graphs of the largest part fit into this many bytes."""
    rows = [rows for several in parts for rows, _ in several]
    if student.graph is None or not rows:
        return 0
    largest = max(rows, key=lambda some: len(labels[some]))
    return memory // graph_bytes(student, theta, images[largest], labels[largest])


@torch.enable_grad()
def _plain(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor,
    steps: Sequence[Step],
    chunk: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    images.requires_grad_()
    step_size.requires_grad_()
    theta = start
    for step in steps:
        theta = theta - step_size * _mean_gradient(student, theta, images, labels, step, chunk)
    loss = (theta - target).square().sum() / (start - target).square().sum()
    to_images, to_step_size = torch.autograd.grad(loss, (images, step_size))
    return loss.detach(), to_images, to_step_size


def _mean_gradient(
    student: Student, theta: Tensor, images: Tensor, labels: Tensor, step: Step, chunk: int | None
) -> Tensor:
    """Return g_t [P], the gradient of the mean cross-entropy over the whole batch, whatever the chunk."""
    total = torch.zeros_like(theta)
    for rows, augmentation in _parts(images, step, chunk, None):
        total = total + student.gradient(theta, _augment(images[rows], augmentation), labels[rows])
    return total / _batch_size(images, step)


def _parts(
    images: Tensor, step: Step, chunk: int | None, team: Team | None
) -> Iterator[tuple[slice | Tensor, DSAParams | None]]:
    """Yield the parts of a step's batch that this process computes: the rows of the images and their augmentation.

    The parts are as equal in size as possible, because a small remainder would be slow and every new size is compiled.
    """
    batch = _batch_size(images, step)
    count = 1 if chunk is None else math.ceil(batch / chunk)
    for i in range(*((0, count) if team is None else team.share(count))):
        within = slice(i * batch // count, (i + 1) * batch // count)
        rows = within if step.rows is None else step.rows[within]
        yield rows, None if step.augmentation is None else step.augmentation[within]


def _batch_size(images: Tensor, step: Step) -> int:
    return len(images) if step.rows is None else len(step.rows)


def _augment(images: Tensor, augmentation: DSAParams | None) -> Tensor:
    return images if augmentation is None else apply(images, augmentation)


def _add(total: Tensor, rows: slice | Tensor, part: Tensor) -> None:
    """Add `part` to total[rows]; an image that occurs in `rows` several times gets all of its contributions."""
    if isinstance(rows, slice):
        total[rows] += part
    else:
        total.index_add_(0, rows, part)
