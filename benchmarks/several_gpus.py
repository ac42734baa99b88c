"""Predicts how a run scales over several GPUs: `python benchmarks/several_gpus.py` writes several_gpus.json.

Nothing is timed and no GPU is needed. For each number of processes, the work of one is done on a device that is none
(standin.py), as torchrun would have it done, and counted: its launches, its FLOPs, and what it sums with the others. It
is the work of process 0, whose share is never smaller than another's (`parallel.share`).
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import ours
import standin
import standin_device
import table
import torch
import torch.distributed as dist
from measure import apart
from sizes import SMALL, Size
from torch import Tensor
from tqdm import tqdm

from common.config.command_line import parse_plain
from common.costs.meter import flops_of
from common.system import parallel
from common.system.command import run_command
from common.system.errors import InputError
from common.system.files import check_writable, write_json

PREDICTED = Path(__file__).parent / "several_gpus.json"
BEGIN, END = "<!-- several GPUs: begin -->", "<!-- several GPUs: end -->"

SIZE = replace(SMALL, per_class=256, test_images=600)  # a test is not counted in FLOPs: it has one image
_EXPERTS = 8  # of an update of TM with several


@dataclass(frozen=True)
class Work:
    """A piece of work that processes share.

    prepare: returns the work of one process, from the size, the device and how many times as large the problem is.
    grows: what is larger in weak scaling; None if processes cannot have more of it.
    """

    what: str
    prepare: Callable[[Size, torch.device, int], ours.Run]
    grows: str | None


def _more_classes(size: Size, times: int) -> Size:
    return replace(size, classes=size.classes * times)


WORK = {
    "DM": Work(
        "an update, 10 classes",
        lambda size, device, times: ours.dm(_more_classes(size, times), device, False),
        "classes",
    ),
    "DC": Work(
        "an update, 10 classes",
        lambda size, device, times: ours.dc(_more_classes(size, times), device, False),
        "classes",
    ),
    "TM, one expert": Work(
        f"an update, {SIZE.syn_steps} of {SIZE.published_steps} steps, followed by all processes together",
        lambda size, device, times: ours.tm(size, device, False),
        None,
    ),
    f"TM, {_EXPERTS} experts": Work(
        f"an update, {SIZE.syn_steps} of {SIZE.published_steps} steps, experts dealt out",
        lambda size, device, times: ours.tm(size, device, False, experts=_EXPERTS * times),
        "experts",
    ),
    "evaluation": Work(
        "of 8 networks, 2 epochs, one after another",
        lambda size, device, times: ours.evaluation(8 * times, size, device, together=1),
        "networks",
    ),
}


@dataclass
class Counted:
    """What one of several processes does in a piece of work."""

    launches: int = 0
    """operations on the device"""
    flops: int = 0
    """of convolutions and matrix products"""
    exchanges: int = 0
    """sums and copies of tensors between the devices of the processes"""
    exchanged_bytes: int = 0
    """of these tensors, in each process"""


@dataclass
class Options:
    """Predict how the work of a run is shared by the processes of several GPUs."""

    processes: tuple[int, ...] = (1, 2, 4, 8)
    """numbers of processes; the first is what the others are compared with"""
    output: str = str(PREDICTED)
    """the file to renew"""


def main() -> None:
    options = parse_plain(Options)
    if why := standin_device.can_stand_in():
        raise InputError(f"{why}, so nothing can be counted: use a newer version")
    if not options.processes or min(options.processes) < 1:
        raise InputError("--processes: give numbers of processes, 1 or more")
    path = Path(options.output)
    check_writable(path)
    found = apart(predicted, options.processes)  # the stand-in stays with a process until it ends
    content = {"torch": torch.__version__.partition("+")[0], "prediction": True, "work": found}
    write_json(path, content)
    tqdm.write(render(found))
    if path == PREDICTED:
        table.put(render(found), table.README, BEGIN, END)


def predicted(processes: Sequence[int], names: Sequence[str] = tuple(WORK), size: Size = SIZE) -> dict[str, Any]:
    """{name: {"strong" or "weak": {processes: `Counted` as a dictionary}}}, for the same and for a growing problem.

    It makes the stand-in the accelerator of this process.
    """
    device = standin_device.register()
    found: dict[str, Any] = {}
    for name in names:
        tqdm.write(f"{name}: {', '.join(map(str, processes))} processes")
        work = WORK[name]
        kinds = {"strong": [1] * len(processes)}
        if work.grows:
            kinds["weak"] = [world // processes[0] for world in processes]
        found[name] = {
            kind: {
                str(world): asdict(_counted(partial(work.prepare, size, device, grown), world))
                for world, grown in zip(processes, times, strict=True)
            }
            for kind, times in kinds.items()
        }
    return found


def _counted(prepare: Callable[[], ours.Run], world: int) -> Counted:
    """What process 0 of `world` does when it does a piece of work for the second time."""
    counted, there = Counted(), _Counting(float64=True)
    with there, _as_one_of(world, counted):
        once = prepare()
        once()
        there.count_anew()
        counted.exchanges = counted.exchanged_bytes = 0
        there.flops = 0
        once()
    counted.launches, counted.flops = there.launches, there.flops
    return counted


class _Counting(standin.StandIn):
    """It counts FLOPs, too."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.flops += flops_of(func, args, kwargs or {}, out)
        return out


@contextmanager
def _as_one_of(world: int, counted: Counted) -> Iterator[None]:
    """Inside this context this process is rank 0 of `world`, whose exchanges are counted and change nothing."""

    def exchange(function: object, *given: Any, **named: Any) -> None:
        if function in (dist.all_reduce, dist.broadcast) and isinstance(tensor := given[0], Tensor):
            if tensor.device.type == standin_device.NAME:
                counted.exchanges += 1
                counted.exchanged_bytes += tensor.numel() * tensor.element_size()
        elif function is dist.all_gather_object:
            given[0][:] = [given[1]] * world

    with mock.patch.multiple(parallel, world=lambda: world, _collective=exchange):
        yield


def render(found: dict[str, Any]) -> str:
    """The predictions as a table in Markdown, and what the pieces of work are."""
    first = next(iter(next(iter(found.values()))["strong"]))
    lines = [
        "| work | scaling | P | launches | GFLOP | exchanges | MB | by launches | by FLOPs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, kinds in found.items():
        for kind, each in kinds.items():
            for world, counts in list(each.items())[kind == "weak" :]:
                cells = [
                    name,
                    kind if kind == "strong" else f"weak, {int(world) // int(first)} x {WORK[name].grows}",
                    world,
                    f"{counts['launches']:,}",
                    f"{counts['flops'] / 1e9:,.1f}",
                    str(counts["exchanges"]),
                    f"{counts['exchanged_bytes'] / 1e6:.2f}",
                    *(f"{each[first][key] / counts[key]:.2f}" for key in ("launches", "flops")),
                ]
                lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {WORK[name].what}" for name in found)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_command(main)
