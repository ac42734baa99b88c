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

from tqdm import tqdm

from common.datasets import load_dataset
from common.errors import InputError, run_command
from common.evaluate import EvaluationProtocol, TrainingSet, evaluate, mean_and_std, random_real
from common.files import write_json
from common.networks import build_network
from common.seeds import generator

ROOT = Path(__file__).parent
FOLDER = Path("runs/demo")
DATASET, IPC, NETWORK, NETWORKS, SEED = "digits", 1, "ConvNetD3", 3, 0
FULL_EPOCHS = 20  # of 1,437 images: as many as the whole training set needs to settle


def main() -> None:
    started = time.monotonic()
    print(
        "The digits recipe keeps the coefficients of largest energy. The paper's rule, largest variance, drops what all"
    )
    print("images of a class share, which on 8x8 digits is most of what tells the classes apart.\n")
    fred = distil("fred")
    pixel = distil("pixel", "--transform", "identity")
    train_data, test_data = load_dataset(DATASET)
    protocol = EvaluationProtocol(**fred["evaluation"])
    full = EvaluationProtocol(FULL_EPOCHS, protocol.lr, protocol.batch, protocol.strategy)

    def draw(number: int) -> TrainingSet:
        """Each network sees other random images: the accuracy varies more by draw than by network."""
        return random_real(train_data, IPC, generator(SEED, "demo", number))

    table = {
        "fred": figures(fred["last"]),
        "random": accuracies("random real images", draw, test_data, protocol),
        "pixel": figures(pixel["last"]),
        "full": accuracies("whole training set", lambda number: train_data, test_data, full),
        "fred_before_optimisation": figures(fred["start"]),
        "bytes": fred["file_bytes"],
    }
    write_json(FOLDER / "summary.json", table)
    rows = {
        "FreD": "fred",
        "FreD before optimisation": "fred_before_optimisation",
        "plain-pixel DM, same budget": "pixel",
        "random real images, same budget": "random",
        f"whole training set ({len(train_data):,} images)": "full",
    }
    print(f"\n{'test accuracy, %':<40} mean    std  networks")
    for label, key in rows.items():
        row = table[key]
        print(f"{label:<40}{100 * row['mean']:5.1f}  {100 * row['std']:5.1f}  {row['n']:8d}")
    print(f"\npicture        {fred['picture']}")
    print(f"synthetic set  {fred['file']} ({fred['file_bytes']:,} bytes)")
    print(f"table          {FOLDER / 'summary.json'}  ({time.monotonic() - started:.0f} s)")


def distil(name: str, *flags: str) -> dict[str, Any]:
    """Run DM/distill.py as a user would; its summary, with the evaluation protocol."""
    command = ["DM/distill.py", "--dataset", DATASET, "--ipc", str(IPC), "--seed", str(SEED), "--model", NETWORK]
    command += ["--num_eval", str(NETWORKS), "--save_path", str(FOLDER), "--name", name, "--resume", "never", *flags]
    print("$ python", *command, flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode:
        raise InputError(f"the {name} run failed, see above")
    folder = ROOT / FOLDER / "DM" / DATASET / f"ipc{IPC}" / name
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def figures(point: dict[str, Any]) -> dict[str, Any]:
    return {key: point[key] for key in ("mean", "std", "n")}


def accuracies(label: str, training_sets: Any, test_data: Any, protocol: EvaluationProtocol) -> dict[str, Any]:
    network = build_network(NETWORK, test_data.channels, test_data.num_classes, test_data.im_size)
    with tqdm(total=NETWORKS * (protocol.epochs + 1), desc=label, unit="epoch", dynamic_ncols=True) as bar:
        found = evaluate(network, training_sets, test_data, protocol, range(NETWORKS), SEED, on_epoch=bar.update)
        return mean_and_std(list(found))


if __name__ == "__main__":
    run_command(main)
