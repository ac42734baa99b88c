"""What a script sets up before torch is loaded: how idle threads wait, and how freed memory is kept.

Every script imports this module first. It acts only where a script of this project is the program that runs: who
imports `common`, or a script as a module, gets nothing changed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
# What lies beside `common` may be anything: in an installed copy all other packages, in a checkout its environment.
_PROGRAMS = {
    "common", "DM", "DC", "TM", "3D-MNIST", "ImageNet-abcde", "corruption-exp", "benchmarks", "ablate.py", "demo.py",
    "gpu.py", "reproduce.py",
}  # fmt: skip
# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEPT = 1 << 30  # bytes at the end of the heap that are free and yet not given back
_STEP = 64 << 20  # bytes by which the heap grows at least


def is_program() -> bool:
    """Whether the running program is a script of this project that has not loaded torch yet."""
    file = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    ours = file.is_relative_to(_ROOT) and file != _ROOT and file.relative_to(_ROOT).parts[0] in _PROGRAMS
    return ours and "torch" not in sys.modules


def wait_passively() -> None:
    """Let idle threads sleep instead of spin, unless OMP_WAIT_POLICY is set: spinning, two processes stall each other.

    A digits run beside one other busy process took 113 s with two spinning threads, 51 s with sleeping ones; alone 37
    and 35 s.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed for the next allocation. Returns whether this machine's malloc can.

    By default activations above 32 MB are mapped and unmapped at every call, and their pages filled with zeros: half of
    the time of an update. The peak of memory becomes higher by what lies between the blocks in use.
    """
    return _set_malloc({_MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _STEP})


def free_memory_as_usual() -> bool:
    """Undo `keep_freed_memory`, for benchmarks. Returns whether this machine's malloc can.

    glibc raises the size above which it maps a block as blocks are freed; here it starts at what it reaches, 32 MB.
    """
    usual = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}
    done = _set_malloc(usual)
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def give_back_memory() -> None:
    """Give kept memory back to the system, between parts of a run whose tensors differ in size.

    Otherwise holes of one part that fit nothing of the next add to its peak.
    """
    if keeps_memory:
        ctypes.CDLL(None).malloc_trim(0)


def _set_malloc(settings: dict[int, int]) -> bool:
    """Give these settings to glibc's malloc. Returns whether it took all of them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    taken = [mallopt is not None and mallopt(key, value) for key, value in settings.items()]
    return all(taken)


keeps_memory = False
"""Whether freed memory is kept in this process, so that the peak of memory is higher than what is in use"""

if is_program():
    wait_passively()
    keeps_memory = keep_freed_memory()
