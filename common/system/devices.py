"""Chooses the device, the precision and the compilation of a run, and describes the hardware."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from common.system import parallel
from common.system.errors import InputError

# What /proc/cpuinfo calls it: x86 with AVX-512 or AMX, ARM.
CPU_INFO = Path("/proc/cpuinfo")
_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})

Precision = Literal["fp32", "tf32", "bf16"]


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first CUDA GPU if there is one, and the CPU otherwise.

    With several processes, `auto` and `cuda` give each process its own GPU and make that GPU the current one. Raises
    InputError if the device does not exist on this machine.
    """
    if parallel.launch().world > 1 and torch.cuda.is_available() and name in ("auto", "cuda"):
        return _own_gpu()
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
    if parallel.launch().world > 1 and device.index is not None and device.type == "cuda":
        raise InputError(
            f"device '{name}' is one for {parallel.launch().world} processes: give --device cuda, or leave it out"
        )
    return device


def _own_gpu() -> torch.device:
    there, index = torch.cuda.device_count(), parallel.launch().local_rank
    if index >= there:
        raise InputError(
            f"torchrun started more processes here than the {there} CUDA GPUs that this machine shows: "
            f"lower --nproc_per_node to {there}, or give --device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def check_precision(name: str, device: torch.device) -> None:
    """Raises InputError if the device does not support this precision."""
    if name == "tf32" and device.type != "cuda":
        raise InputError("--precision tf32 needs a CUDA GPU: give fp32 or bf16")
    if name == "bf16" and device.type == "cpu" and parallel.is_main():
        warn_of_slow_bf16()


@lru_cache
def warn_of_slow_bf16() -> None:
    """Warn, once, of a CPU without arithmetic in bf16: 0.4 GFLOP/s were measured on one, and 34 in fp32."""
    if not has_bf16():
        tqdm.write(
            "warning: this CPU has no bf16 arithmetic, so --precision bf16 may take many times as long as fp32: leave "
            "it out, unless the rounding is what you want",
            file=sys.stderr,
        )


def has_bf16() -> bool:
    """Whether the CPU computes in bf16, as far as the system tells (Linux); True elsewhere."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), None)
    return flags is None or not _BF16.isdisjoint(flags)


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Inside this context, networks compute in fp32, tf32 (CUDA matrix units, 10-bit mantissa) or bf16 (autocast).

    The DCT coefficients and their transform are computed outside the context, in float32. Weights are cast again at
    each use: autocast's cache is off, because it would keep the weights of the first step until the context ends.
    """
    check_precision(name, device)
    if device.type != "cuda":
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16", cache_enabled=False):
            yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=name == "bf16", cache_enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def can_compile() -> bool:
    """Whether `torch.compile` works on this machine; if it does not, one printed sentence says why."""
    try:
        # Compilation is lazy: only a call shows whether its tools (a C++ compiler, Triton) are on this machine.
        torch.compile(_probe)(torch.ones(8))
    except Exception as error:  # the backends raise many types, some of them private
        reason = str(error).strip().splitlines() or [""]
        tqdm.write(f"cannot compile here ({type(error).__name__}: {reason[0]}): the run goes on without --compile")
        return False
    return True


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """The hardware and software to name beside every figure that is measured on this machine, as JSON values."""
    described: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": parallel.world(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """The peak memory of this process so far, in bytes.

    `cpu` is the peak of resident memory, or None where the system does not report it (Windows). On a CUDA device,
    `cuda` is the peak of memory that tensors took on that device.
    """
    peak = {"cpu": _peak_resident()}
    if device.type == "cuda":
        peak["cuda"] = torch.cuda.max_memory_allocated(device)
    return peak


def free_memory(device: torch.device) -> int | None:
    """The memory in bytes that is free now: of the GPU, or on a CPU of the machine and of its container (cgroup).

    None on a CPU where the system does not tell it (macOS, Windows).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(free + _free_in_container(), default=None)


def total_memory(device: torch.device) -> int | None:
    """The memory of the device in bytes, of a CPU that of the machine or, if it is less, of its container (cgroup).

    None on a CPU where the system does not tell it (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    return min([machine, *(limit for limit, _ in _container())])


def resident_memory() -> int:
    """The memory in bytes that this process takes now, as far as the system tells (Linux); otherwise 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _free_in_container() -> list[int]:
    """What the limit of this container leaves, in bytes; [] if there is no limit."""
    return [max(0, limit - usage) for limit, usage in _container()]


def _container() -> list[tuple[int, int]]:
    """(limit, usage) of this container's memory, in bytes; [] if there is no limit."""
    for folder, limit, usage in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),  # version 1
    ):
        try:
            words = [(Path(folder) / name).read_text(encoding="ascii").strip() for name in (limit, usage)]
        except OSError:
            continue
        if words[0] != "max":
            return [(int(words[0]), int(words[1]))]
    return []


def _peak_resident() -> int | None:
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * (1 if sys.platform == "darwin" else 1024)  # macOS reports bytes, other systems KiB


def _cpu_name() -> str:
    """The CPU's model name on Linux; on other systems, what `platform` reports."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device, for a GPU through pinned memory, so that the CPU does not wait for the copy."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
