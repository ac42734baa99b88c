"""What `make same` compares, and when it gives up. Its runs take a minute: small folders and scripts stand for them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests import same

RUN = Path("runs/DM/digits/ipc1/dm")


def write_synset(folder: Path, coefficients: torch.Tensor, **changed: object) -> None:
    stated = {"dataset": "digits", "accuracy": {"mean": 0.5, "accuracies": [0.25, 0.75]}, "version": "0.1.0"} | changed
    tensors = {"coefficients": coefficients, "positions": torch.arange(6, dtype=torch.int32)}
    save_file(tensors, folder / "synset.safetensors", {"fred": json.dumps(stated)})


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def config(**options: object) -> dict[str, Any]:
    described = {name: {"value": value, "source": "default"} for name, value in options.items()}
    return {"options": described, "identity": dict(options), "version": "0.1.0", "hardware": {"threads": 1}}


@pytest.fixture
def folders(tmp_path):
    """Two that are the same, where what may differ does."""
    for number, side in enumerate(("there", "here")):
        folder = tmp_path / side / RUN
        folder.mkdir(parents=True)
        write_synset(folder, torch.linspace(-1, 1, 12).view(3, 4), version=f"0.1.0-{number}")
        write_json(folder / "config.json", config(lr_freq=256.0, seed=0) | {"version": number, "hardware": number})
        write_json(folder / "summary.json", {"last": {"mean": 0.5}, "seconds": number, "file_bytes": 100 + number})
        lines = [{"iteration": 0, "loss": 2.5}, {"evaluation": {"mean": 0.5}, "seconds": number}]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (folder / "log.txt").write_text(f"in {number} seconds")
        (folder / f".{number}.lock").touch()
    return tmp_path / "there", tmp_path / "here"


def differences(folders) -> list[str]:
    return [told.removeprefix(f"{RUN}/") for told in same.compare(*folders).differences]


def test_what_is_the_same(folders):
    found = same.compare(*folders)
    assert (found.differences, found.notes) == ([], [])
    assert (found.files, found.tensors, found.lines) == (4, 2, 2)


def test_a_bit_of_a_tensor(folders):
    file = folders[1] / RUN / "synset.safetensors"
    content = bytearray(file.read_bytes())
    at = content.index(torch.linspace(-1, 1, 12).numpy().tobytes())
    content[at] ^= 1  # of -1, the least one
    file.write_bytes(content)
    assert differences(folders) == ["synset.safetensors: coefficients: 1 of 12 values differ, at most by 1.19e-07"]


def test_what_newer_versions_add_to_a_set_is_told_and_no_difference(folders):
    known = {"parameters": 4, "hash": "a"}
    write_synset(folders[1] / RUN, torch.linspace(-1, 1, 12).view(3, 4), version="0.1.0-1", architecture=known)
    found = same.compare(*folders)
    assert (found.differences, found.notes) == ([], ["sets have architecture in their metadata only here"])
    write_synset(folders[0] / RUN, torch.linspace(-1, 1, 12).view(3, 4), version="0.1.0-0",
                 architecture=known | {"hash": "b"})  # fmt: skip
    assert differences(folders) == ['synset.safetensors: metadata fred.architecture.hash: "b" there, "a" here']


def test_the_sign_of_zero_and_nan(folders):
    for folder, first in zip(folders, (0.0, -0.0), strict=True):
        write_synset(folder / RUN, torch.tensor([first, torch.nan]))
    assert differences(folders) == ["synset.safetensors: coefficients: 1 of 2 values differ, at most by nan"]


def test_type_and_shape_of_a_tensor(folders):
    write_synset(folders[1] / RUN, torch.linspace(-1, 1, 12).double())
    assert differences(folders) == ["synset.safetensors: coefficients: float32 [3, 4] there, float64 [12] here"]


def test_metadata(folders):
    accuracy = {"mean": 0.5, "accuracies": [0.25, 0.5]}
    write_synset(folders[1] / RUN, torch.linspace(-1, 1, 12).view(3, 4), accuracy=accuracy, resize="crop")
    assert differences(folders) == [
        "synset.safetensors: metadata fred.accuracy.accuracies[1]: 0.75 there, 0.5 here",
        'synset.safetensors: metadata fred.resize: absent there, "crop" here',
    ]


def test_metrics(folders):
    metrics = folders[1] / RUN / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace("2.5", "2.5000000000000004") + "{}\n")
    assert differences(folders) == [
        "metrics.jsonl: 2 lines there, 3 here",
        "metrics.jsonl: line 1: loss: 2.5 there, 2.5000000000000004 here",
    ]


def test_a_number_of_another_type(folders):
    write_json(folders[1] / RUN / "config.json", config(lr_freq=256, seed=0))
    assert differences(folders) == [
        "config.json: options.lr_freq.value: 256.0 there, 256 here",
        "config.json: identity.lr_freq: 256.0 there, 256 here",
    ]


def test_an_option_that_one_version_has_is_no_difference(folders):
    write_json(folders[1] / RUN / "config.json", config(lr_freq=256.0, seed=0, speed=3))
    assert differences(folders) == []
    assert same.compare(*folders).notes == ["an option --speed is only here: 3"]


def test_missing_files(folders):
    (folders[1] / RUN / "synset.safetensors").unlink()
    (folders[0] / RUN / "log.txt").unlink()
    assert differences(folders) == ["log.txt: only here", "synset.safetensors: only there"]


def test_a_file_that_is_not_whole(folders):
    file = folders[1] / RUN / "synset.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    (told,) = differences(folders)
    assert told.startswith("synset.safetensors: cannot be read")


def test_what_differs_everywhere_is_not_told_without_end(folders):
    for folder, loss in zip(folders, (1, 2), strict=True):
        (folder / RUN / "metrics.jsonl").write_text(f'{{"loss": {loss}}}\n' * 100)
    told = differences(folders)
    assert told[-1] == f"metrics.jsonl: ... and {100 - same.SHOWN} more"
    assert len(told) == same.SHOWN + 1


def test_a_folder_of_another_name_is_told_of_and_compared(folders):
    assert same.name_alike(*folders) == []
    (folders[1] / RUN).rename(folders[1] / RUN.with_name("other"))
    (told,) = same.name_alike(*folders)
    assert told == f"a run without --name: its folder is {RUN} there, {RUN.with_name('other')} here"
    assert differences(folders) == []
    shutil.rmtree(folders[1] / RUN)
    with pytest.raises(same.Failed, match="1 folders there and 0 here"):
        same.name_alike(*folders)


# -- runs --------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from pathlib import Path
folder = Path("run")
folder.mkdir(exist_ok=True)
path = folder / "metrics.jsonl"
with path.open(MODE) as metrics:
    for number in range(path.read_text().count("loss"), 12):
        metrics.write('{"iteration": %d, "loss": %f}\\n' % (number, time.time()))
        metrics.flush()
        time.sleep(PAUSE)
"""


@pytest.fixture
def version(tmp_path):
    """Makes versions whose only script pretends to be a run: seconds an update, and a to go on, w to begin anew."""

    def make(pause, mode="a"):
        root = tmp_path / f"version-{mode}-{pause}"
        root.mkdir()
        (root / "distill.py").write_text(SCRIPT.replace("MODE", repr(mode)).replace("PAUSE", str(pause)))
        return same.Version("this version", root)

    return make


FAKE = same.Run("DM", "DM", ("distill.py",), "run", 3, signal.SIGTERM)


def test_a_run_is_interrupted_and_goes_on(tmp_path, version, capsys):
    side = same.Side(tmp_path / "side", threading.Event())
    side.begin(version(0.2), FAKE)
    assert 3 <= side.updates(FAKE) < same.UPDATES
    side.finish(version(0), FAKE)
    assert side.updates(FAKE) == same.UPDATES
    assert re.search(rf"SIGTERM after \d+ of {same.UPDATES} updates", capsys.readouterr().out)


def test_a_run_that_has_finished_or_begins_anew_is_no_resumed_one(tmp_path, version):
    side = same.Side(tmp_path / "side", threading.Event())
    side.make(version(0), FAKE)
    with pytest.raises(same.Failed, match="had finished before SIGTERM reached it"):
        side.begin(version(0.01), FAKE)
    with pytest.raises(same.Failed, match="began it anew"):
        side.finish(version(0, "w"), FAKE)


def test_a_command_that_fails_is_shown_with_what_it_said(tmp_path, version):
    side = same.Side(tmp_path / "side", threading.Event())
    with pytest.raises(same.Failed, match="exit code 1") as failed:
        side.make(version(0, "nonsense"), FAKE)
    assert "ValueError" in str(failed.value)


def test_packages_from_elsewhere_are_noticed(tmp_path, monkeypatch):
    version = same.Version("this version", tmp_path / "version")
    (version.root / "common").mkdir(parents=True)
    (version.root / "common/__init__.py").touch()
    version.check_imports(tmp_path)
    elsewhere = same.Version("this version", version.root / "other")
    monkeypatch.setattr(same.Version, "environment", lambda self, cache: {"PYTHONPATH": str(version.root)})
    shutil.copytree(version.root / "common", elsewhere.root / "common")
    with pytest.raises(same.Failed, match="python imports common from"):
        elsewhere.check_imports(tmp_path)


def test_a_commit_that_does_not_exist(capsys):
    assert same.main(["no-such-commit"]) == 2
    assert "there is no commit 'no-such-commit'" in capsys.readouterr().err


def test_it_is_a_program_of_its_own():
    """It compares versions whose packages differ, so it may not lean on those of one."""
    assert not re.search(r"^\s*(from|import) (common|tests)\b", Path(same.__file__).read_text(), flags=re.MULTILINE)
