"""Measures time and memory for the benchmarks, which compare several versions of one computation.

The versions run in turns, so that a busy machine slows all of them alike: compare the ratios of the medians, not the
seconds. Peak memory is measured in a separate process for each version.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.system.devices import describe_hardware
from common.system.files import write_json
from common.system.progress import Progress
from common.system.version import code_version

Versions = dict[str, Callable[[], object]]


def in_turns(versions: Versions, repeats: int, device: torch.device) -> dict[str, Any]:
    """Time every version `repeats` times, after one untimed run of each; print and return the results.

    Returns for each version {"median_s", "runs_s": all times in seconds, "speedup": first version's median / own}.
    """
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for turn in Progress(range(repeats + 1), desc="  turns", leave=False):
        for name, version in versions.items():
            begun = time.perf_counter()
            version()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.4f} to {max(seconds[name]):.4f}"
        tqdm.write(f"  {name:<44} {median:9.4f} s  ({spread} s, {repeats} runs)  first / this = {first / median:.2f}")
    return {
        name: {"median_s": medians[name], "runs_s": seconds[name], "speedup": first / medians[name]} for name in medians
    }


def peak(prepare: Callable[..., Callable[[], object]], *given: object, device: torch.device) -> float:
    """Peak memory in MiB of one call of the version that `prepare(*given)` returns, measured in a separate process.

    On a CPU this is the increase of the process's peak memory during the call, which includes the compiler's own
    memory. On a GPU it is the peak memory of tensors. Call this function before anything large is in memory, because a
    new process inherits the peak memory of the process that started it.
    """
    return apart(_peak, prepare, given, device)


def apart(function: Callable[..., Any], *given: object) -> Any:
    """Call the function in a separate process and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(function, *given).result()


def _peak(prepare: Callable[..., Callable[[], object]], given: tuple[object, ...], device: torch.device) -> float:
    version = prepare(*given)
    if device.type == "cuda":
        version()
        return torch.cuda.max_memory_allocated(device) / 2**20
    before = _most_held()
    version()
    return _most_held() - before


def _most_held() -> float:
    """The peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def report(path: str | None, results: dict[str, Any], device: torch.device) -> None:
    """Write the results, the code version and the hardware to the JSON file `path`; do nothing without a path."""
    if path:
        write_json(Path(path), {"results": results, "version": code_version(), "hardware": describe_hardware(device)})
