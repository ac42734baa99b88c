import numpy as np
import pytest
import torch

from common.config.options import DSA_STRATEGY
from common.datasets import load_dataset
from common.networks import build_network, reinitialise
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from common.training.coresets import random_real
from common.training.evaluate import evaluate
from common.training.pool import EvaluationNetwork, evaluate_pool, train_and_test
from common.training.train import Batches, EvaluationProtocol, accuracy, train


def separable(count=40):
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat(count // 2)
    return Batches(torch.randn(count, 1, 8, 8, generator=draws) * 0.1 + labels.view(-1, 1, 1, 1), labels)


def small_network():
    return build_network("ConvNetD1W32", 1, 2, (8, 8))


@pytest.mark.parametrize("epochs", [0, 1, 4, 5])
def test_schedule_is_the_authors(epochs, monkeypatch):
    """epochs + 1 epochs; a new optimizer at a tenth of the step size after epoch epochs // 2 + 1."""
    made = []

    class Recorded(torch.optim.SGD):
        def __init__(self, *positional, **named):
            super().__init__(*positional, **named)
            made.append({"lr": named["lr"], "momentum": named["momentum"], "decay": named["weight_decay"], "steps": 0})

        def step(self, *positional):
            made[-1]["steps"] += 1
            return super().step(*positional)

    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    train(small_network(), separable(), EvaluationProtocol(epochs, 0.01, 16, ""), torch.Generator().manual_seed(0))
    batches = 3  # 40 images in batches of 16: the last, partial one is kept
    high = min(epochs + 1, epochs // 2 + 2)
    assert [made[0]["lr"], made[0]["momentum"], made[0]["decay"], made[0]["steps"]] == [0.01, 0.9, 5e-4, batches * high]
    assert [m["steps"] for m in made[1:]] == ([batches * (epochs + 1 - high)] if epochs + 1 > high else [])
    assert all(m["lr"] == pytest.approx(0.001) for m in made[1:])


def test_training_learns_and_is_a_function_of_its_numbers():
    train_data, test_data = load_dataset("digits")
    network = build_network("ConvNetD2W32", 1, 10, (8, 8))
    images = Batches(train_data.batch(torch.arange(200)), train_data.labels[:200])
    protocol = EvaluationProtocol(8, 0.05, 64, "color_crop_cutout_flip_scale_rotate")

    def run(numbers, point=0):
        given = (EvaluationNetwork(network), lambda number: images, [test_data], protocol, numbers)
        return [each for (each,) in train_and_test(*given, seed=0, point=point)]

    state = torch.get_rng_state()
    both = run([0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    assert both[0] != both[1]
    assert run([1]) == [both[1]]  # any order, any subset
    assert run([0], point=5) != [both[0]]
    assert min(both) > 0.5


def test_accuracy_counts():
    _, test_data = load_dataset("digits")
    network = build_network("ConvNetD1W32", 1, 10, (8, 8))
    reinitialise(network, 0)
    with torch.no_grad():
        predicted = network(test_data.batch(torch.arange(len(test_data)))).argmax(dim=1)
    assert accuracy(network, test_data) == (predicted == test_data.labels).double().mean().item()


def test_random_real_images_have_the_budget():
    train_data, _ = load_dataset("digits")
    chosen = random_real(train_data, 3, torch.Generator().manual_seed(0))
    assert chosen.images.shape == (30, 1, 8, 8)
    assert chosen.labels.tolist() == [c for c in range(10) for _ in range(3)]
    all_images = train_data.batch(torch.arange(len(train_data)))
    for image, label in zip(chosen.images, chosen.labels, strict=True):
        same = (all_images == image).flatten(1).all(dim=1)
        assert (train_data.labels[same] == label).any()


QUICK = {"model": "ConvNetD1W16", "networks": 2, "epochs": 3, "lr": 0.05, "progress": False}


def synthetic_digits():
    train_data, test_data = load_dataset("digits")
    sizes = {"channel": train_data.channels, "num_classes": train_data.num_classes, "im_size": train_data.im_size}
    synset = SynSet(SynSetArgs(**sizes, ipc=1, msz_per_channel=16, lr_freq=1.0, mom_freq=0.5, device="cpu"))
    synset.init(train_data, train_data.labels, train_data.class_indices)
    return synset, train_data, test_data


def test_evaluate_in_one_call():
    synset, _, test_data = synthetic_digits()
    before, state = synset.coefficients.detach().clone(), torch.get_rng_state()
    found = evaluate(synset, test_data, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(synset.coefficients, before)
    assert list(found) == ["network", "mean", "std", "n", "accuracies"]
    assert (found["network"], found["n"]) == ("ConvNetD1W16", 2)
    assert found["accuracies"][0] != found["accuracies"][1]
    assert found["mean"] == np.mean(found["accuracies"]) > 0.15
    # The same images and labels as tensors, and the same numbers as of any other evaluation.
    images, labels = synset.get(need_copy=True)
    assert evaluate((images, labels), test_data, **QUICK) == found
    network = EvaluationNetwork(build_network("ConvNetD1W16", 1, 10, (8, 8)))
    protocol = EvaluationProtocol(3, 0.05, 256, DSA_STRATEGY)
    given = (network, lambda number: Batches(images, labels), [test_data], protocol, range(2), 0)
    assert [each for (each,) in train_and_test(*given)] == found["accuracies"]
    assert evaluate(synset, test_data, **QUICK, seed=1)["accuracies"] != found["accuracies"]


def test_evaluate_takes_real_images():
    _, train_data, test_data = synthetic_digits()
    assert evaluate(train_data, test_data, **QUICK | {"networks": 1})["mean"] > 0.6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"networks": 0}, "networks is 0: give at least 1"),
        ({"epochs": -1}, "epochs is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"lr": 0.0}, "lr is 0.0: give a positive"),
        ({"dsa_strategy": "turn"}, "not a DSA strategy"),
        ({"model": "ConvNte"}, "There is no network"),
    ],
    ids=str,
)
def test_evaluate_refuses_values_that_cannot_work(changed, message):
    synset, _, test_data = synthetic_digits()
    with pytest.raises(InputError, match=message):
        evaluate(synset, test_data, **QUICK | changed)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 1, 8, 9), torch.zeros(4, dtype=torch.long), r"are \(1, 8, 9\), those of digits \(1, 8, 8\)"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(3, dtype=torch.long), r"4 images need as many int64 labels"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4), "int64 labels, not torch.float32"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), "uint8: normalise them"),
        (torch.zeros(4, 1, 8, 8), torch.full((4,), 10), "labels from 0 to 9"),
        (torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long), "labels from 0 to 9"),
    ],
)
def test_evaluate_refuses_sets_that_do_not_fit(images, labels, message):
    _, test_data = load_dataset("digits")
    with pytest.raises(InputError, match=message):
        evaluate((images, labels), test_data, **QUICK)


@pytest.mark.parametrize("together", [1, 2])
def test_the_bar_of_a_pool_counts_the_batches_of_training_and_testing(capsys, together):
    train_data, test_data = load_dataset("digits")
    images = Batches(train_data.batch(torch.arange(150)), train_data.labels[:150])
    pool = {name: EvaluationNetwork(build_network(name, 1, 10, (8, 8))) for name in ("ConvNetD1W16", "MLP")}
    protocol = EvaluationProtocol(1, 0.05, 64, "")
    evaluate_pool(pool, lambda number: images, test_data, protocol, 3, 0, dataset="digits", together=together)
    (line,) = capsys.readouterr().err.splitlines()
    each = 2 * 3 + 1  # 2 epochs of 150 images in batches of 64, and 360 test images at once
    assert line.startswith(f"MLP: 100%| {6 * each}/{6 * each} batch [")


def test_a_pool_goes_on_after_what_is_finished():
    synset, _, test_data = synthetic_digits()
    batches = Batches(*synset.get(need_copy=True))
    names = ("ConvNetD1W16", "MLP")
    pool = {name: EvaluationNetwork(build_network(name, 1, 10, (8, 8))) for name in names}
    given = (pool, lambda number: batches, test_data, EvaluationProtocol(1, 0.05, 64, ""), 2, 0)
    named = {"dataset": "digits", "progress": False}
    whole = evaluate_pool(*given, **named)
    assert [len(whole[name]) for name in names] == [2, 2]
    told = []
    finished = {"ConvNetD1W16": whole["ConvNetD1W16"], "MLP": whole["MLP"][:1]}
    again = evaluate_pool(*given, **named, finished=finished, on_accuracy=lambda *pair: told.append(pair))
    assert again == whole
    assert told == [("MLP", whole["MLP"][1])]
    assert len(finished["MLP"]) == 1
