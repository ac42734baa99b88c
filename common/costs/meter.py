"""Counts the floating point operations and the peak memory of a computation without computing anything.

On the meta device a tensor has a shape and no data, so the code of a run can be measured before the run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and what torch wraps around each operation in case it were takes time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = _key(func, args, kwargs)
        known = None if key is None else _known.get(key)
        if known is None:
            out = func(*args, **kwargs)
            flops = flops_of(func, args, kwargs, out)
            if key is not None and len(_known) < _MOST_KNOWN and (new := _remembered(flops, out, (args, kwargs))):
                _known[key] = new
        else:
            out, flops = known.outputs(), known.flops
        self.flops += flops
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self._add(each)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # views share a storage, so they add no memory
        if self._seen.get(id(storage)) is not storage:
            self._seen[id(storage)] = storage
            weakref.finalize(storage, self._remove, storage.nbytes())
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)

    def _remove(self, size: int) -> None:
        self.now -= size


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """The FLOPs of an operation that a TorchDispatchMode sees: 0 unless it is a convolution or a matrix product.

    A gradient of a convolution takes as many as the convolution. Torch's own formula says so too if it has one group;
    with more it counts the gradient of the weights once for every group.
    """
    from torch.utils.flop_counter import conv_flop_count, flop_registry  # not before it is needed: it imports triton

    packet = getattr(func, "overloadpacket", None)
    if packet is torch.ops.aten.convolution_backward:
        gradient, images, weight, transposed, wanted = (args[i] for i in (0, 1, 2, 7, 10))
        return (wanted[0] + wanted[1]) * conv_flop_count(images.shape, weight.shape, gradient.shape, transposed)
    formula = flop_registry.get(packet)
    return 0 if formula is None else formula(*args, **kwargs, out_val=out)


# -- what operations return, remembered ------------------------------------------------------------------------------
# On the meta device torch derives the form of most results in Python, which takes fifty times as long as creating the
# tensors. A run repeats a few operations many times, so the results of each are derived once.


class _Form(NamedTuple):
    """All that a tensor on the meta device has, if it is the first to use its storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> _Form:
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _Known(NamedTuple):
    """The FLOPs of an operation and the forms of the new tensors that it returns, None for a result that is None.

    single: whether it returns one tensor instead of a tuple.
    """

    flops: int
    forms: tuple[_Form | None, ...]
    single: bool

    def outputs(self) -> Any:
        made = tuple(None if form is None else form.tensor() for form in self.forms)
        return made[0] if self.single else made


_MOST_KNOWN = 1 << 16
_known: dict[Hashable, _Known] = {}
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def _key(func: Any, args: Any, kwargs: Any) -> Hashable | None:
    """What determines the form of an operation's results; None if the operation writes into tensors or makes views."""
    if not _makes_tensors(func):
        return None
    try:
        # The default type is that of a tensor of integers times a float.
        return (
            func,
            torch.get_default_dtype(),
            tuple(_parts(args)),
            tuple(_parts(each for pair in kwargs.items() for each in pair)),
        )
    except TypeError:
        return None


@cache
def _makes_tensors(func: Any) -> bool:
    return not func._schema.is_mutable and all(each.alias_info is None for each in func._schema.returns)


def _parts(values: Iterable[Any]) -> Iterator[Hashable]:
    """The hashable forms of an operation's arguments. Raises TypeError for one of a kind that is not known here."""
    for value in values:
        if isinstance(value, Tensor):
            if not _is_plain(value):
                raise TypeError
            yield _Form.of(value)
        elif isinstance(value, (list, tuple)):
            yield tuple(_parts(value))
        elif isinstance(value, _PLAIN):
            yield type(value), value  # 1, 1.0 and True are equal, but give results of different types
        else:
            raise TypeError


def _is_plain(tensor: Tensor) -> bool:
    """Whether the results of operations on this tensor depend on its form alone."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_meta
        and tensor.layout == torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _remembered(flops: int, out: Any, args: Any) -> _Known | None:
    """An operation's results, to be created again; None if they are more than new tensors without data."""
    outputs = out if isinstance(out, tuple) else (out,)
    new = [each for each in outputs if each is not None]
    if not all(isinstance(each, Tensor) and _is_plain(each) for each in new):
        return None
    forms = tuple(None if each is None else _Form.of(each) for each in outputs)
    if any(
        form.tensor().untyped_storage().nbytes() != each.untyped_storage().nbytes()
        for form, each in zip(filter(None, forms), new, strict=True)
    ):
        return None
    # Some operations return an argument or a view of it, although they do not declare it.
    given = {each.untyped_storage()._cdata for each in tree_leaves(args) if isinstance(each, Tensor)}
    own = {each.untyped_storage()._cdata for each in new}
    return _Known(flops, forms, not isinstance(out, tuple)) if len(own) == len(new) and not own & given else None
