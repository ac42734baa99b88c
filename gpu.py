"""Works through what is worth measuring on a GPU, in calls of ten minutes: `python gpu.py --help`, or `make gpu`."""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import importlib.metadata
import re
import sys
from pathlib import Path


def _missing() -> list[str]:
    """The packages that pyproject.toml asks for and this interpreter lacks; nothing else is imported before."""
    text = (Path(__file__).parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.split("\ndependencies = [\n")[1].split("\n]")[0]
    names = [*re.findall(r'^ *"([\w-]+)[^";]*"', listed, re.MULTILINE), "pytest"]  # one for older Pythons has a ;
    there = {_plain(each.name) for each in importlib.metadata.distributions()}
    return [name for name in names if _plain(name) not in there]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if missing := _missing():
    print(
        f"error: {sys.executable} lacks {', '.join(missing)}: run make install, or see docs/many-machines.md for a "
        "machine without a network",
        file=sys.stderr,
    )
    sys.exit(2)

from dataclasses import dataclass  # noqa: E402

from common.config.command_line import parse_plain  # noqa: E402
from common.system.command import run_command  # noqa: E402
from common.system.devices import resolve_device  # noqa: E402
from common.system.errors import InputError  # noqa: E402
from kit.stages import SUMMARY, Kit, Scale, shown  # noqa: E402


@dataclass
class Options:
    """Work through what is worth measuring on a GPU: tests beside the CPU, speed, published settings, further cells.

    Each call takes a few minutes, and goes on where the last one stopped.
    """

    output: str = "runs/gpu"
    """folder of everything that is measured; summary.md says what came out"""
    minutes: float = 10.0
    """time of this call in minutes; what is not done then is saved, and goes on at the next call"""
    device: str = "auto"
    """auto (the accelerator), cuda, cuda:N, mps or xpu; cpu with --scale smoke"""
    scale: Scale = "full"
    """full: as published; smoke: minutes on a CPU, to see that everything works"""
    authors: str | None = None
    """folder of a checkout of https://github.com/sdh0818/FreD, whose code is timed beside ours"""
    data_path: str | None = None
    """folder that holds the datasets, or that they are downloaded to (default: data)"""
    dry_run: bool = False
    """only list the stages, and how far they have come"""


def main() -> None:
    options = parse_plain(Options)
    if not options.minutes >= 1:
        raise InputError(f"--minutes {options.minutes:g} is too short for any stage: give at least 1")
    device = resolve_device(options.device)
    if device.type == "cpu" and options.scale == "full" and not options.dry_run:
        raise InputError(
            "there is no accelerator here, and a CPU would take years: give --scale smoke for a test on it"
        )
    kit = Kit(Path(options.output), device, options.scale, options.authors, options.data_path)
    if not options.dry_run:
        kit.work(options.minutes)
    print(f"\n{shown(kit.table())}")
    if not options.dry_run:
        left = f"{len(kit.left)} stages are left: the same command goes on" if kit.left else "everything is done"
        print(f"\n{Path(options.output) / SUMMARY} ({left})")


if __name__ == "__main__":
    run_command(main)
