"""Measures time and memory for the benchmarks, which compare several versions of one computation.

The versions run in turns, so that a busy machine slows all of them alike: compare the ratios of the medians, not the
seconds. Peak memory is measured in a separate process for each version.
"""

from __future__ import annotations

import datetime
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.system.devices import describe_hardware, peak_memory, wait_for
from common.system.errors import InputError
from common.system.files import check_writable, write_json
from common.system.progress import Progress
from common.system.version import code_version

Versions = dict[str, Callable[[], object]]


def in_turns(
    versions: Versions,
    repeats: int,
    device: torch.device,
    calls: int = 1,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, Any]:
    """Time every version `repeats` times, after one untimed run of each; print and return the results.

    calls: a timing is of this many calls, which what takes microseconds needs; seconds are those of one call. before:
    called with the name of a version before each of its timings.
    Returns for each version {"median_s", "runs_s": all times in seconds, "speedup": first version's median / own}, by
    the clock on the wall, and the same as "cpu_median_s", "cpu_runs_s", "cpu_speedup" by the CPU time of the process.
    """
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in versions}
    for turn in Progress(range(repeats + 1), desc="  turns", leave=False):
        for name, version in versions.items():
            before(name)
            taken = _timed(version, calls, device)
            if turn > 0:
                runs[name].append(taken)
    results: dict[str, Any] = {name: {} for name in versions}
    for clock, prefix in enumerate(("", "cpu_")):
        seconds = {name: [each[clock] for each in taken] for name, taken in runs.items()}
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        first = next(iter(medians.values()))
        for name, median in medians.items():
            results[name] |= {
                f"{prefix}median_s": median, f"{prefix}runs_s": seconds[name], f"{prefix}speedup": first / median
            }  # fmt: skip
    for name, each in results.items():
        spread = f"{min(each['runs_s']):.4f} to {max(each['runs_s']):.4f}"
        told = f"{each['median_s']:9.4f} s  ({spread} s, {repeats} runs), CPU {each['cpu_median_s']:.4f} s"
        tqdm.write(f"  {name:<44} {told}  first / this = {each['speedup']:.2f}, CPU {each['cpu_speedup']:.2f}")
    return results


def _timed(version: Callable[[], object], calls: int, device: torch.device) -> tuple[float, float]:
    """Seconds of one call, by the clock on the wall and by the CPU time of this process, as means over `calls`."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        version()
    wait_for(device)
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def peak(prepare: Callable[..., Callable[[], object]], *given: object, device: torch.device) -> float:
    """Peak memory in MiB of one call of the version that `prepare(*given)` returns, measured in a separate process.

    On a CPU this is how far the resident memory of the process rises during its first call above what it was before,
    which includes the memory of a compiler. On a GPU it is the peak memory of tensors. On systems other than Linux,
    call this function before anything large is in memory, because there a new process inherits the peak of the process
    that started it.
    """
    return apart(_peak, prepare, given, device)


def apart(function: Callable[..., Any], *given: object) -> Any:
    """Call the function in a separate process and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
        return one.submit(function, *given).result()


def _peak(prepare: Callable[..., Callable[[], object]], given: tuple[object, ...], device: torch.device) -> float:
    version = prepare(*given)
    if device.type != "cpu":
        version()
        return (peak_memory(device).get(device.type) or 0) / 2**20
    before = _forget_most_held()
    version()
    return max(0.0, _most_held() - before)


def _forget_most_held() -> float:
    """The memory that this process holds, in MiB, from which its peak counts from now on.

    Where the system cannot forget the peak so far, that peak.
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc_pid_clear_refs(5)
    return _most_held()


def _most_held() -> float:
    """The peak memory of this process so far, in MiB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        peak = peak_memory(torch.device("cpu"))["cpu"]
        if peak is None:
            raise InputError(
                "this system does not tell how much memory a process took: measure on Linux or macOS"
            ) from None
        return peak / 2**20
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 2**10


def check_report(path: str | None) -> None:
    """Raise InputError now if `report` could not write the file after the measurements."""
    if path:
        check_writable(Path(path))


def report(path: str | None, results: dict[str, Any], device: torch.device, **more: Any) -> None:
    """Write the results, the date, the code version and the hardware to the JSON file `path`, if there is one.

    more: further entries of the file.
    """
    if path:
        told = {"date": datetime.date.today().isoformat(), "version": code_version()}
        write_json(Path(path), {"results": results, **told, "hardware": describe_hardware(device), **more})
