"""What it costs to open a synthetic set of 1,000 images, by storage: `python benchmarks/decoding.py --help`.

Each file is in memory (the page cache) when it is opened: read, checked, entropy-decoded where it is coded, and
transformed back to all of its images. The paper's decoder is that of float32 coefficients.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Versions, check_report, in_turns, peak, report

from common.codec.planes import Planes
from common.config.command_line import parse_plain
from common.synset.base import LearnedSet
from common.synset.file import load_synset, save_synset
from common.synset.packed import PackedArgs, PackedSet
from common.synset.synset import SynSet, SynSetArgs
from common.system.command import run_command

CLASSES, PER_CLASS, CHANNELS = 10, 100, 3
SMALL = 16, 96  # side and images per class of the set that is opened beforehand
IPC = 6  # of the float32 set; a class has n images of k = IPC d / n coefficients
CODED_BITS = 0.25  # per number, the default
STORAGES: dict[str, dict[str, Any]] = {
    "float32, the paper's": {},
    "int8, joint positions": {"storage": "int8", "kept": "joint"},
    "coded, whole images": {"storage": "coded"},
    "coded, blocks of 16": {"storage": "coded", "block": 16},
}


@dataclass
class Options:
    """Time and memory of opening a set of 1,000 images that is stored in different ways."""

    sides: tuple[int, ...] = (32, 128)
    """sides of the images, in pixels"""
    repeats: int = 5
    """timed openings of each file, after one to warm up"""
    output: str | None = None
    """JSON file for the results"""


def main() -> None:
    options = parse_plain(Options)
    check_report(options.output)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            print(f"{CLASSES * PER_CLASS:,} images of {side} px, {CHANNELS} channels")
            files = {name: _saved(name, side, PER_CLASS, Path(folder)) for name in STORAGES}
            small = {name: str(_saved(name, *SMALL, Path(folder))) for name in STORAGES}
            versions: Versions = {name: opening(str(file), small[name]) for name, file in files.items()}
            cpu = torch.device("cpu")
            told = in_turns(versions, options.repeats, cpu)
            for name, file in files.items():
                told[name] |= {
                    "file_bytes": file.stat().st_size,
                    "peak_mib": peak(opening, str(file), small[name], device=cpu),
                }
                print(f"  {name:<44} {told[name]['peak_mib']:9.0f} MiB, file {file.stat().st_size:,} bytes")
            results[str(side)] = told
    report(options.output, results, torch.device("cpu"), options=vars(options))


def opening(path: str, small: str) -> Callable[[], object]:
    """Opens the file and decodes all of its images, as float32; the small one is opened now, for what it imports."""
    load_synset(small)[0].decode()
    return lambda: load_synset(path)[0].decode()


def _saved(name: str, side: int, count: int, folder: Path) -> Path:
    synset = _make(name, side, count)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    synset.init(_images(side, count), labels, [torch.where(labels == c)[0] for c in range(CLASSES)])
    return save_synset(synset, folder / f"{side}-{len(list(folder.iterdir()))}.safetensors", {"dataset": "random"})


def _make(name: str, side: int, count: int) -> LearnedSet:
    """An empty set of `count` images per class; of float32 and int8 it keeps as many coefficients."""
    d = side * side
    shared: dict[str, Any] = {
        "channel": CHANNELS, "num_classes": CLASSES, "im_size": (side, side), "device": "cpu", "ipc": IPC,
        "msz_per_channel": IPC * d // count, "lr_freq": 1.0, "mom_freq": 0.5,
    }  # fmt: skip
    if not STORAGES[name]:
        return SynSet(SynSetArgs(**shared))
    numbers = count * CHANNELS * d
    bits = round(CODED_BITS * numbers) if "coded" in name else numbers  # of int8 more than it takes
    more = {"num_per_class": count, "bits_per_class": bits, "colour": "opponent", **STORAGES[name]}
    return PackedSet(PackedArgs(**{**shared, **more}))


def _images(side: int, count: int) -> torch.Tensor:
    """Random images whose spectrum falls with the frequency, as that of photographs does, so that codes are as long."""
    planes = Planes(CHANNELS, (side, side), "opponent", 0)
    at = torch.arange(side).float()
    fall = 1 / (1 + torch.hypot(at[:, None], at[None])) * torch.tensor([1.0, 0.3, 0.2])[:, None, None]
    draws = torch.Generator().manual_seed(0)
    spectrum = torch.randn(CLASSES * count, CHANNELS, side, side, generator=draws) * fall * side / 2
    return planes.inverse(spectrum.flatten(1))


if __name__ == "__main__":
    run_command(main)
