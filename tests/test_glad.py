"""GLaD's evaluation protocol, as in ImageNet-abcde: its schedule, the moving average it tests, runs that use it."""

import json

import pytest
import torch
from torch import nn

from common.config.options import DistillOptions
from common.networks import build_network
from common.networks.pools import pool_names
from common.synset.file import load_synset
from common.system.seeds import seeded
from common.training import train as training
from common.training.train import Batches, EvaluationProtocol, train
from tests.command_line import SHORT, assert_refused, call, run_folder


def glad(epochs=1000, lr=None, batch=256):
    return EvaluationProtocol(epochs, lr, batch, "", kind="glad")


def some_images(side=8, count=24):
    draws = torch.Generator().manual_seed(0)
    return Batches(torch.randn(count, 1, side, side, generator=draws), torch.arange(count) % 2)


def test_the_step_size_rises_linearly_and_falls_by_a_cosine():
    """Values of 1000 epochs as the authors' schedulers give them."""
    protocol = glad().for_network("digits", "ConvNetD5")
    assert protocol.epochs_of_training == 1000
    assert protocol.step_size(0) == pytest.approx(1e-10)
    assert protocol.step_size(250) == pytest.approx(1e-3 * (1e-7 + (1 - 1e-7) / 2))
    assert protocol.step_size(500) == protocol.step_size(501) == pytest.approx(1e-3)
    assert protocol.step_size(751) == pytest.approx(1e-3 * 0.5)
    assert protocol.step_size(999) == pytest.approx(3.9e-8, rel=0.02)
    assert all(0 < glad(epochs, 1.0).step_size(e) <= 1 for epochs in (1, 2, 3, 7) for e in range(epochs))


@pytest.mark.parametrize(
    ("network", "lr"),
    [("ConvNetD5", 1e-3), ("ResNet18", 1e-3), ("VGG11", 1e-4), ("VGG11CIFAR", 1e-4), ("AlexNet", 1e-3), ("ViT", 1e-3)],
)
def test_the_step_size_follows_the_architecture(network, lr):
    assert glad().for_network("imagenet-a", network).lr == lr
    assert glad(lr=0.5).for_network("imagenet-a", network).lr == 0.5


def test_without_a_network_there_is_neither_step_size_nor_epochs():
    with pytest.raises(ValueError, match="for_network"):
        glad().step_size(0)
    with pytest.raises(ValueError, match="for_network"):
        _ = glad(epochs=None).epochs_of_training


def test_the_moving_average_over_epochs_is_what_is_left(monkeypatch):
    """The mean of all epochs while they are few, then an exponential average; batch statistics with it."""
    monkeypatch.setattr(training, "GLAD_DECAY", 0.6)
    network = build_network("ConvNetD1W32BN", 1, 2, (8, 8))
    after = []
    protocol = glad(6, lr=0.1, batch=10)
    train(
        network,
        some_images(),
        protocol,
        torch.Generator().manual_seed(0),
        on_batch=lambda: after.append({name: value.clone() for name, value in network.state_dict().items()}),
    )
    after = after[2::3]  # three batches are an epoch
    assert len(after) == 6
    for name, value in network.state_dict().items():
        expected = after[0][name].double()
        for count, state in enumerate(after[1:], start=1):
            decay = min(count / (count + 1), 0.6)
            expected = decay * expected + (1 - decay) * state[name].double()
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
            assert not torch.equal(value, after[-1][name])
        else:
            assert value == after[-1][name]


def test_every_epoch_is_run_with_its_step_size_and_one_momentum(monkeypatch):
    rates, optimizers = [], []

    class Recorded(torch.optim.SGD):
        def __init__(self, *positional, **named):
            super().__init__(*positional, **named)
            optimizers.append(self)

        def step(self, *positional):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*positional)

    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    protocol = glad(5, lr=0.1, batch=24)
    train(build_network("MLP", 1, 2, (28, 28)), some_images(28), protocol, torch.Generator().manual_seed(0))
    assert len(optimizers) == 1
    assert rates == [protocol.step_size(epoch) for epoch in range(5)]


def test_protocols_go_through_a_file_and_back():
    for protocol in (glad(), glad(7, 0.1), EvaluationProtocol(None, 0.01, 256, "flip")):
        assert EvaluationProtocol(**json.loads(json.dumps(protocol.as_metadata()))) == protocol
    assert "kind" not in EvaluationProtocol(1, 0.01, 256, "").as_metadata()
    assert EvaluationProtocol.of(DistillOptions(eval_protocol="glad")).lr is None
    assert EvaluationProtocol.of(DistillOptions(lr_net=0.5)).lr == 0.5


def test_the_pool_is_glads():
    assert pool_names("M", "ConvNetD5", "glad") == ("ConvNetD5", "ResNet18", "VGG11", "AlexNet", "ViT")
    assert pool_names("M", "ViT", "glad") == ("ViT", "ResNet18", "VGG11", "AlexNet")
    assert pool_names("CIFAR", "ConvNet") == ("ConvNet", "ResNet18CIFAR", "VGG11CIFAR", "AlexNetCIFAR", "ViTCIFAR")
    assert pool_names("S", "ConvNetD5_BN") == ("ConvNetD5",)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.weights(x))


def test_dropout_is_a_function_of_the_seed():
    network, images = Dropping(), torch.ones(3, 4)
    before = torch.get_rng_state()

    def drawn(*numbers):
        with seeded(network, 0, "test", *numbers):
            return network(images).detach()

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(torch.get_rng_state(), before)


GLAD = ["--eval_protocol", "glad", "--eval_mode", "C", "--num_eval", 2, "--epoch_eval_train", 3]


def test_other_networks_may_wait_for_the_end(tmp_path):
    words = [*SHORT, *GLAD, "--wait_eval", "--eval_it", 1, "--save_path", tmp_path]
    result = call("DM/distill.py", *words)
    assert result.code == 0, result.err
    summary = json.loads((run_folder(tmp_path) / "summary.json").read_text())
    model = summary["last"]["network"]
    assert set(summary["last"]["networks"]) == {model, "ConvNet"}
    assert "networks" not in summary["start"]
    best = summary["best_on_test_by_network"]
    assert best["ConvNet"]["iteration"] == summary["last"]["iteration"]
    lines = [json.loads(line) for line in (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    means = [line["evaluation"]["mean"] for line in lines if "evaluation" in line]
    assert best[model]["mean"] == max(means)
    assert f"{model:>20}: last" in result.out
    assert f"{'ConvNet':>20}: last" in result.out


def test_a_file_is_evaluated_as_it_says(tmp_path):
    words = [*SHORT, *GLAD, "--Iteration", 0, "--save_path", tmp_path]
    assert call("DM/distill.py", *words).code == 0
    file, output = run_folder(tmp_path) / "synset.safetensors", tmp_path / "result.json"
    _, metadata = load_synset(file)
    assert metadata["evaluation"]["kind"] == "glad"
    assert metadata["evaluation"]["lr"] is None
    flags = ["--synset", file, "--num_eval", 2, "--device", "cpu", "--output", output]
    assert call("DM/evaluate.py", *flags).code == 0
    stored = metadata["accuracy"]
    assert json.loads(output.read_text())["accuracies"] == stored["accuracies"]
    # Asked for the other protocol, its step size comes with it.
    assert call("DM/evaluate.py", *flags, "--eval_protocol", "dc").code == 0
    evaluation = json.loads(output.read_text())["evaluation"]
    assert evaluation["lr"] == 0.01
    assert "kind" not in evaluation


def test_a_step_size_for_nothing_is_refused(tmp_path):
    words = [*SHORT, *GLAD, "--lr_net", 0.1, "--save_path", tmp_path]
    assert_refused(call("DM/distill.py", *words), "--lr_net has no use with --eval_protocol glad")
