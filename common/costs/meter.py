"""What a computation costs, without doing it: floating point operations, and the most memory that it holds at a time.

On the meta device a tensor has a shape and no numbers, so the very code that a run executes can be weighed before it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry


class Cost(NamedTuple):
    """flops: of convolutions and matrix products, a multiplication and an addition being two. bytes: at the peak."""

    flops: int
    bytes: int


def weigh(function: Callable[[], object]) -> Cost:
    """The cost of one call: what it computes, and the most that tensors which it makes hold at a time.

    What a backend needs beside tensors, such as the workspace of a convolution, is not seen.
    """
    with _Scales() as scales:
        function()
    return Cost(scales.flops, scales.most)


class _Scales(TorchDispatchMode):
    """Sees every operation, and every tensor that one makes, whose memory counts until nothing refers to it any more.

    The formulas are those of torch's FlopCounterMode, which refuses derivatives with respect to a network's input.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.now = self.most = 0
        self._seen: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        tree_map_only(Tensor, self._add, out)
        return out

    def _add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # shared by views, which cost nothing
        if self._seen.get(id(storage)) is not storage:
            self._seen[id(storage)] = storage
            weakref.finalize(storage, self._remove, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
        return tensor

    def _remove(self, size: int) -> None:
        self.now -= size
