"""Chooses the device, the precision and the compilation of a run, and describes the hardware."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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

_KINDS = ("cpu", "cuda", "mps", "xpu")
_ALIGNED = 512  # bytes, at whose multiples tensors of one block begin, as those of the CUDA allocator


def accelerator() -> torch.device | None:
    """The kind of accelerator that this machine has, such as cuda, mps or xpu; None if it has a CPU alone."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is the accelerator if there is one, and the CPU otherwise.

    With several processes, `auto` and the name of the accelerator give each process an accelerator of its own and make
    it the current one. Raises InputError if the device does not exist on this machine.
    """
    there = accelerator()
    if name == "auto" and there is None:
        return torch.device("cpu")
    try:
        device = there if name == "auto" and there is not None else torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device '{name}': give auto, {', '.join(_KINDS)}, or one with its number") from error
    if device.type == "cpu":
        return device
    if there is None or device.type != there.type:
        if device.type not in _KINDS:
            raise InputError(f"device '{name}' is not supported: give auto or {', '.join(_KINDS)}")
        found = "no accelerator" if there is None else f"{there.type} as its accelerator"
        other = "" if there is None else f"{there.type} or "
        raise InputError(f"device '{name}' is not there: this machine shows {found}; try --device {other}cpu")
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        shown = f"{count} {device.type} device{'s' * (count != 1)}"
        raise InputError(f"device '{name}' is not there: this machine shows {shown}; try --device cpu")
    if parallel.launch().world == 1:
        return device
    if device.index is not None:
        raise InputError(
            f"device '{name}' is one for {parallel.launch().world} processes: give --device {device.type}, "
            "or leave it out"
        )
    return _own(device.type, count)


def _own(kind: str, count: int) -> torch.device:
    """The accelerator of this process, which becomes the current one."""
    if parallel.backend_of(kind) is None:
        raise InputError(
            f"torch {torch.__version__} exchanges nothing between {kind} devices: start one process, "
            "or give --device cpu"
        )
    index = parallel.launch().local_rank
    if index >= count:
        raise InputError(
            f"torchrun started more processes here than the {count} {kind} devices that this machine shows: "
            f"lower --nproc_per_node to {count}, or give --device cpu"
        )
    choose = _asked(torch.device(kind), "set_device")  # MPS has a single device, and nothing to choose
    if choose is not None:
        choose(index)
    return torch.device(kind, index)


def _asked(device: torch.device, name: str) -> Callable[..., Any] | None:
    """A function of the module of an accelerator, such as torch.cuda.mem_get_info; None if it has no such function."""
    return getattr(torch.get_device_module(device), name, None)


@lru_cache
def lacks(device: torch.device, kind: torch.dtype) -> str:
    """What the device says when it is asked to compute with this type; "" if it can."""
    if device.type in ("cpu", "meta"):
        return ""
    try:
        one = torch.ones(2, 2, dtype=kind, device=device)
        one @ one
    except (RuntimeError, TypeError) as refused:  # MPS has no float64, and says so by a TypeError
        return str(refused).strip().splitlines()[0]
    return ""


def exact(device: torch.device) -> torch.device:
    """Where to compute in float64 for this device: the device itself, or the CPU if the device has no float64."""
    return torch.device("cpu") if lacks(device, torch.float64) else device


@lru_cache
def pins(device: torch.device) -> bool:
    """Whether copies from pinned memory to the device need not be waited for."""
    if device.type in ("cpu", "meta"):
        return False
    try:
        return torch.empty(1).pin_memory().is_pinned()
    except (RuntimeError, NotImplementedError):  # no pinned memory for this kind of device
        return False


@lru_cache
def fuses(device: torch.device) -> bool:
    """Whether SGD makes its step on the device in one operation, for all parameters (`fused`); never on a CPU."""
    if device.type in ("cpu", "meta"):
        return False
    one = torch.ones(1, device=device, requires_grad=True)
    one.grad = torch.ones_like(one)
    try:
        torch.optim.SGD([one], lr=0.1, fused=True).step()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def check_precision(name: str, device: torch.device) -> None:
    """Raises InputError if the device does not support this precision."""
    if name == "tf32" and not has_tf32(device):
        raise InputError("--precision tf32 needs a CUDA GPU with matrix units for it: give fp32 or bf16")
    if name != "bf16":
        return
    refused = lacks(device, torch.bfloat16)
    if not refused and not torch.amp.is_autocast_available(device.type):
        refused = "torch has no autocast for it"
    if refused:
        raise InputError(f"--precision bf16 does not work on {device.type} here ({refused}): give fp32")
    if device.type == "cpu" and parallel.is_main():
        warn_of_slow_bf16()


def has_tf32(device: torch.device) -> bool:
    """Whether the device has matrix units that round to 10 bits of mantissa: NVIDIA's, since Ampere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


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
    with ExitStack() as settings:
        if has_tf32(device):
            settings.enter_context(_tf32(name == "tf32"))
        if torch.amp.is_autocast_available(device.type):
            autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bf16", cache_enabled=False)
            settings.enter_context(autocast)
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Whether CUDA may round to tf32, as it does in convolutions unless it is told not to."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
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
    if device.type != "cpu":
        name = _asked(device, "get_device_name")  # MPS has none: its GPU is a part of the CPU that is named
        described["gpu"] = device.type if name is None else name(device)
    return described


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """The peak memory of this process so far, in bytes.

    `cpu` is the peak of resident memory, or None where the system does not report it (Windows). Of an accelerator that
    reports it, the entry with its name (`cuda`, `xpu`) is the peak of memory that tensors took on it.
    """
    peak = {"cpu": _peak_resident()}
    taken = None if device.type == "cpu" else _asked(device, "max_memory_allocated")
    if taken is not None:
        peak[device.type] = taken(device)
    return peak


def reserved_memory(device: torch.device) -> int:
    """The memory in bytes that this process holds on an accelerator, for tensors there and to come; 0 if unknown."""
    held = _asked(device, "memory_reserved")
    if held is not None:
        return held(device)
    driver = _asked(device, "driver_allocated_memory")  # MPS
    return 0 if driver is None else driver()


def _accelerator_memory(device: torch.device) -> tuple[int | None, int | None]:
    """(free, total) memory of an accelerator in bytes, None where it does not tell."""
    told = _asked(device, "mem_get_info")
    if told is not None:
        try:
            free, total = told(device)
        except RuntimeError:  # drivers of some Intel cards do not tell
            return None, None
        return free, total
    most = _asked(device, "recommended_max_memory")  # MPS, which shares the memory of the machine
    return (None, None) if most is None else (max(0, most() - reserved_memory(device)), most())


def free_memory(device: torch.device) -> int | None:
    """The memory in bytes that is free now: of the accelerator, or on a CPU of the machine and its container (cgroup).

    None where the accelerator, or of a CPU the system (macOS, Windows), does not tell it.
    """
    if device.type != "cpu":
        return _accelerator_memory(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min(free + _free_in_container(), default=None)


def total_memory(device: torch.device) -> int | None:
    """The memory of the device in bytes, of a CPU that of the machine or, if it is less, of its container (cgroup).

    None where the accelerator, or of a CPU the system (Windows), does not tell it, and for the device meta, which
    stores nothing.
    """
    if device.type == "meta":
        return None
    if device.type != "cpu":
        return _accelerator_memory(device)[1]
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


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has computed what it was given; on a CPU nothing is left to wait for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device, through pinned memory where it has that, so that the CPU does not wait."""
    return values.pin_memory().to(device, non_blocking=True) if pins(device) else values.to(device)


def all_to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy CPU tensors to an accelerator in one copy; on it, they are contiguous views of one block of memory.

    Where the device is a CPU they are returned as they are.
    """
    if device.type == "cpu" or not tensors:
        return list(tensors)
    sizes = [-(-each.nbytes // _ALIGNED) * _ALIGNED for each in tensors]
    block = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pins(device))
    for part, each in zip(block.split(sizes), tensors, strict=True):
        part[: each.nbytes].view(each.dtype).copy_(each.reshape(-1))
    there = block.to(device, non_blocking=pins(device)).split(sizes)
    return [part[: each.nbytes].view(each.dtype).view(each.shape) for part, each in zip(there, tensors, strict=True)]
