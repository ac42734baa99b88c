"""A device that is none, on which a step is run to see what a real accelerator would be asked to do.

Tensors on it have a shape and no data (torch's fake tensors), so a step computes nothing and takes no memory, whatever
its size. What lies on the CPU is computed as ever: draws, and copies of what is drawn. The stand-in counts the
operations that the device would execute, and sees what a real one would make slow or refuse:

- operations on tensors of two devices, which fail on a real one;
- the CPU waiting for the device: `.item()`, `.cpu()`, `nonzero`, an index by a mask, ...;
- copies that the CPU waits for: those to the device that are not from pinned memory and `non_blocking`;
- float64, which some devices lack, unless it is to have it.

Not seen are numbers, kernels (cuDNN, MPS, ...), streams, and the memory of the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from standin_device import NAME, WATCHING
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.optim.optimizer import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from common.system.devices import fuses, lacks, pins

# Operations that launch nothing: views, and memory without contents. They are not counted.
LAUNCH_NOTHING = frozenset({
    "_conj", "_neg_view", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal",
    "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "movedim", "new_empty", "new_empty_strided",
    "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold",
    "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "unsqueeze", "view", "view_as_complex", "view_as_real",
})  # fmt: skip


class Refused(RuntimeError):
    """A step asks the device for something that would fail there, or that the CPU would wait for."""


_IN_PLACE = ("_fused_sgd_",)  # which return nothing, and of which torch has no version for tensors without numbers
_TAKES_INDICES = ("index", "index_put", "index_put_", "_index_put_impl_")  # whose indices may lie on the CPU


class _Fakes(FakeTensorMode):
    """Of which copies of fake tensors are, too."""

    def __deepcopy__(self, memo: object) -> _Fakes:
        return self


_FAKES = _Fakes()  # one for all, since caches hold constants on the device


class StandIn(TorchDispatchMode):
    """Inside this context tensors on the stand-in are fake, and what is done to them is watched.

    What would fail on a real device fails. What would be waited for is answered with made-up numbers, and refused
    inside `step`. Whole numbers whose values are known, since they came from the CPU, are answered as they are.
    float64: whether the device has it.
    """

    def __init__(self, float64: bool = False) -> None:
        super().__init__()
        self._float64 = float64
        self._allowed: int | None = None  # waits, inside `step`
        self.launches = 0
        """operations on the device, without those of LAUNCH_NOTHING"""
        self.by_name: dict[str, int] = {}
        """the same by operation"""
        self.waits = 0
        """times that the CPU waits for a result"""
        self.copies = 0
        """copies to the device that are not waited for"""
        self.blocking = 0
        """copies to the device that the CPU waits for"""
        self.capturing = False
        self.types = set[torch.dtype]()
        """those of the results of convolutions"""
        self._fake = _FAKES
        self._made_up = 0
        self._told: torch.UntypedStorage | None = None  # what a number was read from last
        self._pinned = set[int]()  # addresses

    def __enter__(self) -> StandIn:
        # torch.tensor(..., device=...) then makes a tensor on the CPU and copies it, in two operations that are seen.
        lacks.cache_clear()
        pins.cache_clear()
        fuses.cache_clear()
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # Optimisers take all parameters in one operation if they are of these types.
        _foreach_supported_types.append(FakeTensor)
        self._synchronize = torch.accelerator.synchronize
        torch.accelerator.synchronize = lambda *device: self._wait("the CPU waits for the device")
        self._move = nn.Module.to
        nn.Module.to = self._moved  # type: ignore[method-assign]
        super().__enter__()
        WATCHING.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        WATCHING.pop()
        super().__exit__(*error)
        nn.Module.to = self._move  # type: ignore[method-assign]
        torch.accelerator.synchronize = self._synchronize
        _foreach_supported_types.remove(FakeTensor)
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        lacks.cache_clear()
        pins.cache_clear()
        fuses.cache_clear()

    @property
    def _moved(self) -> Callable[..., Any]:
        """nn.Module.to, which puts tensors into the network itself: torch does not do that with fake parameters."""
        move = self._move

        def to(network: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
            there = any(isinstance(each, FakeTensor) for each in (*network.parameters(), *network.buffers()))
            if not there or kwargs or not isinstance(args[0], (str, torch.device)):
                return move(network, *args, **kwargs)
            for module in network.modules() if torch.device(args[0]).type != NAME else ():
                for name, each in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(each.detach().to(args[0]), each.requires_grad))
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(args[0]))
            return network

        return to

    def count_anew(self) -> None:
        """Count from zero."""
        self.launches, self.waits, self.copies, self.blocking, self.by_name = 0, 0, 0, 0, {}
        self.types.clear()

    @contextmanager
    def step(self, waits: int = 0) -> Iterator[None]:
        """Count from zero, and refuse what the CPU would wait for, beyond so many waits for results."""
        self.count_anew()
        self._allowed = waits
        try:
            yield
        finally:
            self._allowed = None

    # -- what is done --------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        namespace, name = _named(func)
        if namespace == "prim":  # asks a tensor what it is
            return func(*args, **kwargs)
        given = _tensors(args, kwargs)
        there = [each for each in given if isinstance(each, FakeTensor)]
        wanted = kwargs.get("device")
        goes = wanted is not None and torch.device(wanted).type == NAME
        if not there and not goes:
            return self._on_cpu(name, func, args, kwargs)
        if name in ("is_pinned", "_pin_memory"):
            raise Refused(f"aten.{name}: memory of the device is not pinned")
        leaves = name == "copy_" and not isinstance(args[0], FakeTensor)
        if leaves or (there and wanted is not None and not goes):
            return self._to_cpu(name, func, args, kwargs)
        here = [each for each in given if not isinstance(each, FakeTensor)]
        if name in ("copy_", "_to_copy", "_foreach_copy_") and here:
            return self._to_device(name, func, args, kwargs, here)
        for each in here:
            if each.ndim and name in _TAKES_INDICES:
                self._wait(f"aten.{name}: an index on the CPU is copied to the device")
            elif each.ndim:
                raise Refused(f"aten.{name} has a tensor {list(each.shape)} on the CPU among those on the device")
        return self._on_device(name, func, args, kwargs, bool(here))

    def _on_cpu(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name == "is_pinned":
            return self._is_pinned(args[0])
        if name == "_pin_memory":
            return self._pin(args[0].clone())
        if not kwargs.get("pin_memory"):
            return func(*args, **kwargs)
        return self._pin(func(*args, **kwargs | {"pin_memory": False}))

    def _pin(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._pinned.add(storage.data_ptr())
        weakref.finalize(storage, self._pinned.discard, storage.data_ptr())
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _on_device(self, name: str, func: Any, args: Any, kwargs: Any, mixed: bool) -> Any:
        if name in ("_local_scalar_dense", "equal", "is_nonzero"):
            return self._answer(name, func, args)
        if name in _IN_PLACE:
            return self._count(name)
        known = self._computed(func, args, kwargs)
        if mixed:
            args, kwargs = tree_map(self._as_fake, args), tree_map(self._as_fake, kwargs)
        try:
            out: Any = _NOTHING if mixed else self._by_shape(func, args, kwargs)
            if out is _NOTHING:
                with self._fake:
                    out = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            self._wait(f"aten.{name} has a result whose shape the CPU has to wait for")
            if known is None:
                raise
            out = tree_map(self._placed, known)
        self._count(name)
        if name == "convolution":
            self.types.add(out.dtype)
        self._check_type(name, out)
        self._remember(out, known)
        return out

    def _by_shape(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operation returns that changes nothing, as torch's fake tensors have it, in a fraction of the time.

        The shapes of the results are those on the device "meta", found once for each set of shapes. _NOTHING for an
        operation whose results that does not tell.
        """
        views = _shares(func)
        if views is None:
            return _NOTHING
        key = (func, _key(args), _key(tuple(kwargs.items())))
        try:
            found = _SHAPES.get(key)
            if found is None:
                on_meta = tree_map(_on_meta, args), tree_map(_on_meta, kwargs)
                found = _SHAPES[key] = tree_map(_Shape.of, func(*on_meta[0], **on_meta[1]))
        except (RuntimeError, NotImplementedError, TypeError):  # of a key as well, which may not be hashable
            return _NOTHING
        base = args[0] if views else None
        return tree_map(lambda each: self._shaped(each, base), found, is_leaf=lambda each: isinstance(each, _Shape))

    def _shaped(self, shape: Any, base: FakeTensor | None) -> Any:
        """A tensor of this shape, which shares the memory of another one if it is a view."""
        if not isinstance(shape, _Shape):
            return shape
        made = torch.empty_strided(shape.size, shape.stride, dtype=shape.dtype, device="meta")
        if base is not None:
            with in_kernel_invocation_manager(self._fake):
                made.set_(base.untyped_storage(), shape.offset, shape.size, shape.stride)
        return FakeTensor(self._fake, made, torch.device(NAME, 0))

    def _to_device(self, name: str, func: Any, args: Any, kwargs: Any, here: list[Tensor]) -> Any:
        """A copy from the CPU."""
        waits = kwargs.get("non_blocking", args[2] if name != "_to_copy" and len(args) > 2 else False) is not True
        pinned = all(map(self._is_pinned, here))
        if self.capturing:
            raise Refused(f"aten.{name}: a copy of {list(here[0].shape)} from the CPU, while a graph is captured")
        if waits or not pinned:
            self.blocking += 1
            why = "is waited for" if waits else "is not from pinned memory"
            if self._allowed is not None:
                raise Refused(f"aten.{name}: the copy of {list(here[0].shape)} to the device {why}")
        else:
            self.copies += 1
        known = self._computed(func, args, kwargs) if name == "_to_copy" else None
        with self._fake:
            out = func(*tree_map(self._as_fake, args), **tree_map(self._as_fake, kwargs))
        self._count(name)
        self._check_type(name, out)
        if name == "_to_copy":
            self._remember(out, known)
        elif name == "copy_":
            same = not args[0].is_floating_point() and args[0].shape == args[1].shape
            args[0].known = args[1].to(args[0].dtype).clone() if same else None
        return out

    def _to_cpu(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A tensor on the CPU made of one on the device. A copy of its numbers is waited for."""
        if name in ("copy_", "_to_copy"):
            self._wait(f"aten.{name}: a copy to the CPU")
        return func(*tree_map(self._real, args), **tree_map(self._real, kwargs))

    def _answer(self, name: str, func: Any, args: Any) -> Any:
        # tolist() reads the numbers of a tensor one by one here, and all at once on a device.
        if self._told is None or self._told is not args[0].untyped_storage():
            self._wait(f"aten.{name}: the CPU waits for a number")
        self._told = args[0].untyped_storage()
        return func(*tree_map(self._real, args))

    # -- fake and real ---------------------------------------------------------------------------------------------

    def _as_fake(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._fake.from_tensor(value) if real else value

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        with self._fake:
            return torch.empty(value.shape, dtype=value.dtype, device=NAME)

    def _real(self, value: Any) -> Any:
        """Numbers in place of a tensor on the device: those that are known, else made-up ones, each time others."""
        if not isinstance(value, FakeTensor):
            return value
        known = _known(value)
        if known is not None:
            return known
        self._made_up += value.is_floating_point()
        return torch.full(value.shape, 1 + self._made_up / 1024).to(value.dtype)

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result on the CPU, if it is of whole numbers that are all known; None otherwise."""
        given = _tensors(args, kwargs)
        if _writes(func):
            for each in given:
                if isinstance(each, FakeTensor):
                    each.known = None  # type: ignore[attr-defined]
            return None
        if any(each.is_floating_point() or (isinstance(each, FakeTensor) and _known(each) is None) for each in given):
            return None
        kwargs = {key: torch.device("cpu") if key == "device" else self._real(each) for key, each in kwargs.items()}
        return func(*tree_map(self._real, args), **kwargs)

    def _remember(self, out: Any, known: Any) -> None:
        if known is None:
            return
        for each, real in zip(tree_leaves(out), tree_leaves(known), strict=True):
            if isinstance(each, FakeTensor) and not each.is_floating_point():
                each.known = real  # type: ignore[attr-defined]

    # -- what is seen ----------------------------------------------------------------------------------------------

    def _count(self, name: str) -> None:
        if name not in LAUNCH_NOTHING and not self.capturing:
            self._told = None
            self.launches += 1
            self.by_name[name] = self.by_name.get(name, 0) + 1

    def _wait(self, why: str) -> None:
        self.waits += 1
        if self.capturing:
            raise Refused(f"{why}, while a graph is captured")
        if self._allowed is not None and self.waits > self._allowed:
            raise Refused(why)

    def _check_type(self, name: str, out: Any) -> None:
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.dtype == torch.float64 and not self._float64:
                raise TypeError(f"aten.{name}: the stand-in has no float64")


class _Shape(NamedTuple):
    """All that a tensor without numbers is."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return cls(tuple(value.shape), value.stride(), int(value.storage_offset()), value.dtype)


_SHAPES: dict[Any, Any] = {}
_NOTHING = object()


@cache
def _shares(func: Any) -> bool | None:
    """Whether the results are views of the first argument; None for an operation that changes something."""
    schema = func._schema
    if schema.is_mutable or func.namespace != "aten" or torch.Tag.data_dependent_output in func.tags:
        return None
    aliases = [each.alias_info is not None for each in schema.returns]
    if not any(aliases):
        return False
    return True if all(aliases) and schema.arguments[0].alias_info is not None else None


def _key(value: Any) -> Any:
    """What of an argument decides on the shapes of results. 1, 1.0 and True are different."""
    if isinstance(value, FakeTensor):
        return _Shape.of(value)
    if isinstance(value, (list, tuple)):
        return tuple(map(_key, value))
    return type(value), value


def _on_meta(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        made = torch.empty(0, dtype=value.dtype, device="meta")
        return made.as_strided(value.shape, value.stride(), value.storage_offset())
    return torch.device("meta") if isinstance(value, torch.device) else value


@cache
def _named(func: Any) -> tuple[str, str]:
    """Namespace and name of an operation."""
    return func.namespace, func.overloadpacket.__name__


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors among an operation's arguments, which are tensors and lists of them."""
    found: list[Tensor] = []
    for each in (*args, *kwargs.values()):
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (list, tuple)):
            found += [one for one in each if isinstance(one, Tensor)]
    return found


@cache
def _writes(func: Any) -> bool:
    """Whether an operation writes into a tensor that it is given."""
    return bool(func._schema.is_mutable)


def _known(tensor: FakeTensor) -> Tensor | None:
    """The whole numbers of a tensor on the device, if they are known."""
    return getattr(tensor, "known", None)
