"""What an architecture is, in two values that a synthetic-set file keeps: how many parameters, and a hash.

A name such as ConvNetD3 says nothing about another version of this code, or about a family of one's own under the same
name. The hash tells whether a network built by the name computes what it did when the set was made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from common.networks import build_network
from common.system.errors import InputError
from common.system.files import json_checksum
from common.system.seeds import generator

_STEP = 1e-4  # of the largest output: outputs are rounded to it


def architecture_of(network: nn.Module, channels: int, im_size: Sequence[int]) -> dict[str, Any]:
    """{"parameters": their number, "hash"} of a network for images [B, channels, *im_size]; it is left as it was.

    The hash is of the names and shapes of the parameters, and of what the network computes from one fixed image in
    testing mode, on the CPU in float64, with weights that are drawn for this alone: every output divided by the largest
    magnitude and rounded to 1e-4, far above the rounding errors of any machine. Names of classes and modules of Python
    have no part in it.
    """
    parameters = dict(network.named_parameters())
    weights = {name: _drawn(tensor, number) for number, (name, tensor) in enumerate(parameters.items())}
    buffers = {name: _double(buffer.detach().cpu()) for name, buffer in network.named_buffers()}
    image = _uniform((1, channels, *im_size), "architecture image")
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            outputs = torch.func.functional_call(network, weights | buffers, (image,))
    finally:
        for module, mode in training.items():
            module.training = mode
    rounded = (outputs / outputs.abs().max().clamp_min(1e-300) / _STEP).round().long()
    told = [[name, *tensor.shape] for name, tensor in parameters.items()]
    return {
        "parameters": sum(tensor.numel() for tensor in parameters.values()),
        "hash": json_checksum([told, rounded.tolist()]),
    }


@lru_cache
def architecture(name: str, channels: int, num_classes: int, im_size: tuple[int, ...]) -> dict[str, Any] | None:
    """`architecture_of` the network that `build_network` builds by a name; None where it builds none of this size."""
    try:
        with torch.random.fork_rng(devices=[]):  # building a layer draws its weights from the global random state
            network = build_network(name, channels, num_classes, im_size)
    except InputError:
        return None
    return architecture_of(network, channels, im_size)


def check_architecture(network: nn.Module, name: str, stored: Any, file: str, image: tuple[int, ...]) -> None:
    """Raise InputError if a network is not the one of this name that a file was written for.

    stored: what the file says, None if nothing. image: (channels, *sides).
    """
    if stored is None:
        return
    found = architecture_of(network, image[0], image[1:])
    if found != stored:
        counts = f"{stored['parameters']:,} parameters there, {found['parameters']:,} here"
        raise InputError(
            f"{file} was made for a {name} that is another network than the {name} of this code ({counts}): evaluate "
            "it with the version that made it, or give another network with --model"
        )


def _drawn(tensor: Tensor, number: int) -> Tensor:
    """Weights of the shape of a parameter, float64, with the spread that keeps the scale of what they multiply."""
    uniform = _uniform(tensor.shape, "architecture", number)
    if tensor.ndim < 2:  # of a bias, or the factors of a norm
        return uniform
    return uniform * math.sqrt(6 / max(1, tensor[0].numel()))


def _uniform(shape: Sequence[int], purpose: str, *numbers: int) -> Tensor:
    """Numbers from -1 to 1, float64. Those of a CPU generator are the same on every machine, type by type."""
    drawn = torch.rand(tuple(shape), generator=generator(0, purpose, *numbers), dtype=torch.float32)
    return 2 * drawn.double() - 1


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
