"""Gradient matching, DC (Zhao, Mopuri and Bilen, ICLR 2021): real and synthetic images train a network alike.

    loss = sum over classes c of distance(g_syn_c, g_real_c)
    g_c  = d/dtheta of the mean cross-entropy of the network theta on the images A_c(x) of class c

A_c is a differentiable augmentation whose parameters both sides of a class share. g_real_c is a constant. The gradient
with respect to the images goes through g_syn_c, itself a derivative, and ends at the augmented images: from there on
it is the augmentation's own backward pass, so nothing but the network is differentiated twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from common.matching.augment import DSAParams, apply
from common.matching.distribution import Rows, class_ranges
from common.system.errors import InputError

Gradients = dict[str, Tensor]  # of each parameter, by its name in the network
Distance = Callable[[Gradients, Gradients], Tensor]

BATCHNORM_IMAGES = 16  # per class, whose statistics a network is matched with
_EPSILON = 1e-6  # beside a product of norms, in the authors' code


def row_cosine(some: Gradients, others: Gradients) -> Tensor:
    """The authors' "ours": sum over parameters and their rows of 1 - <a, b> / (|a| |b| + 1e-6).

    A row is what belongs to one output: a convolution's weights [out, in, h, w] are [out, in h w]. Biases and other
    parameters with a single dimension do not count.
    """
    rows = [(a.flatten(1), others[name].flatten(1)) for name, a in some.items() if a.ndim > 1]
    return torch.stack([(1 - _cosine(a, b)).sum() for a, b in rows]).sum()


def squared(some: Gradients, others: Gradients) -> Tensor:
    """The squared norm of the difference, over all parameters."""
    return torch.stack([(a - others[name]).square().sum() for name, a in some.items()]).sum()


def whole_cosine(some: Gradients, others: Gradients) -> Tensor:
    """1 - <a, b> / (|a| |b| + 1e-6) of all parameters in one vector."""
    a, b = (torch.cat([each[name].flatten() for name in some]) for each in (some, others))
    return 1 - _cosine(a, b)


def inner_product(some: Gradients, others: Gradients) -> Tensor:
    """<a, b> over all parameters."""
    return torch.stack([(a * others[name]).sum() for name, a in some.items()]).sum()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    # vector_norm's derivative at zero is zero: a row without gradient, behind a dead unit say, gives no NaN.
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(dim=-1) / (norms + _EPSILON)


DISTANCES: dict[str, Distance] = {"ours": row_cosine, "mse": squared, "cos": whole_cosine}


def default_chunk(device: torch.device, compiled: bool) -> int | None:
    """Images per pass; None: class by class.

    Measured on a CPU: small pieces stay in the cache (32: a quarter faster than whole classes), unless compiled.
    """
    return 32 if device.type == "cpu" and not compiled else None


def match(
    network: nn.Module,
    real: Tensor | Rows,
    synthetic: Tensor,
    num_classes: int,
    augmentation: DSAParams | None = None,
    distance: str = "ours",
    chunk: int | None = None,
    compile: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    first_label: int = 0,
) -> tuple[Tensor, Tensor]:
    """The loss (a scalar without graph) and its gradient with respect to the synthetic images.

    network: [B, ch, ...] -> logits [B, C]; its own `.grad` stays as it is. real [C * m, ch, ...] (read a class or a
    group of classes at a time) and synthetic [C * n, ch, ...], grouped by class. augmentation: one parameter set a
    class. distance: one of DISTANCES. first_label: of the first class; the others follow.
    chunk: images a pass takes at most; None for one class after another. Each cut gives the same result: classes that
    fit a chunk together share a pass (`vmap`, more memory and fewer kernel launches), and a class larger than a chunk
    is taken in pieces, the synthetic one twice, once for its gradient and once for the derivative of that.
    compile: such as torch.compile, for the network's passes; what it compiled serves later calls with the same network.
    num_classes may be 0, for a process whose classes others match: the loss is zero then, and the gradient empty.
    Raises InputError for an unknown distance, ValueError for a network with batch statistics: see `freeze_batchnorm`.
    """
    if distance not in DISTANCES:
        raise InputError(f"there is no distance '{distance}' between gradients: give one of {', '.join(DISTANCES)}")
    if any(module.training for module in _batchnorms(network)):
        raise ValueError("Batch statistics would depend on the cut: freeze_batchnorm comes before match.")
    synthetic = synthetic.detach()
    if num_classes == 0:
        return synthetic.new_zeros(()), torch.empty_like(synthetic)
    per_class, per_class_real = len(synthetic) // num_classes, len(real) // num_classes
    passes = _Passes(network, compile)
    gradient = torch.empty_like(synthetic)
    loss = synthetic.new_zeros(())
    for first, last in class_ranges(num_classes, max(per_class, per_class_real), chunk or 1):
        some = None if augmentation is None else augmentation[first:last]
        rows = slice(first * per_class, last * per_class)
        images = synthetic[rows].requires_grad_()
        here = images if some is None else apply(images, some)
        with torch.no_grad():
            there = real[first * per_class_real : last * per_class_real]
            there = there if some is None else apply(there, some)
        labels = torch.arange(first_label + first, first_label + last, device=synthetic.device)
        if last - first > 1:
            part, cotangent = _match_group(passes, there, here.detach(), labels, DISTANCES[distance])
        else:
            part, cotangent = _match_class(passes, there, here.detach(), labels[0], DISTANCES[distance], chunk)
        (gradient[rows],) = torch.autograd.grad(here, images, cotangent)
        loss += part
    return loss, gradient


def freeze_batchnorm(network: nn.Module, images: Tensor) -> None:
    """Update the running statistics of BatchNorm by one batch, and hold them: its layers are in evaluation mode then.

    images [B, ch, ...] are real ones of all classes, for a class alone has other statistics; the authors take 16 of
    each. As in their code this is one forward pass in training mode: with torch's momentum of 0.1 the statistics of a
    new network become 0.9 times the initial ones (mean 0, variance 1) and 0.1 times those of the batch. Training the
    network (`network.train()`) lets them go.
    """
    network.train()
    with torch.no_grad():
        network(images)
    for module in _batchnorms(network):
        module.eval()


def _match_group(
    passes: _Passes, real: Tensor, synthetic: Tensor, labels: Tensor, distance: Distance
) -> tuple[Tensor, Tensor]:
    """k whole classes at once: the loss, and its gradient with respect to synthetic [k * n, ch, ...]."""
    target = passes.gradients(real.unflatten(0, (len(labels), -1)), labels)
    parts, cotangent = passes.step(synthetic.unflatten(0, (len(labels), -1)), labels, target, distance)
    return parts.sum(), cotangent.flatten(0, 1)


def _match_class(
    passes: _Passes, real: Tensor, synthetic: Tensor, label: Tensor, distance: Distance, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """One class, whole or in pieces: the loss, and its gradient with respect to synthetic [n, ch, ...]."""
    target = _mean_gradients(passes, real, label, chunk)
    if chunk is None or len(synthetic) <= chunk:
        return passes.step(synthetic, label, target, distance)
    # The chain rule: v = d distance / d g_syn, then d <g_syn, v> / dx. g_syn is a mean over the images, so each
    # image's share depends on that image alone.
    cotangent, part = grad_and_value(distance)(_mean_gradients(passes, synthetic, label, chunk), target)
    pieces = [
        passes.step(piece, label, cotangent, inner_product)[1] * (len(piece) / len(synthetic))
        for piece in synthetic.split(chunk)
    ]
    return part, torch.cat(pieces)


def _mean_gradients(passes: _Passes, images: Tensor, label: Tensor, chunk: int | None) -> Gradients:
    """g of one class's images [B, ch, ...], in pieces of at most `chunk` images."""
    total: Gradients = {}
    for piece in images.split(chunk or len(images)):
        share = len(piece) / len(images)
        for name, g in passes.gradients(piece, label).items():
            total[name] = total[name] + share * g if name in total else share * g
    return total


class _Passes:
    """A network's passes over images [B, ch, ...] of one class (label []), or [k, B, ch, ...] of k classes (label [k]).

    One class without compilation goes by autograd's tape, anything else by torch.func: `compile` can take a derivative
    of a derivative in that form alone, and vmap too. By itself torch.func is slower, as it records every backward pass.
    """

    def __init__(self, network: nn.Module, compile: Callable[[Callable[..., Any]], Callable[..., Any]] | None) -> None:
        self.network = network
        # torch.compile takes as long to wrap a function as a small pass takes to run: once a function, then.
        self.compile = None if compile is None else functools.cache(compile)
        self.parameters = {name: p.detach() for name, p in network.named_parameters()}

    def gradients(self, images: Tensor, label: Tensor) -> Gradients:
        """g of each class: of each parameter [...], or [k, ...]."""
        if self.compile is None and label.ndim == 0:
            return _tape_gradients(self.network, self.parameters, images, label)
        pass_ = _gradients if label.ndim == 0 else _gradients_of_classes
        return self._run(pass_, self.network, self.parameters, images, label)

    def step(self, images: Tensor, label: Tensor, target: Gradients, distance: Distance) -> tuple[Tensor, Tensor]:
        """distance(g, target) of each class, [] or [k], and its gradient with respect to the images."""
        if self.compile is None and label.ndim == 0:
            images = images.detach().requires_grad_()
            part = distance(_tape_gradients(self.network, self.parameters, images, label), target)
            return part.detach(), torch.autograd.grad(part, images)[0]
        pass_ = _step if label.ndim == 0 else _step_of_classes
        return self._run(pass_, self.network, self.parameters, images, label, target, distance)

    def _run(self, pass_: Callable[..., Any], *inputs: object) -> Any:
        # What is compiled is a function of this module, not a closure of this call: torch finds it again next time.
        return (pass_ if self.compile is None else self.compile(pass_))(*inputs)


def _tape_gradients(network: nn.Module, parameters: Gradients, images: Tensor, label: Tensor) -> Gradients:
    """`_gradients` by autograd's tape, with a graph if the images require a gradient."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    loss = _cross_entropy(leaves, network, images, label)
    gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=images.requires_grad)
    return dict(zip(leaves, gradients, strict=True))


def _gradients(network: nn.Module, parameters: Gradients, images: Tensor, label: Tensor) -> Gradients:
    return grad(_cross_entropy)(parameters, network, images, label)


def _step(
    network: nn.Module, parameters: Gradients, images: Tensor, label: Tensor, target: Gradients, distance: Distance
) -> tuple[Tensor, Tensor]:
    def part(images: Tensor) -> Tensor:
        return distance(_gradients(network, parameters, images, label), target)

    gradient, value = grad_and_value(part)(images)
    return value, gradient


def _gradients_of_classes(network: nn.Module, parameters: Gradients, images: Tensor, labels: Tensor) -> Gradients:
    return vmap(_gradients, in_dims=(None, None, 0, 0))(network, parameters, images, labels)


def _step_of_classes(
    network: nn.Module, parameters: Gradients, images: Tensor, labels: Tensor, targets: Gradients, distance: Distance
) -> tuple[Tensor, Tensor]:
    return vmap(_step, in_dims=(None, None, 0, 0, 0, None))(network, parameters, images, labels, targets, distance)


def _cross_entropy(parameters: Gradients, network: nn.Module, images: Tensor, label: Tensor) -> Tensor:
    """The mean cross-entropy of images [B, ch, ...] that all have the label []."""
    return F.cross_entropy(functional_call(network, parameters, (images,)), label.expand(len(images)))


def _batchnorms(network: nn.Module) -> Sequence[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
