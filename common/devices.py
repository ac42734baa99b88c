"""Where and how precisely a run computes: device, precision, compilation."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch

from common.errors import InputError

Precision = Literal["fp32", "tf32", "bf16"]
Function = TypeVar("Function", bound=Callable[..., Any])


def resolve_device(name: str) -> torch.device:
    """`auto` is the first CUDA GPU if there is one, else the CPU. Raises InputError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device '{name}': give auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device '{name}' is not supported: give auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device '{name}' is not there: this machine shows {torch.cuda.device_count()} CUDA GPUs; try --device cpu"
        )
    return device


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Networks inside compute in fp32, tf32 (CUDA matrix units, 10-bit mantissa) or bf16 (autocast).

    Nothing outside does: the coefficients and their transform stay there, in float32.
    """
    if device.type != "cuda":
        if name == "tf32":
            raise InputError("--precision tf32 needs a CUDA GPU: give fp32 or bf16")
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16"):
            yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def compile_or_not(function: Function, wanted: bool, say: Callable[[str], object]) -> Function:
    """`torch.compile(function)` if wanted and possible here; otherwise the function itself, with a sentence why."""
    if not wanted:
        return function
    try:
        # Compilation is lazy: only a call shows whether this machine has what it needs (a C++ compiler, Triton).
        torch.compile(_probe)(torch.ones(8))
    except Exception as error:  # the backends raise many types, some of them private
        say(f"not compiled ({type(error).__name__}: {str(error).splitlines()[0]}); the run goes on without --compile")
        return function
    return torch.compile(function)  # type: ignore[return-value]


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """What a figure measured here has to name."""
    described: dict[str, Any] = {
        "device": str(device),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described
