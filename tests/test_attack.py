"""Real files, changed at random: bits flipped, ends cut off, bytes put in, and values of their metadata replaced.

Whatever comes of it is what was there before, or is refused in one sentence. FRED_ATTACK is another number of changes
(500 take a minute or two), FRED_ATTACK_SEED makes others; a failure names the number of the change that caused it.
"""

import json
import os
import random
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from common.experts.curve import suggest_max_start_epoch
from common.experts.folder import read_manifest, read_snapshots
from common.runs.finished import how_far, is_finished_run
from common.synset.authors import read_authors
from common.synset.file import export_pair, load_synset
from tests.command_line import SHORT, call, run_folder
from tests.conftest import ROOT
from tests.mutations import OTHERS, VALUES, answered, changed, places, text_of
from tests.readers import opened, shown_on_a_page, used, with_metadata

COUNT, SEED = int(os.environ.get("FRED_ATTACK", "40")), int(os.environ.get("FRED_ATTACK_SEED", "0"))
JSON = ("config.json", "summary.json", "checksums.json", "manifest.json")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with its exported pair beside it, and a buffer."""
    path = tmp_path_factory.mktemp("whole")
    result = call("DM/distill.py", *SHORT, "--save_path", path)
    assert result.code == 0, result.err
    export_pair(load_synset(run_folder(path) / "synset.safetensors")[0], path)
    (buffer,) = (ROOT / "tests/old_runs/buffers").glob("*/*")
    shutil.copytree(buffer, path / "buffer")
    return path


def flipped(content, draws):
    at = draws.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draws.randrange(8)]) + content[at + 1 :]


def cut(content, draws):
    return content[: draws.randrange(len(content))]


def grown(content, draws):
    at = draws.randrange(len(content))
    return content[:at] + draws.randbytes(draws.randrange(1, 40)) + content[at:]


def overwritten(content, draws):
    at = draws.randrange(len(content))
    some = draws.randbytes(draws.randrange(1, 40))
    return content[:at] + some + content[at + len(some) :]


def with_another_value(content, draws):
    loc = draws.choice(list(places(content)))
    return text_of(changed(content, loc, draws.choice([*VALUES, *OTHERS])))


def change(file, draws):
    """Change a file; in metadata as often as in bytes."""
    bytes_of = file.read_bytes()
    if draws.random() < 0.5 and file.name in JSON:
        file.write_text(with_another_value(json.loads(bytes_of), draws))
    elif draws.random() < 0.5 and file.name == "metrics.jsonl":
        lines = bytes_of.decode().splitlines()
        number = draws.randrange(len(lines))
        lines[number] = with_another_value(json.loads(lines[number]), draws)
        file.write_text("\n".join(lines))
    elif draws.random() < 0.5 and file.suffix == ".safetensors":
        with safe_open(file, "pt") as stored:
            metadata = json.loads(stored.metadata()["fred"])
        with_metadata(file, load_file(file), with_another_value(metadata, draws))
    else:
        file.write_bytes(draws.choice([flipped, flipped, cut, grown, overwritten])(bytes_of, draws))


def read_everything(path):
    """What of the files is refused: each reader by itself, none of which may end in another error."""
    folder, buffer = run_folder(path), path / "buffer"
    (expert,) = buffer.glob("expert_*.safetensors")
    return [
        answered(lambda: used(folder / "synset.safetensors"), path),
        answered(lambda: shown_on_a_page(folder), path),
        answered(lambda: (is_finished_run(folder), how_far(folder, 2)), path),
        answered(lambda: opened(path), path),
        answered(lambda: read_authors(path / "images_best.pt"), path),
        answered(lambda: read_manifest(buffer), path),
        answered(lambda: (list(read_snapshots(expert, [0, 1])), suggest_max_start_epoch(buffer, 1)), path),
    ]


def test_a_file_that_was_changed_is_read_as_before_or_refused(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr("common.report.run_page.svg_uri", lambda draw: "")
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
