"""`make demo`: distil the built-in digits dataset with FreD and distribution matching, and compare at equal budget.

Every synthetic set here costs one 8x8 image per class. Means are test accuracies of networks trained on the set alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common.datasets import load_dataset
from common.errors import InputError, run_command
from common.files import write_json

ROOT = Path(__file__).parent
FOLDER = Path("runs/demo")
DATASET, IPC, NETWORKS = "digits", 1, 3
FULL_EPOCHS = 20  # of 1,437 images: as many as the whole training set needs to settle


def main() -> None:
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
    write_json(ROOT / FOLDER / "summary.json", table)
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
        print(f"{label:<40}{100 * row['mean']:5.1f}  {100 * row['std']:5.1f}  {row['n']:8d}")
    print(f"\npicture        {fred['picture']}")
    print(f"synthetic set  {fred['file']} ({fred['file_bytes']:,} bytes)")
    print(f"table          {FOLDER / 'summary.json'}  ({time.monotonic() - started:.0f} s)")


def distil(name: str, *flags: str) -> dict[str, Any]:
    """The summary of one run of DM/distill.py."""
    run("DM/distill.py", "--ipc", IPC, "--save_path", FOLDER, "--name", name, "--resume", "never", *flags)
    return read(FOLDER / "DM" / DATASET / f"ipc{IPC}" / name / "summary.json")


def baseline(kind: str, *flags: object) -> dict[str, Any]:
    """The result of DM/evaluate.py on real images; each network sees another random draw of them."""
    output = FOLDER / f"{kind}.json"
    run("DM/evaluate.py", "--baseline", kind, "--ipc", IPC, "--output", output, *flags)
    return read(output)


def run(script: str, *flags: object) -> None:
    """Run a script as a user would."""
    command = [script, "--dataset", DATASET, "--num_eval", str(NETWORKS), *map(str, flags)]
    print("\n$ python", *command, flush=True)
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        raise InputError(f"{script} ended with exit code {code}, see above")


def read(path: Path) -> dict[str, Any]:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def figures(point: dict[str, Any]) -> dict[str, Any]:
    return {key: point[key] for key in ("mean", "std", "n")}


if __name__ == "__main__":
    run_command(main)
