"""Put thousands of faults into commands, files and option sets, and count how they end.

Every outcome has to be right, or refused with one sentence and exit code 2, and no result may silently be another. A
failure is printed with the command that repeats it.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import argparse
import functools
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import pytest
import torch
import tqdm

from common.system import version
from tests.command_line import InThisProcess
from tests.faults import bits, contended, full_disk, interrupted, mutated, option_sets
from tests.faults.commands import Undisturbed
from tests.faults.kind import REFUSED, RIGHT, Kind
from tests.faults.run import Tally, run_kind
from tests.left_out import leave_out

_COLUMNS = (RIGHT, REFUSED, "fault", "different")


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds, by name. folder: for what their cases share."""
    undisturbed = Undisturbed(folder)
    some = (interrupted, contended, full_disk, bits, option_sets)
    return {**{name: kind for each in some for name, kind in each.kinds(undisturbed).items()}, **mutated.kinds()}


def set_up(folder: Path) -> None:
    """Let commands of this process and its forks be quick: no drawings, no processes, threads or caches of others."""
    patch = pytest.MonkeyPatch()
    leave_out(patch)
    for place in ("common.system.scripts.Script", "reproduction.jobs.Script"):
        patch.setattr(place, InThisProcess)
    patch.setattr(version, "_git", functools.cache(version._git))  # sets name the commit, which may change meanwhile
    version.code_version()
    os.environ["FRED_CACHE"] = str(folder / "cache")
    os.environ["PYTHONWARNINGS"] = "ignore"
    tqdm.tqdm.monitor_interval = 0  # no thread of its own, which a fork would lose
    torch.set_num_threads(1)  # nor the threads of an operator


def chosen(kind: Kind, share: float, seed: int) -> list[int]:
    """The numbers of a share of the cases, drawn by the seed. At least one."""
    return sorted(Random(seed).sample(range(kind.count), max(1, round(share * kind.count))))


def table(tallies: dict[str, tuple[Kind, Tally]]) -> str:
    """Counts per kind, the time, and the seconds of a core."""
    head = f"{'kind':8}{'cases':>7}" + "".join(f"{name:>11}" for name in _COLUMNS) + f"{'seconds':>9}{'CPU':>7}"
    lines = [head]
    for name, (kind, tally) in tallies.items():
        counts = "".join(f"{tally.outcomes[each]:>11}" for each in _COLUMNS)
        lines.append(
            f"{name:8}{tally.outcomes.total():>7}{counts}{tally.seconds:>9.0f}{tally.processor:>7.0f}   {kind.about}"
        )
    total = [sum(tally.outcomes[each] for _, tally in tallies.values()) for each in _COLUMNS]
    seconds = sum(tally.seconds for _, tally in tallies.values())
    processor = sum(tally.processor for _, tally in tallies.values())
    lines.append(
        f"{'all':8}{sum(total):>7}" + "".join(f"{each:>11}" for each in total) + f"{seconds:>9.0f}{processor:>7.0f}"
    )
    return "\n".join(lines)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The options; exits with code 2 for words that are none."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="random seed (default: another one each time)")
    parser.add_argument("--only", metavar="KIND", action="append", help="only this kind; may be given several times")
    parser.add_argument("--number", type=int, help="only this case of the one kind of --only, to repeat it")
    parser.add_argument("--share", type=float, default=1.0, help="share of the cases, e.g. 0.01 (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: 2)")
    options = parser.parse_args(argv)
    if not 0 < options.share <= 1:
        parser.error("--share is above 0 and at most 1")
    if options.number is not None and (len(options.only or []) != 1 or options.number < 0):
        parser.error("--number is that of a case of the one kind that --only names")
    if options.jobs < 1:
        parser.error("--jobs is at least 1")
    if options.seed is None:
        options.seed = int(time.time())
    return options


def main(argv: list[str] | None = None) -> int:
    options = parsed(argv)
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left behind
    tallies: dict[str, tuple[Kind, Tally]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        folder = Path(place).resolve()
        set_up(folder)
        known = kinds(folder / "shared")
        unknown = set(options.only or ()) - known.keys()
        if unknown:
            print(f"error: there is no kind {', '.join(unknown)}: give one of {', '.join(known)}", file=sys.stderr)
            return 2
        (folder / "shared").mkdir()
        try:
            for name, kind in known.items():
                if options.only and name not in options.only:
                    continue
                numbers = chosen(kind, options.share, options.seed) if options.number is None else [options.number]
                (folder / name).mkdir()
                tallies[name] = kind, run_kind(name, kind, numbers, options.seed, folder / name, options.jobs)
        finally:
            os.chdir("/")
            if tallies:
                print(table(tallies), flush=True)
    return 1 if any(tally.faults for _, tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
