import pytest
import torch

from common.datasets import load_dataset
from common.networks import build_network, reinitialise
from common.training.evaluate import evaluate, random_real
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
        return list(evaluate(network, lambda number: images, test_data, protocol, numbers, seed=0, point=point))

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
