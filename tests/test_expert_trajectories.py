"""Experts are read two snapshots at a time, ours and the authors', and a run keeps to those that it began with."""

import dataclasses
import json
import pickle
import shlex
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.config.command_line import parse_buffer
from common.config.options import BufferOptions, DataOptions
from common.experts.buffer import ExpertOrder
from common.experts.folder import buffer_folder, describe, expert_file, filling, missing_experts, save_expert
from common.experts.open import find_buffer, open_buffer
from common.matching.trajectory import flatten
from common.networks import build_network
from common.system.errors import InputError
from tests.bit_flips import assert_noticed
from tests.expert_buffers import (
    EPOCHS,
    EXPERTS,
    MADE_BY,
    MODEL,
    fill,
    made_for,
    random_rows,
    refused,
    replay,
    small_network,
    truncate,
)
from tests.image_sets import make_data

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    return fill(buffer_folder(tmp_path / "buffers", "made up", MODEL, zca=False))


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
    metadata = {
        "fred": json.dumps({"format": "fred-experts", "format_version": 1, "accuracies": {}})
    }  # without checksums
    trajectory = {"dtype": "F32", "shape": [rows, count], "data_offsets": [0, 4 * rows * count]}
    stated = {"__metadata__": metadata, "trajectory": trajectory}
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
    again = dataclasses.replace(data, images=data.images.clone())
    again.images[3, 2, 1, 0] += 1
    fewer = dataclasses.replace(data, images=data.images[1:], labels=data.labels[1:])
    for other in (again, fewer):
        refused(lambda other=other: open_buffer(folder, describe(other, MODEL, network)), "(other training images)")
    refused(lambda: fill(folder, described=describe(again, MODEL, network)), "(other training images)")


DAMAGE = {
    "truncated": truncate,
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
    if damage is truncate:  # while it is in use
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
        ("", "manifest.json is damaged (it is no JSON"),
        ("[]", "holds a list of 0, and a table is expected: restore it"),
        ('{"format": "fred-synset", "format_version": 1}', "not of expert trajectories"),
        ('{"format": "fred-experts", "format_version": 3}', "format version 3, this code reads up to 2"),
        ('{"format": "fred-experts", "format_version": 2}', "is damaged: restore it, or remove the folder"),
        (
            '{"format": "fred-experts", "format_version": 0}',
            "has 0 for 'format_version', and a number of at least",
        ),
        (
            '{"format": "fred-experts", "format_version": 1e400}',
            "has inf for 'format_version', and a finite number",
        ),
        ("[" * 100_000, "has tables or lists in more than 100 levels"),
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


# -- which experts a run follows -------------------------------------------------------------------------------------


def test_every_expert_comes_once_before_any_comes_again(folder):
    order = ExpertOrder(open_buffer(folder, made_for()), seed=3)
    rounds = [[order.expert(EXPERTS * i + j) for j in range(EXPERTS)] for i in range(6)]
    assert all(sorted(each) == list(range(EXPERTS)) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1
    first = ExpertOrder(open_buffer(folder, made_for()), seed=3, max_experts=2)
    assert len(first) == first.as_metadata()["experts"] == 2
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
        refused(lambda other=other: other.check(order.as_metadata()), "--buffer_path that it began with")


# -- the authors' files ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("together", [True, False], ids=["one storage", "one for each tensor"])
def test_no_flipped_bit_changes_what_the_authors_files_give(tmp_path, together):
    folder = replay(tmp_path, random_rows(1, 2))
    file = folder / "replay_buffer_0.pt"
    if not together:
        content = torch.load(file, weights_only=True)
        torch.save([[[tensor.clone() for tensor in tensors] for tensors in each] for each in content], file)

    def read():
        buffer = open_buffer(folder, made_for())
        return len(buffer), buffer.epochs, buffer.digest, *buffer.pair(0, 0, 1), *buffer.pair(0, 1, 1)

    assert_noticed(file, read, 400)


def test_damage_in_the_authors_files_is_told_of_when_it_is_used(authors):
    file = authors / "replay_buffer_2.pt"
    content = [[[tensor.clone() for tensor in each] for each in every] for every in torch.load(file, weights_only=True)]
    torch.save(content, file)
    last = content[0][3][0].numpy().tobytes()
    damaged = bytearray(file.read_bytes())
    damaged[damaged.index(last)] ^= 1
    file.write_bytes(damaged)
    buffer = open_buffer(authors, made_for())
    buffer.pair(0, 1, 1)  # only what is used is read
    refused(lambda: buffer.pair(0, 1, 2), "replay_buffer_2.pt is damaged", "wrong checksum", "copy it again")
    buffer.pair(1, 1, 2)


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
