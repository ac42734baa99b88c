"""The losses of the first updates of DM, DC and TM in float64 are those of golden_losses.json: no drift goes unseen.

In float64 they hardly depend on threads, processor and torch, as long as torch draws the same random numbers: from 2.6
to 2.14 they differ by 4e-16. A momentum that is off by a millionth moves them by 1e-7.

Where a change is meant, `python -m tests.test_golden` writes the file anew.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.command_line import call
from tests.conftest import ROOT
from tests.in_float64 import in_float64

FILE = Path(__file__).with_name("golden_losses.json")
UPDATES = 20
TOLERANCE = 1e-9

# All that decides is said here: a recipe may change. Swish, for a ReLU's gradient jumps where its input is zero but for
# rounding.
DATA = "--dataset digits --model ConvNetD2W16ASwish --seed 0 --device cpu"
DISTIL = (
    f"{DATA} --ipc 1 --msz_per_channel 16 --mom_freq 0.5 --transform dct --selection energy --selection_images class "
    f"--Iteration {UPDATES} --eval_it 0 --num_eval 1 --epoch_eval_train 0"
)
EXPERTS = (
    f"TM/buffer.py {DATA} --num_experts 2 --train_epochs 3 --batch_train 256 --lr_teacher 0.02 --mom 0.5 --l2 0.0005 "
    "--dsa True"
)
COMMANDS = {
    "DM": f"DM/distill.py {DISTIL} --lr_freq 256 --batch_real 8 --dsa True",
    "DC": (
        f"DC/distill.py {DISTIL} --lr_freq 10 --batch_real 8 --method DSA --outer_loop 2 --inner_loop 1 --lr_net 0.01"
    ),
    "TM": (
        f"TM/distill.py {DISTIL} --lr_freq 25600 --dsa True --syn_steps 5 --expert_epochs 2 --max_start_epoch 2 "
        "--lr_teacher 0.02 --lr_lr 1e-6 --batch_syn 24"
    ),
}


def losses(name: str, folder: Path) -> list[float]:
    """The loss of every update of a run in float64, which leaves its files in `folder`."""
    with in_float64():
        buffers = []
        if name == "TM":
            buffers = ["--buffer_path", folder / "buffers"]
            make(EXPERTS, *buffers)
        make(COMMANDS[name], *buffers, "--save_path", folder, "--name", name)
    (metrics,) = folder.glob(f"{name}/*/*/{name}/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def make(command: str, *places: object) -> None:
    result = call(*command.split(), *places)
    assert result.code == 0, result.err


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_losses_are_what_they_were(golden: dict[str, Any], tmp_path: Path, name: str) -> None:
    stated = golden["runs"][name]
    assert stated["commands"] == commands(name), "made by other commands: `python -m tests.test_golden`"
    found = losses(name, tmp_path)
    assert len(found) == UPDATES
    made = f"made with torch {golden['torch']} at {golden['commit']}, this is torch {torch.__version__}"
    assert found == pytest.approx(stated["losses"], rel=TOLERANCE, abs=0), made


def commands(name: str) -> list[str]:
    return [*([EXPERTS] if name == "TM" else []), COMMANDS[name]]


def made_at() -> str:
    """The last commit that changed more than tests, with `+changes` where files differ from it."""
    code = ["--", ".", ":!tests"]
    return git("log", "-1", "--format=%h", *code) + ("+changes" if git("status", "--porcelain", *code) else "")


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: {"commands": commands(name), "losses": losses(name, Path(folder))} for name in COMMANDS}
    stated = {
        "made_by": "python -m tests.test_golden",
        "commit": made_at(),
        "torch": torch.__version__,
        "type": "float64",
        "runs": runs,
    }
    FILE.write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
