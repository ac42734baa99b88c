"""Buffers hold whole experts or none, say what they are of, and are read two snapshots at a time."""

import dataclasses
import fcntl
import json
import os
import pickle
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import common.training.experts
from common.config.command_line import parse_buffer
from common.config.options import BufferOptions, DataOptions
from common.datasets import load_dataset
from common.images.zca import whitened
from common.matching.trajectory import flatten
from common.networks import build_network
from common.objectives import buffer as buffer_script
from common.system.errors import InputError
from common.training.expert_folder import (
    buffer_folder,
    claimed,
    describe,
    expert_file,
    filling,
    missing_experts,
    save_expert,
)
from common.training.expert_trajectories import ExpertOrder, find_buffer, open_buffer
from common.training.experts import ExpertProtocol, train_expert
from tests.conftest import ROOT
from tests.image_sets import make_data
from tests.test_cli import assert_refused, call

MODEL = "ConvNetD1W32"
EPOCHS, EXPERTS = 4, 3
MADE_BY = {"train_epochs": EPOCHS, "keep_epochs": EPOCHS, "lr_teacher": 0.01, "mom": 0.0}


pytestmark = pytest.mark.usefixtures("one_thread")


def small_network(model=MODEL):
    return build_network(model, 3, 3, (4, 6))


def made_for(**changed):
    return {**describe(make_data(), MODEL, small_network()), **changed}


def random_rows(count=EXPERTS, epochs=EPOCHS):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, epochs + 1, made_for()["parameter_count"], generator=rng)


def fill(folder, rows=None, described=None):
    with filling(folder, described or made_for(), MADE_BY):
        for number, trajectory in enumerate(random_rows() if rows is None else rows):
            save_expert(folder, number, trajectory, {EPOCHS: 0.5})
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(buffer_folder(tmp_path / "buffers", "made up", MODEL, zca=False))


def refused(action, *parts):
    """An InputError of one line that says these things."""
    with pytest.raises(InputError) as error:
        action()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# -- reading our files -------------------------------------------------------------------------------------------


def test_a_pair_is_two_rows(folder):
    rows, buffer = random_rows(), open_buffer(folder, made_for(), EPOCHS)
    assert (len(buffer), buffer.epochs) == (EXPERTS, EPOCHS)
    for expert, start, steps in ((0, 0, 1), (1, 0, EPOCHS), (2, 1, 2), (2, EPOCHS - 1, 1)):
        first, last = buffer.pair(expert, start, steps)
        assert torch.equal(first, rows[expert, start])
        assert torch.equal(last, rows[expert, start + steps])
    first += 1  # the caller's own
    assert torch.equal(buffer.pair(2, EPOCHS - 1, 1)[0], rows[2, EPOCHS - 1])


@pytest.mark.parametrize("numbers", [(EXPERTS, 0, 1), (-1, 0, 1), (0, -1, 2), (0, 0, EPOCHS + 1), (0, 2, 0)])
def test_a_pair_that_is_not_there(folder, numbers):
    with pytest.raises(IndexError):
        open_buffer(folder, made_for()).pair(*numbers)


def test_no_more_than_the_pair_is_read(tmp_path):
    """A file of 64 GB, nearly all of it a hole: to read it whole would take longer and more memory than there is."""
    rows, count = 2**28, 64
    described = made_for(parameters={"weight": [count]}, parameter_count=count)
    fill(tmp_path / "folder", rows=[], described=described)
    stated = {"trajectory": {"dtype": "F32", "shape": [rows, count], "data_offsets": [0, 4 * rows * count]}}
    header = json.dumps(stated).encode()
    start = 8 + len(header)
    with expert_file(tmp_path / "folder", 0).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(start + 4 * rows * count)
        for row in (rows // 2, rows - 1):
            file.seek(start + 4 * row * count)
            file.write(torch.arange(row % 100, row % 100 + count).float().numpy().tobytes())
    buffer = open_buffer(tmp_path / "folder", described, rows - 1)
    first, last = buffer.pair(0, rows // 2, rows // 2 - 1)
    assert first.tolist() == [rows // 2 % 100 + i for i in range(count)]
    assert last.tolist() == [(rows - 1) % 100 + i for i in range(count)]


def test_experts_come_in_the_order_of_their_numbers(folder):
    rows = random_rows()
    for number, of in ((10_000, 1), (9_999, 2)):
        save_expert(folder, number, rows[of], {})
    expert_file(folder, 1).unlink()  # of a folder that is still filled
    (folder / "expert_copy.safetensors").write_bytes(b"another file")
    buffer = open_buffer(folder, made_for())
    assert [Path(expert.name).stem for expert in buffer.experts] == [
        "expert_0000", "expert_0002", "expert_9999", "expert_10000",
    ]  # fmt: skip
    assert torch.equal(buffer.pair(3, 0, 1)[0], rows[1, 0])


def test_a_missing_buffer_says_how_to_make_it(tmp_path):
    described = made_for(dataset="folder:a b", zca={"eps": 0.1, "fingerprint": "f"})
    path = buffer_folder(tmp_path / "buffers", "folder:a b", MODEL, zca=True)
    command = f"run `python TM/buffer.py --dataset 'folder:a b' --model {MODEL} --zca --train_epochs 50 --keep_epochs 6"
    refused(lambda: open_buffer(path, described, 6), f"no experts in {path}", command, str(tmp_path / "buffers"))
    path.mkdir(parents=True)
    refused(lambda: open_buffer(path, described, 60), "--train_epochs 60 --keep_epochs 60")


@pytest.mark.parametrize(
    "data",
    [
        DataOptions(),
        DataOptions("folder:a b", recipe="CIFAR10", image_size=32, data_path="c d", workers=2),
        DataOptions("folder:a b", recipe="digits", zca=True, no_download=True),
        DataOptions("CIFAR100", cifar100_stats="cifar10"),
        DataOptions("CIFAR100", cifar100_stats="cifar100"),  # a recipe may say the other
    ],
    ids=str,
)
@pytest.mark.parametrize("epochs", [6, 60])
def test_the_command_for_a_missing_buffer_reads_as_it_was_meant(tmp_path, data, epochs):
    """Every option of the images, and epochs that go together whatever the recipe says of them."""
    path = buffer_folder(tmp_path, data.dataset, MODEL, data.zca)
    with pytest.raises(InputError) as error:
        open_buffer(path, made_for(), epochs, data)
    read = parse_buffer(BufferOptions, "TM", shlex.split(str(error.value).split("`")[1])[2:])
    assert {key: getattr(read, key) for key in vars(data)} == vars(data)
    assert read.keep_epochs == epochs <= read.train_epochs
    assert (read.model, read.buffer_path) == (MODEL, str(tmp_path))


def test_too_few_epochs(folder):
    asked = ["have 4 epochs", "max_start_epoch - 1 + expert_epochs is 6", "--train_epochs 6", "--keep_epochs 6"]
    refused(lambda: open_buffer(folder, made_for(), 6), *asked)
    save_expert(folder, 1, random_rows()[1, :3], {})
    refused(lambda: open_buffer(folder, made_for(), 3), "have 2 epochs")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"dataset": "MNIST", "channels": 1, "mean": [0.1]}, "(--dataset made up there, MNIST now)"),
        ({"model": "ConvNetD1W64", "parameters": {}}, "(--model ConvNetD1W32 there, ConvNetD1W64 now)"),
        ({"mean": [0.1, 0.2, 0.3]}, "(mean [0.4, 0.5, 0.6] there, [0.1, 0.2, 0.3] now)"),
        ({"zca": {"eps": 0.1, "fingerprint": "f"}}, "(--zca False there, True now)"),
        ({"class_names": ["a", "b", "c"]}, "(other classes)"),
        ({"training_images": {"count": 12, "fingerprint": "f"}}, "(other training images)"),
        ({"image_size": [8, 8]}, "(image_size [4, 6] there, [8, 8] now)"),
        ({"parameters": {"weight": [3]}}, "(parameters of other names or shapes)"),
    ],
    ids=str,
)
def test_experts_of_something_else(folder, changed, told):
    refused(lambda: open_buffer(folder, made_for(**changed)), "were made for something else", told)


def test_whitened_by_other_images(tmp_path):
    described = made_for(zca={"eps": 0.1, "fingerprint": "these"})
    path = fill(tmp_path / "folder", described=described)
    assert len(open_buffer(path, described)) == EXPERTS
    other = made_for(zca={"eps": 0.1, "fingerprint": "those"})
    refused(lambda: open_buffer(path, other), "(whitened by other training images)")


def test_the_same_images_in_another_place(tmp_path):
    path = fill(tmp_path / "folder", described=made_for(dataset="folder:/here/flowers"))
    assert len(open_buffer(path, made_for(dataset="folder:/there/flowers"))) == EXPERTS
    refused(lambda: open_buffer(path, made_for(dataset="folder:/here/birds")), "--dataset folder:/here/flowers there")


def test_other_images_under_the_same_name_with_the_same_statistics(folder):
    """As of two folders of one name, for both of which mean and std are borrowed."""
    data, network = make_data(), small_network()
    again = dataclasses.replace(data, images=data.images.clone())
    assert len(open_buffer(folder, describe(again, MODEL, network))) == EXPERTS
    again.images[3, 2, 1, 0] += 1
    fewer = dataclasses.replace(data, images=data.images[1:], labels=data.labels[1:])
    for other in (again, fewer):
        refused(lambda other=other: open_buffer(folder, describe(other, MODEL, network)), "(other training images)")
    refused(lambda: fill(folder, described=describe(again, MODEL, network)), "(other training images)")


def test_descriptions_tell_whitened_images_apart(cache):
    raw = make_data()
    white, _ = whitened(raw, raw, progress=False)
    plain, changed = (describe(data, MODEL, small_network()) for data in (raw, white))
    assert {key for key in plain if plain[key] != changed[key]} == {"zca", "mean", "std", "training_images"}
    assert json.loads(json.dumps(changed)) == changed


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an expert"),
    "other tensors": lambda path: save_file({"weights": torch.zeros(3)}, path),
    "other shape": lambda path: save_file({"trajectory": torch.zeros(3)}, path),
    "other type": lambda path: save_file({"trajectory": random_rows()[0].double()}, path),
    "other network": lambda path: save_file({"trajectory": torch.zeros(EPOCHS + 1, 7)}, path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_files(folder, damage):
    file = expert_file(folder, 1)
    buffer = open_buffer(folder, made_for())
    damage(file)
    refused(lambda: open_buffer(folder, made_for()), str(file), "is damaged", "run buffer.py as before")
    shape = (EPOCHS + 1, made_for()["parameter_count"])
    assert missing_experts(folder, EXPERTS + 1, shape) == [1, EXPERTS]
    if damage is DAMAGE["truncated"]:  # while it is in use
        refused(lambda: buffer.pair(1, 0, 1), str(file), "is damaged")
    file.unlink()
    refused(lambda: buffer.pair(1, 0, 1), str(file), "is damaged")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, value):
    rows = random_rows()
    rows[1, 2, 5] = value
    file = save_expert(folder, 1, rows[1], {})
    buffer = open_buffer(folder, made_for())
    buffer.pair(1, 0, 1)  # the rows that are read decide
    for start, steps in ((2, 1), (0, 2)):
        refused(lambda start=start, steps=steps: buffer.pair(1, start, steps), f"{file}", "after 2 epochs are not fin")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": "fred-synset", "format_version": 1}', "not of expert trajectories"),
        ('{"format": "fred-experts", "format_version": 2}', "format version 2, this code reads up to 1"),
        (None, "has experts but no manifest.json"),
    ],
    ids=str,
)
def test_manifests_that_cannot_be_used(folder, text, told):
    if text is None:
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text(text)
    refused(lambda: open_buffer(folder, made_for()), told)
    refused(lambda: fill(folder), told)


# -- filling -----------------------------------------------------------------------------------------------------


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
        patch.setattr("common.training.expert_folder.time.sleep", write_it)
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


# -- which experts a run follows -------------------------------------------------------------------------------------


def test_every_expert_comes_once_before_any_comes_again(folder):
    order = ExpertOrder(open_buffer(folder, made_for()), seed=3)
    rounds = [[order.expert(EXPERTS * i + j) for j in range(EXPERTS)] for i in range(6)]
    assert all(sorted(each) == list(range(EXPERTS)) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    first = ExpertOrder(open_buffer(folder, made_for()), seed=3, max_experts=2)
    assert len(first) == first.stated()["experts"] == 2
    assert {first.expert(i) for i in range(8)} == {0, 1}


def test_a_run_keeps_to_the_experts_that_it_began_with(folder, tmp_path):
    """Whatever is trained meanwhile, also numbers that come before its own, and wherever the folder is moved."""
    rows = random_rows()
    expert_file(folder, 1).unlink()
    before = open_buffer(folder, made_for())
    order = ExpertOrder(before, seed=0)
    kept = order.state_dict()
    followed = [before.pair(order.expert(i), 0, 1)[0] for i in range(6)]
    for number in (1, EXPERTS):
        save_expert(folder, number, rows[1], {})
    moved = folder.rename(tmp_path / "moved")
    after = open_buffer(moved, made_for())
    assert after.digest == before.digest
    order = ExpertOrder(after, seed=0)
    assert len(order) == EXPERTS + 1
    order.load_state_dict(kept)
    assert order.state_dict() == kept
    assert all(torch.equal(after.pair(order.expert(i), 0, 1)[0], followed[i]) for i in range(6))
    expert_file(moved, 2).unlink()
    fewer = ExpertOrder(open_buffer(moved, made_for()), seed=0)
    refused(lambda: fewer.load_state_dict(kept), "1 of the 2 experts", "are missing", "expert_0002.safetensors")


def test_a_run_is_not_continued_with_another_buffer(folder, tmp_path):
    order = ExpertOrder(open_buffer(folder, made_for()), seed=0)
    with filling(tmp_path / "other", made_for(), MADE_BY | {"lr_teacher": 0.02}):
        for number, trajectory in enumerate(random_rows()):
            save_expert(tmp_path / "other", number, trajectory, {})
    for path in (tmp_path / "other", replay(tmp_path / "replayed", random_rows())):
        other = ExpertOrder(open_buffer(path, made_for()), seed=0)
        refused(lambda other=other: other.load_state_dict(order.state_dict()), "other experts than those in")
        refused(lambda other=other: other.check(order.stated()), "--buffer_path that it began with")


# -- the authors' files ------------------------------------------------------------------------------------------


def replay(folder, rows, number=0, network=None):
    """A file as the authors' buffer.py writes it: experts, snapshots, tensors in the order of parameters()."""
    shapes = [parameter.shape for parameter in (network or small_network()).parameters()]
    sizes = [shape.numel() for shape in shapes]
    content = [
        [[part.reshape(shape) for part, shape in zip(row.split(sizes), shapes, strict=True)] for row in trajectory]
        for trajectory in rows
    ]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / f"replay_buffer_{number}.pt")
    return folder


@pytest.fixture
def authors(tmp_path):
    """Three experts in two files, whose numbers sort otherwise as text."""
    rows, folder = random_rows(), tmp_path / "made up_NO_ZCA" / MODEL
    replay(folder, rows[2:], 10)
    return replay(folder, rows[:2], 2)


def test_the_authors_files_read_the_same(authors, folder, monkeypatch):
    original, asked = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: (asked.append(k), original(*a, **k))[1])
    ours, theirs = (open_buffer(each, made_for(), EPOCHS) for each in (folder, authors))
    assert (len(theirs), theirs.epochs) == (len(ours), ours.epochs)
    for expert in range(EXPERTS):
        for one, other in zip(ours.pair(expert, 1, 2), theirs.pair(expert, 1, 2), strict=True):
            assert torch.equal(one, other)
    assert len(asked) == 2
    assert all(each["mmap"] and each["weights_only"] for each in asked)  # neither read whole nor run


def test_parameters_in_the_authors_files(tmp_path):
    """Saved from a network's parameters themselves, as they are."""
    network = small_network()
    first = [p.detach().clone() for p in network.parameters()]
    second = [torch.nn.Parameter(p + 1) for p in first]
    torch.save([[first, second]], tmp_path / "replay_buffer_0.pt")
    pair = open_buffer(tmp_path, made_for()).pair(0, 0, 1)
    assert torch.equal(pair[0], flatten(network.parameters()))
    assert torch.equal(pair[1], torch.cat([(p + 1).flatten() for p in first]))
    assert not pair[1].requires_grad


def test_the_authors_files_made_on_a_cpu_do_not_move(tmp_path):
    rows = random_rows()[:1, -1:].expand(1, EPOCHS + 1, -1)
    buffer = open_buffer(replay(tmp_path, rows), made_for())
    refused(lambda: buffer.pair(0, 1, 2), "after 1 and 3 epochs are the same", "without a GPU")


def test_the_authors_files_of_another_network(authors, tmp_path):
    wide = build_network("ConvNetD1W64", 3, 3, (4, 6))
    described = describe(make_data(), "ConvNetD1W64", wide)
    refused(lambda: open_buffer(authors, described), "where features.0.weight of ConvNetD1W64 is", "[32, 3, 3, 3]")
    deep = build_network("ConvNetD2", 3, 3, (4, 6))
    described = describe(make_data(), "ConvNetD2", deep)
    refused(lambda: open_buffer(authors, described), "has 6 parameter tensors, ConvNetD2 has 10")


def test_the_authors_files_with_too_few_epochs_or_nan(authors):
    refused(lambda: open_buffer(authors, made_for(), 6), "have 4 epochs")
    rows = random_rows()
    rows[0, 3, 0] = float("nan")
    buffer = open_buffer(replay(authors, rows[:2], 2), made_for())
    buffer.pair(0, 0, 2)
    refused(lambda: buffer.pair(0, 1, 2), "replay_buffer_2.pt, expert 0", "after 3 epochs are not finite")


class Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save([Evil(path.parent / "ran")], path),
        lambda path: path.write_bytes(pickle.dumps([Evil(path.parent / "ran")])),
    ],
    ids=["truncated", "empty", "code", "old pickle"],
)
def test_the_authors_files_damaged_or_with_code(authors, damage):
    damage(authors / "replay_buffer_10.pt")
    refused(lambda: open_buffer(authors, made_for()), "replay_buffer_10.pt cannot be read", "never loaded", "buffer.py")
    assert not (authors / "ran").exists()


@pytest.mark.parametrize("content", [{}, [], [[]], [[torch.zeros(3)]], [[["x"]]], [3], torch.zeros(2, 2)], ids=repr)
def test_the_authors_files_that_are_none(tmp_path, content):
    torch.save(content, tmp_path / "replay_buffer_0.pt")
    told = "no experts in" if content == [] else "not a list of experts"
    refused(lambda: open_buffer(tmp_path, made_for()), told)


def test_the_authors_folders_say_whether_images_are_whitened(authors, tmp_path):
    white = made_for(zca={"eps": 0.1, "fingerprint": "f"})
    refused(lambda: open_buffer(authors, white), "without whitening", "leave out --zca")
    whitened_folder = shutil.copytree(authors, tmp_path / "made up" / MODEL)
    refused(lambda: open_buffer(whitened_folder, made_for()), "give --zca", "rename made up to made up_NO_ZCA")
    assert len(open_buffer(whitened_folder, white)) == EXPERTS
    # Where ours are missing, theirs are found.
    found = [find_buffer(tmp_path, "made up", MODEL, zca) for zca in (False, True)]
    assert found == [authors, whitened_folder]
    ours = fill(buffer_folder(tmp_path, "made up", MODEL, zca=True), described=white)
    assert find_buffer(tmp_path, "made up", MODEL, zca=True) == ours
    assert find_buffer(tmp_path, "else", MODEL, zca=False) == tmp_path / "else" / MODEL


def test_both_formats_in_one_folder(folder):
    replay(folder, random_rows())
    refused(lambda: open_buffer(folder, made_for()), "expert_0000.safetensors and replay_buffer_0.pt, two formats")


# -- the command -------------------------------------------------------------------------------------------------

COMMAND = [
    "--dataset", "digits", "--model", MODEL, "--num_experts", 2, "--train_epochs", 2, "--lr_teacher", 0.01,
    "--device", "cpu",
]  # fmt: skip


def train(path, *flags):
    return call("TM/buffer.py", *COMMAND, "--buffer_path", path, *flags)


def written(path):
    folder = path / "digits" / MODEL
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A buffer that nothing happened to, and what its making printed."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("trained")
    result = train(path, "--test_every", 1)
    assert result.code == 0, result.err
    return path, result


def test_the_command_trains_the_experts(trained):
    path, result = trained
    data, test = load_dataset("digits")
    network = build_network(MODEL, 1, 10, (8, 8))
    protocol = ExpertProtocol(2, 2, 256, 0.01, 0.0, 0.0, False, "color_crop_cutout_flip_scale_rotate", 0)
    buffer = open_buffer(path / "digits" / MODEL, describe(data, MODEL, network), 2)
    assert len(buffer) == 2
    expected = train_expert(network, data, protocol, 1)
    assert torch.equal(load_file(path / "digits" / MODEL / "expert_0001.safetensors")["trajectory"], expected)
    tested = 100 * common.training.evaluate.accuracy(network, test)
    assert f"after 1 epochs, {tested:.2f} % after 2 epochs" in result.out.splitlines()[-1]
    assert result.out.splitlines()[-1].startswith("expert 1: ")


def test_the_command_again_trains_only_what_is_missing(trained, tmp_path, monkeypatch):
    path = shutil.copytree(trained[0], tmp_path / "copy")
    original, numbers = buffer_script.train_expert, []

    def counted(network, data, protocol, number, *rest):
        numbers.append(number)
        return original(network, data, protocol, number, *rest)

    monkeypatch.setattr(buffer_script, "train_expert", counted)
    assert "2 of 2 experts are in" in train(path).out
    assert numbers == []
    expert_file(path / "digits" / MODEL, 0).unlink()
    assert "1 of 2 experts are in" in train(path, "--test_every", 1).out
    assert numbers == [0]
    assert written(path) == written(trained[0])
    DAMAGE["truncated"](expert_file(path / "digits" / MODEL, 1))
    assert "is damaged: training this expert anew" in train(path, "--test_every", 1).err
    assert written(path) == written(trained[0])
    assert train(path, "--num_experts", 3).code == 0
    assert numbers == [0, 1, 2]
    assert {name: content for name, content in written(path).items() if "0002" not in name} == written(trained[0])


def test_two_processes_share_the_experts(trained, tmp_path, monkeypatch):
    """First another one trains expert 0 all the time; then it saves expert 1 before this one comes to it."""
    path = shutil.copytree(trained[0], tmp_path / "copy")
    folder = path / "digits" / MODEL
    original, numbers = buffer_script.train_expert, []
    expert_file(folder, 0).unlink()

    def counted(network, data, protocol, number, *rest):
        numbers.append(number)
        shutil.copy(expert_file(trained[0] / "digits" / MODEL, 1), expert_file(folder, 1))
        return original(network, data, protocol, number, *rest)

    with (folder / ".expert_0000.lock").open("w") as lock, (folder / ".lock").open("w") as shared:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(shared, fcntl.LOCK_SH)
        monkeypatch.setattr(buffer_script, "train_expert", lambda *_: pytest.fail("is another's"))
        assert "expert 0: left to another process" in train(path, "--test_every", 1).out
    expert_file(folder, 1).unlink()
    monkeypatch.setattr(buffer_script, "train_expert", counted)
    result = train(path, "--test_every", 1)
    assert "expert 1: left to another process" in result.out
    assert numbers == [0]
    assert written(path) == written(trained[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_whole_experts(trained, tmp_path, monkeypatch, number):
    """In the second epoch of the second expert."""
    original, calls = common.training.experts.train_epoch, []

    def counted(*positional):
        calls.append(None)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return original(*positional)

    with monkeypatch.context() as patch:
        patch.setattr(common.training.experts, "train_epoch", counted)
        result = train(tmp_path, "--test_every", 1)
    assert result.code == 128 + number
    assert f"stopped by {number.name}: finished experts are kept, the same command trains the others" in result.err
    assert set(written(tmp_path)) == {"manifest.json", "expert_0000.safetensors"}
    assert train(tmp_path, "--test_every", 1).code == 0
    assert written(tmp_path) == written(trained[0])


KILLER = """
import os, runpy, signal, sys
written, original = [], os.fsync

def killing(file):
    written.append(file)
    if len(written) == 5:  # two files and their folder's entries are done: the second expert's file has no name yet
        os.kill(os.getpid(), signal.SIGKILL)
    original(file)

os.fsync = killing
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_sigkill_while_a_file_is_written(trained, tmp_path):
    words = [
        sys.executable,
        "-c",
        KILLER,
        ROOT / "TM/buffer.py",
        *COMMAND,
        "--buffer_path",
        tmp_path,
        "--test_every",
        1,
    ]
    result = subprocess.run(
        list(map(str, words)), env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == -signal.SIGKILL, result.stderr
    folder = tmp_path / "digits" / MODEL
    assert {file.name for file in folder.glob("*.safetensors")} == {"expert_0000.safetensors"}
    assert len(list(folder.glob(".*.tmp"))) == 1
    assert train(tmp_path, "--test_every", 1).code == 0
    assert written(tmp_path) == written(trained[0])


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--num_experts", 0], ["--num_experts 0 is too small"]),
        (["--test_every", -1], ["--test_every -1 is too small"]),
        (["--keep_epochs", 3], ["--keep_epochs 3 is more than the --train_epochs 2"]),
        (["--lr_teacher", "nan"], ["--lr_teacher nan is not finite"]),
        (["--dsa_strategy", "turn"], ["not a DSA strategy"]),
        (["--model", "ConvNte"], ["There is no network 'ConvNte'"]),
        (["--dataset", "digit"], ["there is no dataset 'digit'"]),
        (["--device", "abacus"], ["device 'abacus'"]),
        (["--lr_teacher", 0.02, "--no_dsa"], ["0.01 there, 0.02 now", "--dsa_strategy", "there, none now"]),
        (["--buffer_path", ROOT / "LICENSE"], ["cannot write to", "choose another --buffer_path"]),
    ],
    ids=str,
)
def test_the_command_refuses_in_a_sentence(trained, flags, parts):
    before = written(trained[0])
    assert_refused(train(trained[0], *flags), *parts)
    assert written(trained[0]) == before


def test_the_published_experts_are_the_default_and_recipes_change_them():
    published = parse_buffer(BufferOptions, "TM", ["--dataset", "CIFAR10"])
    assert (published.model, published.num_experts, published.train_epochs) == ("ConvNetD3", 100, 50)
    assert (published.lr_teacher, published.batch_train, published.mom, published.l2) == (0.01, 256, 0.0, 0.0)
    assert published.dsa
    assert not published.decay
    assert parse_buffer(BufferOptions, "TM", ["--dataset", "Tiny"]).model == "ConvNetD4"
    assert parse_buffer(BufferOptions, "TM", []).num_experts < 100
    assert parse_buffer(BufferOptions, "TM", ["--num_experts", "7"]).num_experts == 7


def test_waiting_for_an_expert_that_another_process_trains(trained, tmp_path, monkeypatch):
    """The others are trained first, and the command ends when all are there."""
    path = tmp_path / "buffers"
    shutil.copytree(trained[0], path)
    folder, original, numbers = path / "digits" / MODEL, buffer_script.train_expert, []
    for number in (0, 1):
        expert_file(folder, number).unlink()
    lock = (folder / ".expert_0000.lock").open("w")
    shared = (folder / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    fcntl.flock(shared, fcntl.LOCK_SH)

    def counted(network, data, protocol, number, *rest):
        numbers.append(number)
        return original(network, data, protocol, number, *rest)

    def finish_the_other(seconds):
        shutil.copy(expert_file(trained[0] / "digits" / MODEL, 0), expert_file(folder, 0))
        lock.close()

    monkeypatch.setattr(buffer_script, "train_expert", counted)
    monkeypatch.setattr("common.training.expert_folder.time.sleep", finish_the_other)
    result = train(path, "--test_every", 1, "--wait")
    shared.close()
    assert result.code == 0, result.err
    assert numbers == [1]
    assert written(path) == written(trained[0])
