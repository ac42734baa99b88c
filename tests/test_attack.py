"""Real files, changed at random: bits flipped, ends cut off, bytes put in, and values of their metadata replaced.

Whatever comes of it is what was there before, or is refused in one sentence. FRED_ATTACK is another number of changes
(500 take a minute or two), FRED_ATTACK_SEED makes others; a failure names the number of the change that caused it.
"""

import os
import random
import shutil

import pytest
import torch

from common.synset.file import load_synset
from tests.command_line import run_folder
from tests.damage import change
from tests.readers import lighten, made, read_everything

COUNT, SEED = int(os.environ.get("FRED_ATTACK", "40")), int(os.environ.get("FRED_ATTACK_SEED", "0"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return made(tmp_path_factory.mktemp("whole"))


def test_a_file_that_was_changed_is_read_as_before_or_refused(whole, tmp_path, monkeypatch, capsys):
    lighten(monkeypatch)
    names = [str(path.relative_to(whole)) for path in sorted(whole.rglob("*")) if path.is_file()]
    names = [name for name in names if name.endswith((".json", ".jsonl", ".pt", ".safetensors"))]
    before = load_synset(run_folder(whole) / "synset.safetensors")[0].coefficients
    refused = 0
    for number in range(COUNT):
        draws = random.Random(f"{SEED} {number}")
        path = shutil.copytree(whole, tmp_path / str(number))
        name = draws.choice(names)
        change(path / name, draws)
        told = (path / name).read_bytes()
        try:
            found = read_everything(path)
        except Exception as error:
            (tmp_path / "changed").write_bytes(told)
            raise AssertionError(f"FRED_ATTACK_SEED={SEED}, change {number}, of {name}") from error
        refused += any(found)
        if not found[0]:
            after = load_synset(run_folder(path) / "synset.safetensors")[0].coefficients
            assert torch.equal(before, after), number
        shutil.rmtree(path)
    assert refused > 0.3 * COUNT
