"""Counts what a step asks an accelerator to do: `python benchmarks/launches.py --authors PATH` writes launches.json.

PATH is a checkout of sdh0818/FreD. Both sides do the pieces of work of cases.py once to warm up and once to be counted,
eager, on a device that is none (standin.py): no accelerator is needed, and no time is measured. Without --authors the
counts of theirs stay as they are in the file. The counts depend on the version of torch, which the file names.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest import mock

import ours
import standin
import standin_device
import table
import torch
from cases import AS_SHIPPED, OURS, cases_of
from checkout import check_checkout
from measure import apart
from sizes import SMALL
from tqdm import tqdm

from common.config.command_line import parse_plain
from common.system.command import run_command
from common.system.errors import InputError
from common.system.files import check_writable, write_json

TABLE = Path(__file__).parent / "launches.json"
BEGIN, END = "<!-- launches: begin -->", "<!-- launches: end -->"

# Neither the images of a class nor those of a test change what is launched, beyond the batches of the test: two here.
SIZE = replace(SMALL, per_class=64, test_images=600)
_ONCE = ("selection", "test_batches")  # not steps: positions are chosen once in a run, and batches are part of a test
_SIZED = {name.removesuffix("_32"): case for name, case in cases_of(SIZE).items()}
CASES = {name: case for name, case in _SIZED.items() if name not in _ONCE}
GRAPHS = "ours, CUDA graphs"
_GRAPHED: dict[str, Callable[[torch.device], ours.Run]] = {
    "tm": lambda device: ours.tm(SIZE, device, False, graphs=True),
    "expert": lambda device: ours.expert(SIZE, device, False, graphs=True),
    "test": lambda device: ours.test_pass(SIZE, device, False, graphs=True),
    "evaluation_1": lambda device: ours.evaluation(1, SIZE, device, graphs=True),
    "evaluation_5": lambda device: ours.evaluation(5, SIZE, device, graphs=True),
}
_ALONE = {"step": ours.network_step, "test": ours.network_test}  # what the network asks for, whoever calls it

Counts = dict[str, dict[str, dict[str, int]]]  # case -> version -> launches, waits and copies


@dataclass
class Options:
    """Count the operations that a step asks an accelerator for, ours and the authors'."""

    authors: str | None = None
    """folder of a checkout of https://github.com/sdh0818/FreD; without it only ours are counted"""
    output: str = str(TABLE)
    """the file to renew"""


def main() -> None:
    options = parse_plain(Options)
    why = standin_device.can_stand_in()
    if why:
        raise InputError(f"{why}, so nothing can be counted: use a newer version")
    authors = None if options.authors is None else check_checkout(options.authors)
    path = Path(options.output)
    check_writable(path)
    before: Counts = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
    found: Counts = apart(counted, authors)  # the stand-in stays with a process until it ends
    merged = {name: before.get(name, {}) | each for name, each in found.items()}
    network = apart(alone)
    write_json(path, {"torch": torch.__version__.partition("+")[0], "network": network, "cases": merged})
    tqdm.write(render(merged))
    if path == TABLE:
        table.put(render(merged), table.README, BEGIN, END)


def render(counts: Counts) -> str:
    """The counts as a table in Markdown, a row for each case."""
    lines = [
        "| case | authors | ours | ours / authors | CUDA graphs | graphs / authors | authors wait | we wait |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, versions in counts.items():
        theirs = next((each for key, each in versions.items() if key not in (OURS, GRAPHS)), None)
        own, graphs = versions[OURS], versions.get(GRAPHS)
        cells = [f"`{name}`", _launches(theirs), _launches(own), _ratio(own, theirs)]
        cells += [_launches(graphs), _ratio(graphs, theirs), _waits(theirs), _waits(own)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _ratio(own: dict[str, int] | None, theirs: dict[str, int] | None) -> str:
    return "-" if own is None or theirs is None else f"{own['launches'] / theirs['launches']:.2f}"


def _launches(counts: dict[str, int] | None) -> str:
    return "-" if counts is None else f"{counts['launches']:,}"


def _waits(counts: dict[str, int] | None) -> str:
    """How often the CPU waits: for a result, or for a copy to the device."""
    return "-" if counts is None else f"{counts['waits'] + counts['blocking']:,}"


def counted(authors: Path | None, names: tuple[str, ...] = tuple(CASES)) -> Counts:
    """The counts of our versions of these cases, and of the authors' if there is a checkout.

    It makes the stand-in the accelerator of this process.
    """
    device = standin_device.register()
    found: Counts = {}
    for name in names:
        case = CASES[name]
        # Anomaly mode looks at numbers, of which there are none here.
        theirs = [version for version in case.theirs if version != AS_SHIPPED]
        versions = [*(theirs if authors else ()), OURS, *([GRAPHS] if name in _GRAPHED else [])]
        found[name] = {version: _count(name, version, authors or Path(), device) for version in versions}
    return found


def alone() -> dict[str, int]:
    """The launches of a network's own operations: of a training step, and of a batch of a test."""
    device = standin_device.register()
    return {name: _watched(partial(make, SIZE, device))["launches"] for name, make in _ALONE.items()}


def _count(case: str, version: str, authors: Path, device: torch.device) -> dict[str, int]:
    if version == GRAPHS:
        # As after the first steps, which warm up.
        with mock.patch("common.networks.graphs.WARM_UP", 0):
            return _watched(lambda: _GRAPHED[case](device))
    return _watched(lambda: CASES[case].prepare(version, authors, device))


def _watched(prepare: Callable[[], ours.Run]) -> dict[str, int]:
    """Do a piece of work once, and count what it launches when it is done again."""
    with warnings.catch_warnings(), standin.StandIn(float64=True) as there:
        warnings.simplefilter("ignore")  # the authors' code is of another version of torch
        once = prepare()
        once()
        there.count_anew()
        once()
    return {"launches": there.launches, "waits": there.waits, "copies": there.copies, "blocking": there.blocking}


if __name__ == "__main__":
    run_command(main)
