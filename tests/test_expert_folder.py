"""A folder holds whole experts or none, says what they are of, and is filled by several processes at once."""

import fcntl
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common.experts.folder import buffer_folder, claimed, describe, filling, missing_experts
from common.experts.open import open_buffer
from common.images.zca import whitened
from common.system.errors import InputError
from tests.expert_buffers import EPOCHS, EXPERTS, MADE_BY, MODEL, fill, made_for, refused, small_network
from tests.image_sets import make_data

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    return fill(buffer_folder(tmp_path / "buffers", "made up", MODEL, zca=False))


def test_descriptions_tell_whitened_images_apart(cache):
    raw = make_data()
    white, _ = whitened(raw, raw, progress=False)
    plain, changed = (describe(data, MODEL, small_network()) for data in (raw, white))
    assert {key for key in plain if plain[key] != changed[key]} == {"zca", "mean", "std", "training_images"}
    assert json.loads(json.dumps(changed)) == changed


def test_manifest_says_what_the_experts_are_of(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {key: manifest[key] for key in made_for()} == made_for()
    assert {key: manifest[key] for key in MADE_BY} == MADE_BY
    assert list(manifest["parameters"].items()) == [
        (name, list(parameter.shape)) for name, parameter in small_network().named_parameters()
    ]
    assert {"format", "format_version", "version"} < set(manifest)


@pytest.mark.parametrize(
    ("made_by", "told"),
    [
        ({"lr_teacher": 0.02}, "(--lr_teacher 0.01 there, 0.02 now)"),
        ({"train_epochs": 9, "mom": 0.5}, "(--train_epochs 4 there, 9 now, --mom 0.0 there, 0.5 now)"),
        ({"compile": True}, "(--compile None there, True now)"),
    ],
    ids=str,
)
def test_a_folder_of_other_settings_is_left_alone(folder, made_by, told):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def enter():
        with filling(folder, made_for(), MADE_BY | made_by):
            pytest.fail("was let in")

    refused(enter, "holds experts with other settings", told, "another --buffer_path")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_several_processes_fill_a_folder(folder):
    """One that comes later finds the manifest, and leaves the files alone that another one is just writing."""
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    shape = (EPOCHS + 1, made_for()["parameter_count"])
    with filling(folder, made_for(), MADE_BY), claimed(folder, 7, shape):
        (folder / ".expert_0007.safetensors.1.tmp").touch()
        with filling(folder, made_for(), MADE_BY):
            assert list(folder.glob(".expert_*.tmp"))
    (folder / ".expert_0008.lock").touch()
    with filling(folder, made_for(), MADE_BY):
        assert not list(folder.glob(".expert_*"))  # nobody is at them: they were left by processes that were killed
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp


def test_an_expert_is_claimed_by_one_process_until_it_is_there(folder):
    shape = (EPOCHS + 1, made_for()["parameter_count"])
    with claimed(folder, EXPERTS, shape) as mine, claimed(folder, EXPERTS, shape) as theirs:
        assert (mine, theirs) == (True, False)
        with claimed(folder, EXPERTS + 1, shape) as another:
            assert another
    with claimed(folder, EXPERTS, shape) as now:
        assert now
    with claimed(folder, 0, shape) as saved:
        assert not saved
    with claimed(folder, 0, (EPOCHS + 2, shape[1])) as of_another_length:
        assert of_another_length
    assert not list(folder.glob(".expert_*"))


def test_who_waits_gets_the_expert_when_its_process_has_ended(folder):
    shape = (EPOCHS + 1, made_for()["parameter_count"])
    lock, asked = (folder / f".expert_{EXPERTS:04d}.lock").open("w"), []

    def end_the_other():
        asked.append(None)
        lock.close()

    fcntl.flock(lock, fcntl.LOCK_EX)
    with claimed(folder, EXPERTS, shape, end_the_other) as mine:
        assert mine
    assert asked == [None]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("a file, where a folder is needed")
    refused(lambda: fill(tmp_path / "file" / "model"), "cannot write to", "--buffer_path")


def test_one_process_writes_the_manifest_while_the_others_wait(folder, tmp_path):
    """Here one of the version before, which has the lock to itself while it writes, and shares it afterwards."""
    other, waited = tmp_path / "other", []
    other.mkdir()
    lock = (other / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def write_it(seconds):
        waited.append(seconds)
        shutil.copy(folder / "manifest.json", other)
        fcntl.flock(lock, fcntl.LOCK_SH)

    with pytest.MonkeyPatch.context() as patch, lock:
        patch.setattr("common.experts.folder.time.sleep", write_it)
        fill(other)
    assert waited == [1]
    assert (other / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    again = tmp_path / "again"
    again.mkdir()
    (again / ".manifest.json.7.tmp").touch()
    fill(again)
    assert not list(again.glob(".*.tmp"))


def test_a_whole_folder_is_only_read(folder):
    """Nothing is written where nothing is missing, so a buffer of somebody else's serves as well."""
    shape = (EPOCHS + 1, made_for()["parameter_count"])
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    with filling(folder, made_for(), MADE_BY):
        assert missing_experts(folder, EXPERTS, shape) == []
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before


# -- checksums ---------------------------------------------------------------------------------------------------


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def usable(folder):
    """What distillation would read of a buffer, every snapshot of every expert; "" where it is refused."""
    try:
        buffer = open_buffer(folder, made_for())
        pairs = [buffer.pair(e, start, 1) for e in range(len(buffer)) for start in range(buffer.epochs)]
    except InputError:
        return ""
    return buffer.digest, [weights.numpy().tobytes() for pair in pairs for weights in pair]


@pytest.mark.parametrize("name", ["expert_0001.safetensors", "manifest.json"])
def test_no_flipped_bit_goes_unnoticed(folder, name):
    """It is refused, or it changes nothing that is read."""
    path, before = folder / name, usable(folder)
    content = path.read_bytes()
    draws = torch.Generator().manual_seed(0)
    bits = torch.randint(8 * len(content), (150,), generator=draws).tolist()
    header = range(0, 8 * min(len(content), 700), 37)  # most of a file is weights
    silent = []
    for bit in (*bits, *header):
        flip(path, bit)
        if usable(folder) not in ("", before):
            silent.append(bit)
        path.write_bytes(content)
    assert not silent


def test_a_damaged_snapshot_is_trained_again(folder):
    """It has the right shape, which is not enough."""
    shape = (EPOCHS + 1, made_for()["parameter_count"])
    flip(folder / "expert_0001.safetensors", 8 * (folder / "expert_0001.safetensors").stat().st_size - 9)
    assert missing_experts(folder, EXPERTS, shape) == [1]


def test_buffers_of_before_checksums_are_read(folder):
    before = usable(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("checksum")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            metadata, trajectory = json.loads(stored.metadata()["fred"]), stored.get_tensor("trajectory")
        metadata.pop("checksums")
        save_file({"trajectory": trajectory}, file, {"fred": json.dumps(metadata | {"format_version": 1})})
    assert usable(folder) == before
