"""What a file says of its network: a count and a hash that know what is computed and not what it is called."""

import pytest
import torch
from torch import nn

from common.datasets import load_dataset
from common.networks import FAMILIES, build_network
from common.networks import architecture as architecture_module
from common.networks.architecture import architecture, architecture_of, check_architecture
from common.networks.network import Network
from common.synset.file import load_synset, save_synset
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from tests.command_line import assert_refused, call

HASH = "af847db24c837bf4893e4b4ea08a81e84769b8cd"
NAMES = [
    "ConvNetD1W16", "ConvNetD2W16", "ConvNetD1W16AS", "ConvNetD1W16MP", "ConvNetD1W16BN", "ConvNetD1W16GN", "MLP",
    "ConvNetD1W16LN", "ConvNetD1W16NN", "ConvNetD1W16AL", "ConvNetD1W16ASwish", "ConvNetD1W16NP",
]  # fmt: skip


def of(name, channels=1, classes=10, im_size=(8, 8)):
    return architecture(name, channels, classes, im_size)


def test_different_networks_have_different_hashes():
    found = [of(name) for name in NAMES]
    assert len({each["hash"] for each in found}) == len(NAMES)
    assert of("ConvNetD1W16")["hash"] == of("ConvNetD1W16IN")["hash"]  # instance norm is the default
    assert of("ConvNetD1W16", classes=9)["hash"] != of("ConvNetD1W16")["hash"]
    plain = build_network("ConvNetD1W16", 1, 10, (8, 8))
    assert of("ConvNetD1W16")["parameters"] == sum(p.numel() for p in plain.parameters())


class _Named(Network):
    """A network whose Python names, alone, are others than those of `_Same`."""

    def __init__(self):
        super().__init__()
        self.features, self.classifier = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), nn.Linear(108, 10)


class _Same(_Named):
    pass


class _Scaled(_Named):
    def embed(self, x):
        return self.features(x).flatten(1) * torch.linspace(1, 2, 108, dtype=x.dtype)


def test_names_of_classes_do_not_enter_and_what_is_computed_does():
    found = [architecture_of(kind(), 1, (8, 8)) for kind in (_Named, _Same, _Scaled)]
    assert found[0] == found[1]
    assert found[0]["parameters"] == found[2]["parameters"]
    assert found[0]["hash"] != found[2]["hash"]


def test_the_weights_of_the_network_do_not_enter_and_stay():
    network = build_network("ConvNetD1W16BN", 1, 10, (8, 8))
    network.features[0].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    first = architecture_of(network, 1, (8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    assert architecture_of(network, 1, (8, 8)) == first
    torch.manual_seed(3)
    assert architecture.__wrapped__("ConvNetD1W16BN", 1, 10, (8, 8)) == first


def test_rounding_is_far_above_the_rounding_of_machines(monkeypatch):
    """Another order of sums changes outputs in float64 by 1e-15; weights that differ by 1e-11 are the same here."""
    first = of("ConvNetD2W16")
    drawn = architecture_module._drawn
    monkeypatch.setattr(architecture_module, "_drawn", lambda *given: drawn(*given) * (1 + 1e-11))
    assert architecture.__wrapped__("ConvNetD2W16", 1, 10, (8, 8)) == first
    monkeypatch.setattr(architecture_module, "_drawn", lambda *given: drawn(*given) + 1e-2)
    assert architecture.__wrapped__("ConvNetD2W16", 1, 10, (8, 8)) != first


def test_the_hash_of_a_network_is_what_files_have():
    """A change of this value would refuse every file: the format of the hash is part of the format of files."""
    assert of("ConvNetD1W16") == {"parameters": 5962, "hash": HASH}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.names[0])
def test_every_family_has_one(family):
    name = family.names[0]
    sides = (16, 16, 16) if name == "Conv3DNet" else (32, 32)
    assert architecture(name, 1, 10, sides)["parameters"] > 0
    assert architecture("ConvNte", 1, 10, (8, 8)) is None


def digits_set(folder, **changed):
    train, test = load_dataset("digits")
    synset = SynSet(SynSetArgs(1, 10, (8, 8), "cpu", 1, 16, 1.0, 0.5))
    synset.init(train, train.labels, train.class_indices)
    about = {"dataset": "digits", "network": "ConvNetD1W16", "mean": list(test.mean), "std": list(test.std)}
    about["evaluation"] = {"epochs": 1, "lr": 0.05, "batch": 256, "strategy": ""}
    return save_synset(synset, folder / "set.safetensors", about | changed)


def test_a_file_keeps_it_and_evaluation_compares(tmp_path):
    path = digits_set(tmp_path)
    synset, metadata = load_synset(path)
    assert metadata["architecture"] == of("ConvNetD1W16")
    command = ["DM/evaluate.py", "--synset", path, "--num_eval", 1, "--device", "cpu"]
    assert call(*command).code == 0
    other = {"parameters": 4242, "hash": metadata["architecture"]["hash"]}
    assert save_synset(synset, path, metadata | {"architecture": other})
    told = "was made for a ConvNetD1W16 that is another network than the ConvNetD1W16 of this code"
    refused = call(*command)
    assert_refused(refused, str(path), told, "4,242 parameters there, 5,962 here", "give another network with --model")
    assert_refused(call(*command, "--models", "MLP,ConvNetD1W16"), told)
    assert call(*command, "--model", "MLP").code == 0


def test_files_without_it_load_as_before(tmp_path):
    path = digits_set(tmp_path, network=None)
    assert "architecture" not in load_synset(path)[1]
    assert (
        call("DM/evaluate.py", "--synset", path, "--model", "ConvNetD1W16", "--num_eval", 1, "--device", "cpu").code
        == 0
    )
    check_architecture(build_network("MLP", 1, 10, (8, 8)), "MLP", None, "file", (1, 8, 8))
    unknown = digits_set(tmp_path, network="ANetworkOfMyOwn")
    assert "architecture" not in load_synset(unknown)[1]


@pytest.mark.parametrize("wrong", ["text", {"parameters": "many", "hash": "x"}, {"parameters": 3}])
def test_what_is_no_architecture_is_damaged(tmp_path, wrong):
    with pytest.raises(InputError, match=r"'architecture.*is expected"):
        digits_set(tmp_path, architecture=wrong)


def test_the_hash_does_not_depend_on_the_default_type_of_numbers():
    network = build_network("ConvNetD1W16", 1, 10, (8, 8))
    expected = architecture_of(network, 1, (8, 8))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert architecture_of(network, 1, (8, 8)) == expected
        assert architecture_of(build_network("ConvNetD1W16", 1, 10, (8, 8)), 1, (8, 8)) == expected
    finally:
        torch.set_default_dtype(before)
