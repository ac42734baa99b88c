"""Evaluation pools: the authors' lists, and runs that test every network of one."""

import json

import pytest
import torch

from common.networks import has_batchnorm
from common.networks.pools import build_pool, pool_names, principal
from common.system.errors import InputError
from tests.command_line import SHORT, assert_refused, call, run_folder


@pytest.mark.parametrize(
    ("mode", "model", "names"),
    [
        ("S", "ConvNetD3", ["ConvNetD3"]),
        ("S", "ConvNetBN", ["ConvNet"]),
        ("S", "ConvNetASwishBN", ["ConvNetASwish"]),
        ("SS", "ConvNetBN", ["ConvNetBN"]),
        ("C", "ConvNetD4", ["ConvNetD4", "ConvNet"]),
        ("C", "ConvNet", ["ConvNet"]),
        ("M", "ConvNetD3", ["ConvNet", "AlexNet", "VGG11", "ResNet18"]),
        ("B", "ConvNetD3", ["ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"]),
        ("W", "ConvNetD3", ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"]),
        ("D", "MLP", ["ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"]),
        ("A", "ConvNetD3", ["ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"]),
        ("P", "ConvNetD3", ["ConvNetNP", "ConvNetMP", "ConvNetAP"]),
        ("N", "ConvNetD3", ["ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"]),
    ],
)
def test_pools_are_the_authors(mode, model, names):
    assert list(pool_names(mode, model)) == names


@pytest.mark.parametrize("mode", ["S", "SS", "C", "W", "D", "A", "P", "N"])
def test_pools_of_convnets_can_be_built(mode):
    built = build_pool(mode, "ConvNetD3BN", 3, 10, (32, 32))
    assert list(built) == list(pool_names(mode, "ConvNetD3BN"))


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 64), (3, 128)])
def test_pools_of_architectures_can_be_built_at_every_published_size(channels, side):
    with torch.device("meta"):  # without their weights
        pools = [build_pool(mode, "ConvNetD3", channels, 10, (side, side)) for mode in ("M", "B")]
    assert [len(pool) for pool in pools] == [4, 5]
    for pool, batchnorm in zip(pools, (False, True), strict=True):
        assert {has_batchnorm(network) for network in pool.values()} == {batchnorm}
        for network in pool.values():
            assert network(torch.empty(2, channels, side, side, device="meta")).shape == (2, 10)


def test_the_distillation_network_stands_for_its_pool():
    assert principal(["ConvNetD1", "ConvNetD3"], "ConvNetD3") == "ConvNetD3"
    assert principal(["ConvNetD1", "ConvNetD2"], "MLP") == "ConvNetD1"


def test_a_network_that_cannot_be_built_is_named_with_its_pool():
    with pytest.raises(InputError, match=r"--eval_mode D tests ConvNetD4: Images of 1x8x8 are too small"):
        build_pool("D", "ConvNetD3", 1, 10, (8, 8))
    with pytest.raises(InputError, match=r"^There is no network"):  # given by name: the pool has no part in it
        build_pool("SS", "ConvNet3", 1, 10, (8, 8))


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A run that distils with ConvNetD1W32BN and tests two networks of each kind of pooling."""
    path = tmp_path_factory.mktemp("pool")
    flags = ["--model", "ConvNetD1W32BN", "--eval_mode", "P", "--num_eval", 2, "--Iteration", 1]
    result = call("DM/distill.py", *SHORT, *flags, "--save_path", path)
    assert result.code == 0, result.err
    return path, result


def test_every_network_of_a_pool_is_tested_and_written_down(tested):
    path, result = tested
    summary = json.loads((run_folder(path) / "summary.json").read_text())
    for point in (summary["start"], summary["last"]):
        assert list(point["networks"]) == ["ConvNetNP", "ConvNetMP", "ConvNetAP"]
        assert point["network"] == "ConvNetNP"
        assert point["mean"] == point["networks"]["ConvNetNP"]["mean"]
        for figures in point["networks"].values():
            assert figures["n"] == len(figures["accuracies"]) == 2
            assert 0 <= figures["mean"] <= 1
    for name in summary["last"]["networks"]:
        assert f"{name}: " in result.out


def test_the_file_says_what_was_matched_and_what_was_measured(tested):
    from common.synset.file import load_synset

    _, metadata = load_synset(run_folder(tested[0]) / "synset.safetensors")
    assert metadata["model"] == "ConvNetD1W32BN"
    assert metadata["network"] == metadata["accuracy"]["network"] == "ConvNetNP"


def test_a_file_is_evaluated_on_a_pool(tested, tmp_path):
    file = run_folder(tested[0]) / "synset.safetensors"
    output = tmp_path / "result.json"
    flags = ["--eval_mode", "C", "--model", "MLP", "--num_eval", 1, "--device", "cpu", "--output", output]
    result = call("DM/evaluate.py", "--synset", file, *flags)
    assert result.code == 0, result.err
    written = json.loads(output.read_text())
    assert list(written["networks"]) == ["MLP", "ConvNet"]
    assert written["network"] == "MLP"
    for name in ("MLP", "ConvNet"):
        assert f"(1 x {name})" in result.out
    assert "is stored in the file (2 x ConvNetNP)" in result.out


def test_a_pool_with_a_network_that_cannot_take_the_images_is_refused_before_the_run(tmp_path):
    result = call("DM/distill.py", *SHORT, "--eval_mode", "M", "--save_path", tmp_path / "runs")
    assert_refused(result, "--eval_mode M tests VGG11: Images of 1x8x8 are too small")
    assert not (tmp_path / "runs").exists()
    assert call("DM/distill.py", *SHORT, "--eval_mode", "Q", "--save_path", tmp_path / "runs").code == 2


def test_batch_norm_is_left_out_of_the_evaluation_unless_asked_for(tmp_path):
    """The authors' modes S and SS."""
    for mode, network in (("S", "ConvNetD1W32"), ("SS", "ConvNetD1W32BN")):
        flags = ["--model", "ConvNetD1W32BN", "--eval_mode", mode, "--Iteration", 0, "--save_path", tmp_path / mode]
        assert call("DM/distill.py", *SHORT, *flags).code == 0
        assert json.loads((run_folder(tmp_path / mode) / "summary.json").read_text())["last"]["network"] == network
