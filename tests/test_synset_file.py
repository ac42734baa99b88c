import json
import re

import pytest
import torch
from safetensors.torch import save_file

from common.synset.file import export_pair, load_synset, save_synset
from common.synset.synset import SynSet
from common.system.errors import InputError
from tests.bit_flips import assert_noticed
from tests.conftest import ROOT
from tests.synsets import args, real_images, started

METADATA = {
    "dataset": "digits",
    "mean": [0.5],
    "std": [0.25],
    "class_names": list("abcd"),
    "objective": "DM",
    "version": "1.2-abc",
}
OLD = ROOT / "tests/old_runs/finished/DM.safetensors"  # of a version without checksums


@pytest.mark.parametrize("changes", [{}, {"im_size": (4, 4, 4)}, {"transform": "identity", "msz_per_channel": 64}])
def test_round_trip(tmp_path, changes):
    synset = started(**changes)
    path = save_synset(synset, tmp_path / "set.safetensors", METADATA, step_size=torch.tensor(0.03))
    loaded, metadata = load_synset(path)
    assert torch.equal(loaded.decode(), synset.decode())
    assert torch.equal(loaded.positions, synset.positions)
    assert torch.equal(loaded.labels, synset.labels)
    assert metadata["dataset"] == "digits"
    assert metadata["version"] == "1.2-abc"
    assert metadata["step_size"] == pytest.approx(0.03)
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


def test_cifar10_at_one_image_per_class_stays_under_150_kb(tmp_path):
    a = args(num_classes=10, im_size=(32, 32), msz_per_channel=64)
    synset = SynSet(a)
    synset.init(*real_images(a, per_class=16))
    path = save_synset(synset, tmp_path / "set.safetensors", METADATA | {"class_names": list("abcdefghij")})
    assert synset.coefficients.numel() == 160 * 3 * 64
    assert path.stat().st_size < 150_000


def test_export_is_the_authors_pair(tmp_path):
    synset = started()
    images_path, labels_path = export_pair(synset, tmp_path)
    images, labels = (torch.load(path, weights_only=True) for path in (images_path, labels_path))
    assert (images_path.name, labels_path.name) == ("images_best.pt", "labels_best.pt")
    assert torch.equal(images, synset.decode())
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(labels, synset.labels)


def test_damaged_files_are_refused_in_a_sentence(tmp_path):
    path = save_synset(started(), tmp_path / "set.safetensors", METADATA)
    whole = path.read_bytes()
    cases = {
        "missing": (None, "no synthetic set at"),
        "truncated": (whole[: len(whole) // 2], "not a readable synthetic set"),
        "text": (b"not a tensor file", "not a readable synthetic set"),
        "newer": (whole.replace(b'\\"format_version\\": 2', b'\\"format_version\\": 9'), "format version 9"),
        "older": (whole.replace(b'\\"format_version\\": 2', b'\\"format_version\\": 0'), "is damaged"),
        "another": (whole.replace(b"digits", b"digitt"), r"is damaged \(wrong checksum\): copy it again"),
        "without": (whole.replace(b"checksum", b"checksun"), r"is damaged \(wrong checksum\): copy it again"),
        "lacking": (OLD.read_bytes().replace(b'\\"ipc\\"', b'\\"cpi\\"'), "lacks 'ipc'"),
    }
    for name, (content, message) in cases.items():
        damaged = tmp_path / f"{name}.safetensors"
        if content is not None:
            damaged.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_synset(damaged)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"fred": json.dumps({"a": 1})})
    with pytest.raises(InputError, match="not a synthetic set of this project"):
        load_synset(tmp_path / "other.safetensors")


def test_no_flipped_bit_changes_a_set(tmp_path):
    synset = started(num_classes=2, msz_per_channel=32)
    path = save_synset(synset, tmp_path / "set.safetensors", METADATA | {"class_names": ["a", "b"]}, torch.tensor(0.03))

    def read():
        loaded, metadata = load_synset(path)
        return metadata, loaded.coefficients.detach(), loaded.positions, vars(loaded.args)

    assert_noticed(path, read, 600)


@pytest.mark.parametrize("file", sorted(OLD.parent.glob("*.safetensors")), ids=lambda file: file.stem)
def test_sets_of_versions_without_a_checksum_are_read_and_gain_one(tmp_path, file):
    assert b"checksum" not in file.read_bytes()
    synset, metadata = load_synset(file)
    step_size = torch.tensor(metadata["step_size"]) if "step_size" in metadata else None
    again = save_synset(synset, tmp_path / "again.safetensors", metadata, step_size)
    assert re.search(rb'\\"checksum\\": \\"[0-9a-f]{40}', again.read_bytes())
    loaded, told = load_synset(again)
    assert torch.equal(loaded.coefficients, synset.coefficients)
    assert told == metadata | {"format_version": 2, "architecture": told["architecture"]}


def test_a_set_is_written_alike_whatever_it_was_read_from(tmp_path):
    """A checksum that was read is not kept; tables and tuples are summed as they will be read."""
    metadata = METADATA | {"table": {1: (0.1, None), 10: "é", 2: [True]}, "checksum": "that of another set"}
    first = save_synset(started(), tmp_path / "first.safetensors", metadata)
    synset, told = load_synset(first)
    assert "checksum" not in told
    assert told["table"] == {"1": [0.1, None], "10": "é", "2": [True]}
    assert save_synset(synset, tmp_path / "second.safetensors", told).read_bytes() == first.read_bytes()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_synset(started(), tmp_path / "file" / "set.safetensors", METADATA)
