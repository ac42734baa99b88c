"""Runs `make demo`: distils the built-in digits with FreD and DM, and compares the result at equal budget.

Every synthetic set here has a budget of one 8x8 image per class. The table shows means and standard deviations of the
test accuracy of networks trained only on the set.
"""

from __future__ import annotations

import common.system.start  # noqa: F401 (before torch is loaded)

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.command_line import parse_plain
from common.config.places import run_folder
from common.datasets import load_dataset
from common.report.evaluated import read_result
from common.report.record import read_run
from common.system.command import run_command
from common.system.files import write_json
from common.system.scripts import run_script
from common.terminal.next_step import to_evaluate

FOLDER = Path("runs/demo")
DATASET, IPC, NETWORKS = "digits", 1, 3
COMMON = ("--dataset", DATASET, "--num_eval", NETWORKS)
FULL_EPOCHS = 20  # enough for training on the whole training set of 1,437 images to converge


@dataclass
class Options:
    """Distil the built-in digits and compare the result at equal budget, in a few minutes. There is nothing to set."""


def main() -> None:
    parse_plain(Options)
    started = time.monotonic()
    print(
        "The digits recipe keeps the coefficients of largest energy. The paper's rule, largest variance, drops what all"
    )
    print("images of a class share, which on 8x8 digits is most of what tells the classes apart.\n")
    fred = distil("fred")
    pixel = distil("pixel", "--transform", "identity")
    random = baseline("random")
    full = baseline("full", "--epoch_eval_train", FULL_EPOCHS)
    table = {
        "fred": figures(fred["last"]),
        "random": figures(random),
        "pixel": figures(pixel["last"]),
        "full": figures(full),
        "fred_before_optimisation": figures(fred["start"]),
        "bytes": fred["file_bytes"],
    }
    write_json(FOLDER / "summary.json", table)
    rows = {
        "FreD": "fred",
        "FreD before optimisation": "fred_before_optimisation",
        "plain-pixel DM, same budget": "pixel",
        "random real images, same budget": "random",
        f"whole training set ({len(load_dataset(DATASET)[0]):,} images)": "full",
    }
    print(f"\n{'test accuracy, %':<40} mean    std  networks")
    for label, key in rows.items():
        row = table[key]
        diverged = f"  {row['diverged']} diverged" if "diverged" in row else ""
        print(f"{label:<40}{100 * row['mean']:5.1f}  {100 * row['std']:5.1f}  {row['n']:8d}{diverged}")
    print(f"\npicture        {fred['picture']}")
    print(f"synthetic set  {fred['file']} ({fred['file_bytes']:,} bytes)")
    print(f"table          {FOLDER / 'summary.json'}  ({time.monotonic() - started:.0f} s)")
    print(to_evaluate("DM", fred["file"]))


def distil(name: str, *flags: str) -> dict[str, Any]:
    """Run DM/distill.py with these flags into the run folder `name`, and return the summary of the run."""
    run_script(
        "DM/distill.py", *COMMON, "--ipc", IPC, "--save_path", FOLDER, "--name", name, "--resume", "never", *flags
    )
    return read_run(run_folder(FOLDER, "DM", DATASET, IPC, name)).summary or {}


def baseline(kind: str, *flags: object) -> dict[str, Any]:
    """Run DM/evaluate.py on a baseline ("random" or "full") and return its result.

    With "random", each network is trained on another random draw of real images.
    """
    output = FOLDER / f"{kind}.json"
    run_script("DM/evaluate.py", *COMMON, "--baseline", kind, "--ipc", IPC, "--output", output, *flags)
    return read_result(output)


def figures(point: dict[str, Any]) -> dict[str, Any]:
    return {key: point[key] for key in ("mean", "std", "n", "diverged") if key in point}


if __name__ == "__main__":
    run_command(main)
