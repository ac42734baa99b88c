"""Evaluation pools (`--eval_mode`): the architectures that a synthetic set is tested on, as in the authors' scripts.

S      the distillation network; if its name contains BN, the name is cut before BN, so there is no batch normalisation
SS     the distillation network, with its name unchanged
C      the distillation network and ConvNet
M      four architectures; with --eval_protocol glad, the distillation network and four others
CIFAR  the distillation network and the CIFAR variants of four others
B      five architectures, each with batch normalisation
W      ConvNets of different widths
D      ConvNets of different depths
A      ConvNets with different activations
P      ConvNets with different poolings
N      ConvNets with different norms
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from common.networks import Network, build_network
from common.system.errors import InputError

EvalMode = Literal["S", "SS", "M", "B", "W", "D", "A", "P", "N", "C", "CIFAR"]
EvalProtocol = Literal["dc", "glad"]

_POOLS = {
    "M": ("ConvNet", "AlexNet", "VGG11", "ResNet18"),
    "B": ("ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"),
    "W": ("ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"),
    "D": ("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"),
    "A": ("ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"),
    "P": ("ConvNetNP", "ConvNetMP", "ConvNetAP"),
    "N": ("ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"),
}
_OTHERS = ("ResNet18", "VGG11", "AlexNet", "ViT")  # GLaD's pool, together with the distillation network


def pool_names(mode: EvalMode, model: str, protocol: EvalProtocol = "dc") -> tuple[str, ...]:
    """The names of the evaluation networks of a pool, without duplicates.

    model: the name of the distillation network. The pools S, SS, C and CIFAR contain this network.
    protocol: decides what M is: with "dc" the pool of DC, DM and TM, with "glad" that of ImageNet-abcde, which contains
    the distillation network.
    """
    if mode == "S":
        return (model.partition("BN")[0].rstrip("_"),)
    if mode == "SS":
        return (model,)
    if mode == "C":
        return tuple(dict.fromkeys((model, "ConvNet")))
    if mode == "CIFAR":
        return tuple(dict.fromkeys((model, *(f"{other}CIFAR" for other in _OTHERS))))
    if mode == "M" and protocol == "glad":
        return tuple(dict.fromkeys((model, *_OTHERS)))
    return _POOLS[mode]


def build_pool(
    mode: EvalMode,
    model: str,
    channels: int,
    num_classes: int,
    im_size: Sequence[int],
    protocol: EvalProtocol = "dc",
) -> dict[str, Network]:
    """The networks of `pool_names` by name, for images [B, channels, *im_size].

    Raises InputError if one of them cannot be built.
    """
    built = {}
    for name in pool_names(mode, model, protocol):
        try:
            built[name] = build_network(name, channels, num_classes, im_size)
        except InputError as error:
            if name == model:
                raise
            raise InputError(f"--eval_mode {mode} tests {name}: {error}") from error
    return built


def principal(names: Iterable[str], model: str) -> str:
    """The name of the network whose accuracy represents the pool.

    This is the distillation network `model` if the pool contains it, and otherwise the first network of the pool.
    """
    names = list(names)
    return model if model in names else names[0]
