"""Counts the floating point operations and the peak memory of a computation without computing anything.

On the meta device a tensor has a shape and no data, so the code of a run can be measured before the run.
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
    """The cost of a computation.

    flops: FLOPs of convolutions and matrix products; a multiplication and an addition count as two. bytes: the peak
    memory of tensors.
    """

    flops: int
    bytes: int


def weigh(function: Callable[[], object]) -> Cost:
    """Measure the cost of one call: its FLOPs, and the peak memory of the tensors that the call creates.

    Memory that a backend needs besides tensors, such as the workspace of a convolution, is not counted.
    """
    with _Scales() as scales:
        function()
    return Cost(scales.flops, scales.most)


class _Scales(TorchDispatchMode):
    """Counts the FLOPs of every operation, and the memory of every tensor until nothing refers to the tensor.

    The formulas are those of torch's FlopCounterMode. That class itself cannot be used, because it refuses derivatives
    with respect to a network's input.
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
        storage = tensor.untyped_storage()  # views share a storage, so they add no memory
        if self._seen.get(id(storage)) is not storage:
            self._seen[id(storage)] = storage
            weakref.finalize(storage, self._remove, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
        return tensor

    def _remove(self, size: int) -> None:
        self.now -= size
