"""Gradient matching, DC (Zhao, Mopuri and Bilen, ICLR 2021): real and synthetic images should give equal gradients.

    loss = sum over classes c of distance(g_syn_c, g_real_c)
    g_c  = d/dtheta of the mean cross-entropy of the network theta on the images A_c(x) of class c

A_c is a differentiable augmentation with the same parameters for the real and the synthetic images of a class.
g_real_c is a constant; g_syn_c is itself a derivative and is differentiated again, with respect to the augmented
images. An ordinary backward pass through the augmentation follows, so only the network is differentiated twice.
"""

from __future__ import annotations

import functools
import math
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

Gradients = dict[str, Tensor]  # name of a parameter in the network -> its gradient
Distance = Callable[[Gradients, Gradients], Tensor]

BATCHNORM_IMAGES = 16  # real images per class that `freeze_batchnorm` gets, as in the authors' code
_EPSILON = 1e-6  # added to a product of norms, as in the authors' code


def row_cosine(some: Gradients, others: Gradients) -> Tensor:
    """The distance `--dis_metric ours`: the sum of 1 - <a, b> / (|a| |b| + 1e-6) over all rows.

    A row holds the values of a parameter for one output: a convolution's weights [out, in, h, w] have `out` rows of
    length in * h * w. Biases and other one-dimensional parameters are left out.
    """
    rows = [(a.flatten(1), others[name].flatten(1)) for name, a in some.items() if a.ndim > 1]
    return torch.stack([(1 - _cosine(a, b)).sum() for a, b in rows]).sum()


def squared(some: Gradients, others: Gradients) -> Tensor:
    """Return the squared norm of the difference over all parameters."""
    return torch.stack([(a - others[name]).square().sum() for name, a in some.items()]).sum()


def whole_cosine(some: Gradients, others: Gradients) -> Tensor:
    """The distance `--dis_metric cos`: 1 - <a, b> / (|a| |b| + 1e-6), where the vectors a and b hold all parameters."""
    a, b = (torch.cat([each[name].flatten() for name in some]) for each in (some, others))
    return 1 - _cosine(a, b)


def inner_product(some: Gradients, others: Gradients) -> Tensor:
    """Return the inner product <a, b> over all parameters."""
    return torch.stack([(a * others[name]).sum() for name, a in some.items()]).sum()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    # The derivative of vector_norm at zero is zero, so an all-zero row, such as that of a dead unit, gives no NaN.
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(dim=-1) / (norms + _EPSILON)


DISTANCES: dict[str, Distance] = {"ours": row_cosine, "mse": squared, "cos": whole_cosine}


_CPU_IMAGES = 64  # of a pass; as many synthetic images per class need one pass, and more would need more memory
_GPU_PIXELS = 1280 * 32 * 32
_PIXEL_BYTES = 4100  # of memory per pixel of a pass: 10.8 GB for 2,560 images of 32 px and a ConvNetD3, by `costs`


def default_chunk(
    device: torch.device, batch_real: int, compiled: bool, im_size: Sequence[int], memory: int | None = None
) -> int | None:
    """Return the images per pass; None stands for one class per pass.

    On a CPU classes do not share a pass, which is a tenth slower (`vmap`). On an accelerator as many share one as take
    a quarter of its memory for CIFAR-10 and a ConvNetD3 (untried): all ten of 256 real images with 48 GB, when the CPU
    launches 715 operations per update, or five with 24 GB and 1,413 launches, in place of about 4,800 class by class.
    batch_real: real images per class. memory: that of the device in bytes; None if it is not known: five such classes.
    """
    if device.type == "cpu" and not compiled:
        return min(_CPU_IMAGES, batch_real)
    pixels = _GPU_PIXELS if memory is None else memory // 4 // _PIXEL_BYTES
    images = pixels // math.prod(im_size)
    return images if device.type != "cpu" and not compiled and images >= 2 * batch_real else None


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
    """Return the loss (a scalar without graph) and its gradient with respect to the synthetic images.

    network: [B, ch, ...] -> logits [B, C]; the `.grad` of its parameters is not changed. real: [C * m, ch, ...], m
    images of each of C classes, read one class or group of classes at a time. synthetic: [C * n, ch, ...]. Both are
    grouped by class.
    num_classes: C; 0 for a process that has no classes to match, with a zero loss and an empty gradient.
    augmentation: one parameter set per class, or None. distance: a key of DISTANCES.
    chunk: at most this many images per pass; None for one class per pass. The chunk does not change the result. Classes
    that fit into a chunk together share a pass (`vmap`: more memory, fewer kernel launches). A class larger than a
    chunk is split; its synthetic images take two passes, for their gradient and for the derivative of that gradient.
    compile: e.g. torch.compile, applied to the network's passes. Later calls with the same network reuse the result.
    first_label: label of the first class; the labels of the others follow it.
    Raises InputError for an unknown distance, and ValueError for a network with batch normalisation in training mode:
    call `freeze_batchnorm` first.
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
    """Update the running statistics of BatchNorm with one batch, then freeze them by setting these layers to eval mode.

    images: real images [B, ch, ...] of all classes, because the statistics of a single class differ; the authors take
    16 per class. As in their code, this is one forward pass in training mode. With torch's momentum of 0.1, the
    statistics of a new network become 0.9 times the initial ones (mean 0, variance 1) plus 0.1 times those of the
    batch. `network.train()` unfreezes them.
    """
    network.train()
    with torch.no_grad():
        network(images)
    for module in _batchnorms(network):
        module.eval()


def _match_group(
    passes: _Passes, real: Tensor, synthetic: Tensor, labels: Tensor, distance: Distance
) -> tuple[Tensor, Tensor]:
    """Match k whole classes at once; return the loss and its gradient with respect to synthetic [k * n, ch, ...]."""
    target = passes.gradients(real.unflatten(0, (len(labels), -1)), labels)
    parts, cotangent = passes.step(synthetic.unflatten(0, (len(labels), -1)), labels, target, distance)
    return parts.sum(), cotangent.flatten(0, 1)


def _match_class(
    passes: _Passes, real: Tensor, synthetic: Tensor, label: Tensor, distance: Distance, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """Match one class, whole or in pieces; return the loss and its gradient with respect to synthetic [n, ch, ...]."""
    target = _mean_gradients(passes, real, label, chunk)
    if chunk is None or len(synthetic) <= chunk:
        return passes.step(synthetic, label, target, distance)
    # The chain rule: with v = d distance / d g_syn, the gradient is d <g_syn, v> / dx. g_syn is a mean over the images,
    # so the gradient for one image depends on no other image.
    cotangent, part = grad_and_value(distance)(_mean_gradients(passes, synthetic, label, chunk), target)
    pieces = [
        passes.step(piece, label, cotangent, inner_product)[1] * (len(piece) / len(synthetic))
        for piece in synthetic.split(chunk)
    ]
    return part, torch.cat(pieces)


def _mean_gradients(passes: _Passes, images: Tensor, label: Tensor, chunk: int | None) -> Gradients:
    """Return the gradient g on images [B, ch, ...] of one class, computed in pieces of at most `chunk` images."""
    total: Gradients = {}
    for piece in images.split(chunk or len(images)):
        share = len(piece) / len(images)
        for name, g in passes.gradients(piece, label).items():
            total[name] = total[name] + share * g if name in total else share * g
    return total


class _Passes:
    """Passes of a network over images [B, ch, ...] of one class (label []) or [k, B, ch, ...] of k classes (label [k]).

    One class without compilation uses autograd's tape. All other cases use torch.func, because `compile` and vmap
    support second derivatives only there. Without them torch.func is slower, as it records every backward pass.
    """

    def __init__(self, network: nn.Module, compile: Callable[[Callable[..., Any]], Callable[..., Any]] | None) -> None:
        self.network = network
        # Wrapping a function by torch.compile takes as long as a small pass, so each function is wrapped only once.
        self.compile = None if compile is None else functools.cache(compile)
        self.parameters = {name: p.detach() for name, p in network.named_parameters()}

    def gradients(self, images: Tensor, label: Tensor) -> Gradients:
        """Return the gradient g of one class, a tensor per parameter; of k classes, tensors of shape [k, *shape]."""
        if self.compile is None and label.ndim == 0:
            return _tape_gradients(self.network, self.parameters, images, label)
        pass_ = _gradients if label.ndim == 0 else _gradients_of_classes
        return self._run(pass_, self.network, self.parameters, images, label)

    def step(self, images: Tensor, label: Tensor, target: Gradients, distance: Distance) -> tuple[Tensor, Tensor]:
        """Return distance(g, target) of each class, [] or [k], and its gradient with respect to the images."""
        if self.compile is None and label.ndim == 0:
            images = images.detach().requires_grad_()
            part = distance(_tape_gradients(self.network, self.parameters, images, label), target)
            return part.detach(), torch.autograd.grad(part, images)[0]
        pass_ = _step if label.ndim == 0 else _step_of_classes
        return self._run(pass_, self.network, self.parameters, images, label, target, distance)

    def _run(self, pass_: Callable[..., Any], *inputs: object) -> Any:
        # Only functions of this module are compiled, not closures, so torch reuses the compiled code in later calls.
        return (pass_ if self.compile is None else self.compile(pass_))(*inputs)


def _tape_gradients(network: nn.Module, parameters: Gradients, images: Tensor, label: Tensor) -> Gradients:
    """Compute `_gradients` with autograd's tape; the result has a graph if the images require a gradient."""
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
    """Return the mean cross-entropy of images [B, ch, ...] that share one label (a scalar tensor)."""
    return F.cross_entropy(functional_call(network, parameters, (images,)), label.expand(len(images)))


def _batchnorms(network: nn.Module) -> Sequence[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]
