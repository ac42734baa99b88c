"""Networks that are trained together are those that are trained alone."""

import math

import pytest
import torch

from common.config.options import DSA_STRATEGY
from common.datasets import ImageData, load_dataset
from common.matching import augment
from common.matching.augment import STRATEGIES
from common.networks import build_network, reinitialise
from common.system.errors import Stopped
from common.system.seeds import derive, generator
from common.training import ensemble
from common.training import train as train_module
from common.training.pool import EvaluationNetwork, evaluate_pool, networks_at_once, train_and_test
from common.training.train import Batches, EvaluationProtocol, train

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 3


def training_set(number, count=24):
    draws = generator(0, "test images", number)
    return Batches(torch.randn(count, 3, 16, 16, generator=draws, dtype=torch.float64), torch.arange(count) % 4)


PROTOCOLS = {
    "dc": EvaluationProtocol(3, 0.05, 10, DSA_STRATEGY),
    "dc, without augmentation": EvaluationProtocol(2, 0.05, 10, ""),
    "dc's augmentation": EvaluationProtocol(2, 0.05, 10, "", "crop_scale_rotate"),
    "glad": EvaluationProtocol(4, 0.05, 10, DSA_STRATEGY, kind="glad"),
}


@pytest.mark.parametrize("model", ["ConvNetD2W16", "ConvNetD2W16BN", "ConvNetD2W16LNMP"])
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_the_logits_are_those_of_networks_trained_alone(model, protocol):
    """Different sets, orders and augmentations; batch statistics, momentum and moving averages of their own."""
    network = build_network(model, 3, 4, (16, 16)).double()
    sets = [training_set(number) for number in range(COUNT)]
    seeds = [derive(0, "test network", number) for number in range(COUNT)]
    images = training_set(COUNT).images[:7]
    alone = []
    for number in range(COUNT):
        reinitialise(network, seeds[number])
        train(network, sets[number], protocol, generator(0, "test draws", number))
        alone.append(network.eval()(images).detach())
    weights, buffers = ensemble.initial(network, seeds)
    draws = [generator(0, "test draws", number) for number in range(COUNT)]
    ensemble.train(ensemble.stacked(network.train()), weights, buffers, sets, protocol, draws)
    tested = ensemble.stacked(network.eval())
    together = tested(weights, buffers, images.expand(COUNT, *images.shape)).detach()
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-7, atol=1e-9)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_accuracies_of_an_evaluation_are_the_same():
    train_data, test_data = load_dataset("digits")
    network = build_network("ConvNetD1W16", 1, 10, (8, 8))
    images = Batches(train_data.batch(torch.arange(150)), train_data.labels[:150])
    protocol = EvaluationProtocol(6, 0.05, 64, DSA_STRATEGY)
    batches = []

    def run(numbers, together):
        given = (EvaluationNetwork(network), lambda number: images, [test_data], protocol, numbers, 0)
        return [each for (each,) in train_and_test(*given, together=together, on_batch=lambda: batches.append(1))]

    alone = run(range(3), 1)
    each = 7 * 3 + 1  # 7 epochs of 150 images in batches of 64, and a test pass
    assert len(batches) == 3 * each
    assert max(alone) > 0.4
    for together in (2, 10):
        assert run(range(3), together) == pytest.approx(alone, abs=2 / len(test_data))  # rounding turns a close call
    assert len(batches) == 3 * 3 * each


def test_networks_with_dropout_are_trained_alone(monkeypatch):
    monkeypatch.setattr(ensemble.Ensemble, "accuracies", lambda *_: pytest.fail("their draws would differ"))
    train_data, test_data = load_dataset("digits")
    images = Batches(train_data.batch(torch.arange(10)), train_data.labels[:10])
    network = build_network("ViT", 1, 10, (8, 8))
    protocol = EvaluationProtocol(0, 0.05, 64, "")
    given = (EvaluationNetwork(network), lambda number: images, [test_data], protocol, [0], 0)
    assert len(list(train_and_test(*given, together=2))) == 1


def test_training_sets_of_different_lengths_are_refused():
    network = build_network("ConvNetD1W16", 3, 4, (16, 16))
    weights, buffers = ensemble.initial(network, [0, 1])
    sets = [training_set(0, 8), training_set(1, 12)]
    with pytest.raises(ValueError, match=r"of one length, not \[8, 12\]"):
        ensemble.train(
            ensemble.stacked(network), weights, buffers, sets, PROTOCOLS["dc"], [generator(0, "a"), generator(0, "b")]
        )


def test_how_many_at_once():
    assert networks_at_once(0, torch.device("cpu")) == 1
    assert networks_at_once(0, torch.device("cuda")) > 1000
    assert networks_at_once(3, torch.device("cuda")) == networks_at_once(3, torch.device("cpu")) == 3


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("at", [1, 3, 4, 6])  # of 3 batches of training and 3 of the test
def test_a_stop_ends_every_loop_over_batches_at_once(monkeypatch, together, at):
    train_data, test_data = load_dataset("digits")
    network = EvaluationNetwork(build_network("ConvNetD1W16", 1, 10, (8, 8)))
    images = Batches(train_data.batch(torch.arange(150)), train_data.labels[:150])
    monkeypatch.setattr(train_module, "test_batch", lambda im_size: 120)
    seen, read = [], []
    batch = ImageData.batch
    monkeypatch.setattr(ImageData, "batch", lambda self, indices: read.append(indices) or batch(self, indices))

    def stop():
        seen.append(None)
        if len(seen) == at:
            raise Stopped(15, "kept")

    protocol = EvaluationProtocol(0, 0.05, 50, "")
    with pytest.raises(Stopped):
        evaluate_pool(
            {"a": network}, lambda number: images, test_data, protocol, 1 if together == 1 else 2, 0,
            dataset="digits", together=together, check_stop=stop,
        )  # fmt: skip
    assert len(seen) == at
    tested = max(0, at - 3 * together)  # every network calls it
    assert len(read) == math.ceil(tested / together)


def test_a_stop_ends_the_training():
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    network = build_network("ConvNetD1W16", 3, 4, (16, 16)).double()
    with pytest.raises(Stop):
        ensemble.Ensemble(network).accuracies(
            [0], [training_set(0)], [load_dataset("digits")[1]], PROTOCOLS["dc"], [generator(0, "a")], stop
        )


def test_what_is_compiled_serves_every_evaluation():
    """One function for training and one for testing, whatever is asked for later."""
    compiled = []

    def compile(function):
        compiled.append(function)
        return function

    train_data, test_data = load_dataset("digits")
    images = Batches(train_data.batch(torch.arange(20)), train_data.labels[:20])
    together = ensemble.Ensemble(build_network("ConvNetD1W16", 1, 10, (8, 8)), compile)
    given = ([0, 1], [images, images], [test_data], EvaluationProtocol(1, 0.05, 16, ""))
    first, second = (together.accuracies(*given, [generator(0, "a"), generator(0, "b")]) for _ in range(2))
    assert first == second
    assert len(compiled) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_joined_augmentations_do_what_each_does(dtype):
    parts = [augment.sample(name, 3, generator(0, name), (12, 16), dtype=dtype) for name in (*STRATEGIES, "none")]
    images = torch.randn(len(parts) * 6, 3, 12, 16, generator=generator(0, "images"), dtype=dtype)
    expected = [augment.apply(some, part) for some, part in zip(images.split(6), parts, strict=True)]
    joined = augment.join(parts)
    assert joined.groups == 3 * len(parts)
    assert torch.equal(augment.apply(images, joined), torch.cat(expected))
    with pytest.raises(ValueError, match="cannot be joined"):
        augment.join([parts[0], augment.sample("flip", 1, generator(0, "other"), (8, 8))])
