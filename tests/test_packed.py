"""Sets that are stored as bf16, int8 or coded, and their files."""

import copy
import json
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from common.codec.planes import Planes
from common.codec.quantise import bits_of
from common.codec.side import chosen_tables
from common.codec.tables import exact_bits
from common.config.checks import check
from common.config.command_line import parse
from common.synset.adam import ADAM_STEP
from common.synset.file import file_bytes, load_synset, save_synset
from common.synset.open import open_synset
from common.synset.packed import PackedArgs, PackedSet
from common.synset.synset import SynSet
from common.system.errors import InputError
from DM.distill import Options
from tests import decode_alone
from tests.synsets import args, real_images, started

METADATA = {"dataset": "digits", "mean": [0.5], "std": [0.25], "class_names": list("abcd"), "objective": "DM"}
SMALL = {
    "channel": 3, "num_classes": 4, "im_size": (16, 16), "device": "cpu", "ipc": 1, "msz_per_channel": 10,
    "lr_freq": 0.1, "mom_freq": 0.5, "bits_per_class": 6000,
}  # fmt: skip
KINDS = {
    "coded": {},
    "coded-opponent-blocks": {"colour": "opponent", "block": 8},
    "coded-1": {"channel": 1, "bits_per_class": 4000},
    "coded-3d": {"channel": 1, "im_size": (8, 8, 8), "block": 8},
    "coded-few": {"num_per_class": 3},
    "bf16-shared": {"storage": "bf16", "kept": "shared"},
    "bf16-joint-blocks": {"storage": "bf16", "block": 8},
    "int8-shared": {"storage": "int8", "kept": "shared", "selection": "low"},
    "int8-joint": {"storage": "int8", "colour": "opponent"},
    "int8-3d": {"storage": "int8", "kept": "shared", "channel": 1, "im_size": (8, 8, 8), "msz_per_channel": 40},
}


def smooth(a, per_class=60):
    """Real images whose energy falls off with the frequency, the arguments of `init`."""
    images, labels, indices = real_images(a, per_class)
    planes = Planes(a.channel, tuple(a.im_size))
    fall = torch.ones(planes.size)
    fall[planes.scan] = 4 / (1 + torch.arange(planes.size) % planes.d).sqrt()
    return planes.inverse(planes.forward(images) * fall), labels, indices


def packed(**changes):
    """A set that has its start; a copy, for a start is sought once for each kind."""
    return copy.deepcopy(_packed(tuple(changes.items())))


@cache
def _packed(changes):
    a = PackedArgs(**(SMALL | {"num_per_class": 0} | dict(changes)))
    if a.storage == "coded" and not a.num_per_class:
        a.num_per_class = 12
    synset = PackedSet(a)
    synset.init(*smooth(a))
    return synset


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def synset(request):
    return packed(**request.param)


def test_the_payload_has_the_bytes_that_are_counted_by_hand(synset):
    payload, c, n = synset.payload, synset.num_classes, synset.num_per_class
    head = 12 + 2 * len(synset.im_size)
    if synset.storage == "coded":
        words = len(payload) - head - 4 * c
        assert words % 4 == 0
        stored, scan = decode_alone.payload(payload)[0], synset.planes.scan.numpy()
        under = chosen_tables(torch.from_numpy(stored[0].astype(np.int16)))
        codes = exact_bits(stored[0].transpose(0, 2, 1).ravel(), under.ravel().repeat(n))
        beside = np.concatenate([np.diff(under[:, scan], axis=1).ravel(), stored[1].ravel()])  # tables and means
        # No code can be shorter than the entropy of what is told; what lies beside the codes takes few bits a number.
        assert 0.99 * codes <= 8 * words <= 1.01 * codes + 6 * beside.size + 64
    else:
        kept = 10 * synset.channel if synset.d == 256 else 40
        joint = synset.kept == "joint"
        limit = synset.planes.size if joint else synset.d
        one = (synset.positions if joint else synset.positions[:, : kept // synset.channel]).numpy()
        width = 1 if np.diff(one, axis=1, prepend=-1).max() <= 256 else 2
        where = 6 + min(c * -(-limit // 8), width * one.size)
        scales = 2 * c * kept if synset.storage == "int8" else 0
        assert len(payload) == head + where + scales + c * n * kept * (2 if synset.storage == "bf16" else 1)
    b = synset.budget()
    assert b["payload_bytes"] == len(payload) <= b["allowed_bytes"] == c * synset.bits_per_class // 8
    assert b["coefficient_bytes"] == 4 * b["coefficients"]
    assert f"{len(payload):,} bytes for a decoder" in synset.describe_budget()


def test_most_of_the_budget_is_used(synset):
    b = synset.budget()
    one = 8 * b["coefficient_bytes"] / b["images"] / b["allowed_bytes"] if synset.storage != "coded" else 0
    assert b["payload_bytes"] > (0.97 - max(0.1, one)) * b["allowed_bytes"]


def test_what_is_decoded_is_the_file_and_decodes_alone(tmp_path, synset):
    path = save_synset(synset, tmp_path / "set.safetensors", METADATA, torch.tensor(0.03))
    parts = file_bytes(path)
    assert sum(parts.values()) == path.stat().st_size
    assert parts["needed"] == len(synset.payload)
    loaded, metadata = load_synset(path)
    assert metadata["step_size"] == pytest.approx(0.03)
    assert metadata["format_version"] == 3
    assert metadata["storage"]["bytes"] == len(synset.payload)
    assert loaded.payload == synset.payload
    images = loaded.get(need_copy=True)[0]
    assert torch.equal(images, synset.stored().get(need_copy=True)[0])
    assert torch.equal(loaded.get(range(5))[0], images[:5])
    assert torch.equal(loaded.mask, synset.stored().mask)
    del metadata["step_size"]
    again = save_synset(loaded, tmp_path / "again.safetensors", metadata, torch.tensor(0.03))
    assert again.read_bytes() == path.read_bytes()
    stored, alone = decode_alone.open_file(path)
    torch.testing.assert_close(torch.from_numpy(alone).flatten(0, 1).float(), images, atol=1e-5, rtol=1e-5)
    contents = loaded.contents
    if synset.storage == "coded":
        assert np.array_equal(stored[0], contents.values.numpy())
        assert np.array_equal(stored[1], contents.means.numpy())
    else:
        values = contents.values if synset.storage == "int8" else contents.values.view(torch.int16)
        assert np.array_equal(stored.astype(np.int16), values.to(torch.int16).numpy())
    assert open_synset(str(path))[0].budget() == synset.budget()


def test_float32_files_decode_alone_too(tmp_path):
    for changes in ({}, {"channel": 1, "im_size": (4, 4, 4)}):
        path = save_synset(started(**changes), tmp_path / "set.safetensors", METADATA)
        stored, alone = decode_alone.open_file(path)
        loaded = load_synset(path)[0]
        assert np.array_equal(stored, loaded.coefficients.detach().numpy())
        torch.testing.assert_close(
            torch.from_numpy(alone).flatten(0, 1).float(), loaded.decode().detach(), atol=1e-5, rtol=1e-5
        )
        assert file_bytes(path)["needed"] == 4 * (loaded.coefficients.numel() + loaded.positions.numel())


@pytest.mark.parametrize("transform", ["dft", "dwt", "identity"])
def test_the_decoder_alone_refuses_other_transforms(tmp_path, transform):
    path = save_synset(started(transform=transform), tmp_path / "set.safetensors", METADATA)
    with pytest.raises(AssertionError, match="other transforms are not decoded here"):
        decode_alone.open_file(path)


def test_the_decoder_alone_is_short_and_imports_nothing_of_ours():
    lines = [line for line in Path(decode_alone.__file__).read_text().splitlines() if line.strip()]
    assert len(lines) < 80
    assert not [line for line in lines if "import" in line and "common" in line]


def test_distilling_rounds_and_the_gradient_passes_straight_through(synset):
    images = synset.decode()
    rows = synset.get(torch.tensor([1, synset.num_per_class + 2]))[0]
    torch.testing.assert_close(rows, images[[1, synset.num_per_class + 2]])
    some = slice(1, 3)
    torch.testing.assert_close(synset.decode(some), images.unflatten(0, (4, -1))[some].flatten(0, 1))
    if synset.storage != "coded":  # whose file may have another step than the updates
        assert torch.equal(images, synset.stored().decode())
    toward = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    images.backward(toward)
    expected = synset.planes.forward(toward).unflatten(0, (4, -1))
    if synset.storage != "coded":
        expected = expected.gather(2, synset.positions[:, None].expand(synset.coefficients.shape))
    torch.testing.assert_close(synset.coefficients.grad, expected / synset.units, atol=1e-5, rtol=1e-4)
    before, payload = synset.coefficients.detach().clone(), synset.payload
    synset.optim_step()
    moved = (synset.coefficients.detach() - before).abs()
    spread = synset.optimizer.state[synset.coefficients]["spread"]
    torch.testing.assert_close(moved, (0.1 * spread).expand(moved.shape), rtol=1e-3, atol=1e-4)  # Adam's first step
    assert len(synset.payload) <= synset.budget()["allowed_bytes"]
    assert synset.payload != payload


def test_the_budget_holds_however_the_coefficients_grow():
    synset = packed(colour="opponent")
    for number in range(25):
        synset.optim_zero_grad()
        toward = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(number))
        synset.decode().backward(toward)
        synset.optim_step()
    assert len(synset.payload) <= 3000
    assert len(synset.payload) > 2900


def test_the_rate_term_keeps_codes_short():
    found = []
    for weight in (0.0, 0.5):
        synset = packed(colour="opponent", rate_weight=weight)
        step = synset.state_dict()["step"]
        for number in range(9):  # the step is not searched yet
            synset.optim_zero_grad()
            toward = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(number))
            synset.decode().backward(toward)
            synset.optim_step()
        found.append(bits_of(synset.coefficients.detach() / synset.units, step).sum().item())
    assert found[1] < 0.95 * found[0]


def test_joint_positions_are_those_of_the_largest_energy():
    synset = packed(storage="int8", colour="opponent")
    every = {"msz_per_channel": 256, "bits_per_class": 10**7, "num_per_class": synset.num_per_class}
    drawn = packed(storage="bf16", colour="opponent", **every)  # the same images
    dense, energy = drawn.coefficients.detach() / drawn.units, torch.zeros(4, synset.planes.size)
    for c in range(4):
        for i in range(synset.num_per_class):
            energy[c] += dense[c, i] ** 2
    for c in range(4):
        assert set(synset.positions[c].tolist()) == set(energy[c].topk(30).indices.tolist())


def test_shared_positions_are_those_of_the_float32_set():
    synset = packed(storage="bf16", kept="shared", optimizer="sgd", num_per_class=11)
    a = args(**{key: SMALL[key] for key in ("im_size", "msz_per_channel", "lr_freq")}, ipc=1)
    plain = SynSet(a)
    plain.init(*smooth(a))
    for c in range(4):  # another number of images may choose others; most agree
        assert len(set(plain.positions[c].tolist()) & set(synset.positions[c, :10].tolist())) >= 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"storage": "int8", "kept": "shared", "colour": "opponent"}, "give --positions joint"),
        ({"storage": "int8", "kept": "shared", "block": 8}, "shared positions are those of the whole image"),
        ({"storage": "int8", "bits_per_class": 100}, "100 bits per class hold 0 images"),
        ({"storage": "int8", "num_per_class": 50}, "a smaller --n"),
        ({"bits_per_class": 60}, "60 bits per class do not hold 12 images, however coarsely rounded: give more bits"),
        ({"num_per_class": 61}, "class 0 has 60 images, and the set is to have 61 per class: give a smaller --n"),
        ({"channel": 1, "colour": "opponent"}, "give --colour rgb"),
        ({"kept": "all"}, "unknown positions"),
    ],
)
def test_impossible_sets_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        packed(**changes)


def rewritten(path, change):
    """A file with another payload or other metadata, and a checksum that is right."""
    from safetensors.torch import load_file, save_file

    from common.synset import file as module

    tensors = load_file(path)
    with module.opened_tensors(path) as opened:
        metadata = json.loads(opened.metadata()["fred"])
    metadata.pop("checksum")
    change(metadata, tensors)
    metadata["checksum"] = module.set_checksum(metadata, tensors)
    save_file(tensors, path, metadata={"fred": json.dumps(metadata)})


def _cut(metadata, tensors):
    tensors["payload"] = tensors["payload"][:-8].clone()


def _more_classes(metadata, tensors):
    metadata["num_classes"] = 5


def _huge(metadata, tensors):
    metadata["im_size"] = [60_000, 60_000]


def _many(metadata, tensors):
    head = bytearray(tensors["payload"].numpy().tobytes())
    struct.pack_into("<I", head, 8, 1 << 31)
    tensors["payload"] = torch.frombuffer(head, dtype=torch.uint8)


def _floats(metadata, tensors):
    tensors["payload"] = torch.zeros(8)


def _without(metadata, tensors):
    del metadata["storage"]["block"]


@pytest.mark.parametrize("synset", [KINDS["coded-opponent-blocks"], KINDS["int8-joint"]], indirect=True)
@pytest.mark.parametrize("change", [_cut, _more_classes, _huge, _many, _floats, _without])
def test_hostile_files_are_refused_in_a_sentence(tmp_path, synset, change):
    path = save_synset(synset, tmp_path / "set.safetensors", METADATA)
    rewritten(path, change)
    with pytest.raises(InputError, match="damaged"):
        load_synset(path)


def _put(key, value):
    def change(metadata, tensors):
        if key.startswith("storage "):
            metadata["storage"][key.split()[1]] = value
        elif key == "step_size":
            tensors[key] = value
        else:
            metadata[key] = value

    return change


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("storage", "x"), ("storage", None), ("storage bits_per_class", "x"), ("storage bits_per_class", None),
        ("storage bits_per_class", 0), ("storage bits_per_class", -5), ("storage bytes", 5), ("storage numbers", 7),
        ("im_size", 8), ("msz_per_channel", "a"), ("ipc", "a"), ("lr_freq", "x"), ("step_size", torch.ones(2)),
        ("format_version", 1), ("format_version", 2), ("format_version", True),
    ],
)  # fmt: skip
def test_metadata_of_other_types_or_other_numbers_are_refused(tmp_path, key, value):
    path = save_synset(packed(), tmp_path / "set.safetensors", METADATA)
    rewritten(path, _put(key, value))
    with pytest.raises(InputError, match="update it" if value is True else "damaged"):
        load_synset(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("im_size", 8), ("msz_per_channel", "a"), ("msz_per_channel", 0), ("num_classes", 10**9), ("lr_freq", "x")],
)
def test_the_metadata_of_float32_sets_are_checked_too(tmp_path, key, value):
    path = save_synset(started(), tmp_path / "set.safetensors", METADATA)
    rewritten(path, _put(key, value))
    with pytest.raises(InputError, match="damaged"):
        load_synset(path)


def asked(*words):
    return parse(Options, "DM", ["--dataset", "CIFAR10", *words])


def test_options_follow_the_storage():
    options, sources = asked("--storage", "coded")
    assert (options.optimizer_used, options.lr_freq, options.msz_per_channel) == ("adam", ADAM_STEP, 0)
    assert sources["lr_freq"] == "of --storage coded, --optimizer adam"
    options, _ = asked("--storage", "int8", "--positions", "joint")
    assert (options.optimizer_used, options.msz_per_channel, options.lr_freq) == ("sgd", 64, asked()[0].lr_freq)
    for bits, ipc in ((98_304, 1), (200_000, 2), (1_000_000, 10), (10**8, 51)):
        options, sources = asked("--storage", "coded", "--bits_per_class", str(bits))
        assert (options.ipc, sources["ipc"]) == (ipc, "nearest to --bits_per_class")
    assert asked("--storage", "coded", "--bits_per_class", "98304", "--ipc", "10")[0].ipc == 10
    for flag in ("--n", "--images_per_class"):
        options, sources = asked("--storage", "coded", flag, "7")
        assert (options.n, sources["n"]) == (7, "flag")
    check(options, "DM")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n", "3"], "--n has no use with --storage fp32"),
        (["--bits_per_class", "5"], "--bits_per_class has no use with --storage fp32"),
        (["--block", "8"], "--block has no use"),
        (["--colour", "opponent"], "--colour has no use"),
        (["--positions", "joint"], "--positions has no use"),
        (["--storage", "coded", "--positions", "joint"], "leave out --positions"),
        (["--storage", "coded", "--msz_per_channel", "4"], "leave out --msz_per_channel"),
        (["--storage", "coded", "--mom_freq", "0.5"], "Adam has no --mom_freq"),
        (["--storage", "coded", "--transform", "dwt"], "stores coefficients of the dct"),
        (["--storage", "int8", "--colour", "opponent"], "give --positions joint"),
        (["--storage", "int8", "--block", "8"], "give --positions joint, or leave out --block"),
        (["--storage", "int8", "--positions", "joint", "--selection", "low"], "leave out --selection"),
        (["--storage", "int8", "--n", "0"], "--n 0 is too small"),
        (["--storage", "int8", "--rate_weight", "0.1"], "--rate_weight is for --storage coded"),
        (["--storage", "coded", "--rate_weight", "-1"], "--rate_weight -1.0 is too small"),
    ],
)
def test_options_that_contradict_each_other_are_named(words, message):
    with pytest.raises(InputError, match=message):
        asked(*words)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_deep_copy_learns_by_itself_as_the_set_would(optimizer):
    original = packed(storage="bf16", optimizer=optimizer)
    twin = copy.deepcopy(original)
    before = original.coefficients.detach().clone()
    for each in (twin, original):
        each.optim_zero_grad()
        each.decode().square().sum().backward()
        each.optim_step()
        assert torch.equal(original.coefficients, before) == (each is twin)
    assert torch.equal(twin.coefficients, original.coefficients)
