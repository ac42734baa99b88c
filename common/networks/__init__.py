"""Builds networks by name: `build_network("ConvNetD3", channels, num_classes, im_size)`.

Every network maps B normalised images [B, ch, *im_size], with ch channels, to logits [B, C] for C classes. Its method
`embed(x)` returns the F flattened features [B, F] that the classifier sees. Weights start from PyTorch's default
initialisation. To add a family, write one module with a `build` function (see `Family`) and add one line to `FAMILIES`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from common.networks import alexnet, convnet, convnet3d, resnet, small, vgg, vit
from common.networks.network import Network
from common.system.devices import all_to_device
from common.system.errors import InputError, nearest_names

__all__ = ["FAMILIES", "Family", "Network", "build_network", "drawn_in", "has_batchnorm", "has_dropout", "reinitialise"]


class Family(NamedTuple):
    """A family of architectures that share one `build` function."""

    build: Callable[[str, int, int, Sequence[int]], Network | None]  # returns None if the name is of another family
    names: tuple[str, ...]  # the common names of the family, with which a misspelt name is compared
    accepts: str  # the accepted names, described for error messages


FAMILIES = (
    Family(convnet.build, convnet.NAMES, convnet.ACCEPTS),
    Family(small.build, small.NAMES, small.ACCEPTS),
    Family(alexnet.build, alexnet.NAMES, alexnet.ACCEPTS),
    Family(vgg.build, vgg.NAMES, vgg.ACCEPTS),
    Family(resnet.build, resnet.NAMES, resnet.ACCEPTS),
    Family(vit.build, vit.NAMES, vit.ACCEPTS),
    Family(convnet3d.build, convnet3d.NAMES, convnet3d.ACCEPTS),
)


def build_network(name: str, channels: int, num_classes: int, im_size: Sequence[int]) -> Network:
    """A freshly initialised network for images [B, channels, *im_size], in training mode, on the CPU.

    The weights are drawn from torch's global generator, as in every PyTorch layer. Call `reinitialise` for weights that
    depend only on a seed. The names are those of the authors' networks.py and its get_network.
    Raises InputError if the name is unknown or the network cannot take images of this size.
    """
    if channels < 1 or num_classes < 1 or not im_size or min(im_size) < 1:
        given = f"{channels} channels, {num_classes} classes, image size {tuple(im_size)}"
        raise InputError(f"A network needs at least one channel, one class and one pixel; it was given {given}.")
    for family in FAMILIES:
        network = family.build(name, channels, num_classes, im_size)
        if network is not None:
            return network
    nearest = nearest_names(name, [known for family in FAMILIES for known in family.names])
    first = nearest.replace(" or ", ", ").split(", ")[0]
    accepted = next(family.accepts for family in FAMILIES if first in family.names)
    raise InputError(f"There is no network '{name}'. Did you mean {nearest}? Names of that kind: {accepted}.")


def reinitialise(network: nn.Module, seed: int) -> None:
    """Give every layer new initial weights in place, and reset the statistics of BatchNorm layers.

    The weights are the same as in a network built right after `torch.manual_seed(seed)`. They do not depend on the
    device, because the numbers are drawn on the CPU. The global random state and the gradients are left unchanged.
    Raises TypeError if a module owns parameters but has no `reset_parameters`: its parameters would stay trained
    without notice.
    """
    for module in network.modules():
        if not hasattr(module, "reset_parameters") and next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(module).__name__} owns parameters: it needs a reset_parameters method.")
    twin = drawn_in(network)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the generators of the GPUs, which `fork_rng` does not restore here.
        torch.default_generator.manual_seed(seed)
        for module in twin.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    if twin is not network:
        targets, sources = _tensors(network), _tensors(twin)
        with torch.no_grad():
            torch._foreach_copy_(targets, all_to_device([each.detach() for each in sources], targets[0].device))


def drawn_in(network: nn.Module) -> nn.Module:
    """The network that `reinitialise` draws weights in: this one, if that gives the same weights as a new network.

    Otherwise a copy of it on contiguous CPU tensors, whose weights are yet to be drawn.
    """
    return network if _drawable_in_place(network) else _plain_twin(network)


def has_batchnorm(network: nn.Module) -> bool:
    """Whether any layer is a BatchNorm layer, so that the images of one batch influence each other's features."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def has_dropout(network: nn.Module) -> bool:
    """Whether any layer is a dropout layer with p > 0; dropout with p = 0 draws no random numbers."""
    return any(isinstance(module, _DropoutNd) and module.p > 0 for module in network.modules())


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    return [*network.parameters(), *network.buffers()]


def _drawable_in_place(network: nn.Module) -> bool:
    """Whether drawing the weights in place gives the same weights as a new network: all tensors contiguous, on the CPU.

    Random numbers fill a tensor in the order of its memory, so a channels-last weight would get them in another order.
    """
    return all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in _tensors(network))


def _plain_twin(network: nn.Module) -> nn.Module:
    """A copy of the network on contiguous CPU tensors; parameters are left uninitialised, to be drawn next.

    So are the statistics of BatchNorm layers, to be reset next: the CPU does not wait for their values.
    """
    placed: dict[int, object] = {}
    for p in network.parameters():
        placed[id(p)] = nn.Parameter(_blank(p), requires_grad=p.requires_grad)
    for module in network.modules():
        for buffer in module.buffers(recurse=False):
            reset = isinstance(module, _BatchNorm)
            placed[id(buffer)] = _blank(buffer) if reset else buffer.detach().cpu().contiguous()
    return copy.deepcopy(network, placed)


def _blank(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
