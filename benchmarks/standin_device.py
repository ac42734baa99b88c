"""Makes the stand-in of standin.py a device of torch: what torch asks of a kind of device, as it asks torch.cuda."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

NAME = "standin"

# What autocast computes in the lower type, and what in float32, of what networks and losses here use
# (docs.pytorch.org/docs/stable/amp.html). Torch has no such list for a device that it does not know.
_IN_LOWER = (
    "addmm",
    "baddbmm",
    "bmm",
    "conv1d",
    "conv2d",
    "conv3d",
    "linear",
    "matmul",
    "mm",
    "scaled_dot_product_attention",
)
_IN_FLOAT32 = (
    "cosine_similarity", "group_norm", "layer_norm", "log_softmax.int", "nll_loss", "norm.Scalar", "prod",
    "softmax.int", "sum", "sum.dim_IntList",
)  # fmt: skip


def can_stand_in() -> str:
    """Why this version of torch cannot have a stand-in; "" if it can."""
    from torch.utils import backend_registration

    if hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return ""
    return f"torch {torch.__version__} cannot register a device in Python"


class Watch(Protocol):
    """What counts on the device."""

    launches: int
    by_name: dict[str, int]
    capturing: bool


WATCHING: list[Watch] = []
"""those that are entered, the innermost last"""


class _Stream:
    """What torch.cuda.Stream is for CUDA. Order is kept anyway: nothing is computed."""

    def __init__(self, device: object = None) -> None:
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass


class _Graph:
    """What torch.cuda.CUDAGraph is for CUDA: one launch for all that was captured."""

    def replay(self) -> None:
        WATCHING[-1].launches += 1
        by_name = WATCHING[-1].by_name
        by_name["graph"] = by_name.get("graph", 0) + 1


@contextmanager
def _capturing(graph: _Graph, stream: object = None) -> Iterator[None]:
    """What torch.cuda.graph is for CUDA: what is captured is not launched, and a wait or a copy is refused."""
    WATCHING[-1].capturing = True
    try:
        yield
    finally:
        WATCHING[-1].capturing = False


_MEMORY = 80 * 2**30  # bytes that the device tells: with as much, TM keeps the graphs of a published update


class _Module:
    """What torch.cuda is for CUDA."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass

    def mem_get_info(self, device: object = None) -> tuple[int, int]:
        return _MEMORY, _MEMORY

    CUDAGraph, Stream = _Graph, _Stream
    graph = staticmethod(_capturing)

    def stream(self, stream: _Stream) -> AbstractContextManager[None]:
        return nullcontext()

    def current_stream(self, device: object = None) -> _Stream:
        return _Stream()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_kept: list[object] = []


def register() -> torch.device:
    """Make the stand-in this process's accelerator, for good: do it in a process of its own. Returns the device."""
    from torch.utils import backend_registration

    if not _kept:
        # Not in versions before 2.10 or so: see `can_stand_in`.
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
        fallback = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
        fallback.fallback(torch.library.fallthrough_kernel)
        library = torch.library.Library("aten", "IMPL")
        for name, kind in (*((each, None) for each in _IN_LOWER), *((each, torch.float32) for each in _IN_FLOAT32)):
            library.impl(name, _casting(name, kind), "AutocastPrivateUse1")
        _kept.extend((fallback, library))
    return torch.device(NAME, 0)


def _casting(name: str, kind: torch.dtype | None) -> Callable[..., Any]:
    """An operation that casts its floating-point arguments, as autocast has it. kind: None for autocast's own type."""
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
    key = torch._C._parse_dispatch_key("AutocastPrivateUse1")
    assert key is not None
    keys = torch._C.DispatchKeySet(key)

    def call(*args: Any, **kwargs: Any) -> Any:
        to = kind or torch.get_autocast_dtype(NAME)

        def cast(value: Any) -> Any:
            narrow = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(to) if narrow and value.device.type == NAME else value

        args, kwargs = tree_map(cast, (args, kwargs))
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*args, **kwargs)

    return call
