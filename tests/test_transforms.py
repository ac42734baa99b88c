"""Augmentations of torchvision in place of DSA: what they do to a batch, and that only the run's seed decides it."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from common.config.evaluate_options import EvaluateOptions
from common.datasets import load_dataset
from common.images.zca import whiten, whitening_of
from common.matching.transforms import Augmenter, check_augmentation
from common.networks import build_network
from common.system.errors import InputError
from common.training import ensemble as stack
from common.training.evaluate import evaluate
from common.training.evaluation_setup import prepare_evaluation
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol, train
from tests.command_line import assert_refused, call
from tests.voxel_sets import make_voxels, write_voxels

FOUR = ["autoaugment", "randaugment", "cutmix", "mixup"]
PLAIN = {"model": "ConvNetD1W16", "networks": 1, "epochs": 2, "lr": 0.05, "progress": False}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def batch(data, count=6):
    indices = torch.cat([rows[:1] for rows in data.class_indices])[:count]
    return data.batch(indices), data.labels[indices]


def drawn(name, data, seed=0):
    return Augmenter(name, data)(*batch(data), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FOUR)
def test_draws_are_the_generators_alone(digits, name):
    """Whatever the global generator is at, which stays where it was."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    images, labels = drawn(name, digits[0])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, labels_again = drawn(name, digits[0])
    assert torch.equal(images, again)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(images, drawn(name, digits[0], seed=5)[0])
    assert not torch.equal(images, batch(digits[0])[0])


@pytest.mark.parametrize("name", ["autoaugment", "randaugment"])
def test_policies_work_on_pixels_of_8_bits_and_draw_for_each_image(digits, name):
    data = digits[0]
    images, labels = drawn(name, data)
    pixels = data.denormalise(images, clamp=False) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    assert pixels.min() > -1e-3
    assert pixels.max() < 255.001
    assert torch.equal(labels, batch(data)[1])
    one, same = (each[:1].expand(16, *each.shape[1:]) for each in batch(data))
    varied = Augmenter(name, data)(one, same, torch.Generator().manual_seed(0))[0]
    assert len({image.numpy().tobytes() for image in varied}) > 2


def test_mixup_blends_images_and_labels_alike(digits):
    images, labels = batch(digits[0])
    mixed, soft = drawn("mixup", digits[0])
    share = soft.gather(1, labels[:, None])[0, 0]
    assert 0 < share < 1
    assert torch.allclose(mixed, share * images + (1 - share) * images.roll(1, 0), atol=1e-6)
    assert torch.allclose(soft, share * F.one_hot(labels, 10) + (1 - share) * F.one_hot(labels.roll(1, 0), 10))


def test_cutmix_takes_a_rectangle_and_its_share_of_the_label(digits):
    data = digits[0]
    ramp = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 8, 8)  # so that every pixel tells which image it is of
    labels = torch.arange(6)
    seen = set()
    for seed in range(8):
        mixed, soft = Augmenter("cutmix", data)(ramp, labels, torch.Generator().manual_seed(seed))
        other = (mixed != ramp).flatten(1).sum(dim=1)
        assert other.unique().numel() == 1
        assert torch.equal(mixed[mixed != ramp], ramp.roll(1, 0)[mixed != ramp])
        assert torch.allclose(soft.gather(1, labels[:, None]), 1 - other[0] / 64)
        seen.add(int(other[0]))
    assert len(seen) > 4


def test_probabilities_are_mixed_too(digits):
    images, _ = batch(digits[0])
    given = torch.rand(6, 10, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    _, soft = Augmenter("mixup", digits[0])(images, given, torch.Generator().manual_seed(0))
    assert torch.allclose(soft.sum(dim=1), torch.ones(6))
    assert not torch.equal(soft, given)


@pytest.mark.parametrize("kind", ["dc", "glad"])
@pytest.mark.parametrize("name", FOUR)
def test_networks_together_are_networks_alone(digits, name, kind):
    train_data, test = digits
    sets = Batches(train_data.batch(torch.arange(40)), train_data.labels[:40])
    pool = {"ConvNetD1W16": EvaluationNetwork(build_network("ConvNetD1W16", 1, 10, (8, 8)))}
    protocol = EvaluationProtocol(3, 0.05, 16, "", kind=kind, augmentation=name)
    given = (pool, lambda number: sets, test, protocol, 3, 0)
    alone, together = (
        evaluate_pool(*given, dataset="digits", together=count, progress=False)["ConvNetD1W16"] for count in (1, 3)
    )
    assert together == pytest.approx(alone, abs=0.02)
    assert len(set(alone)) > 1


def test_every_augmentation_trains_another_network(digits):
    train_data, test = digits
    few = (train_data.batch(torch.arange(60)), train_data.labels[:60])
    names = ["dsa", "none", *FOUR]
    found = {name: evaluate(few, test, **PLAIN, augmentation=name)["accuracies"][0] for name in names}
    again = {name: evaluate(few, test, **PLAIN, augmentation=name)["accuracies"][0] for name in FOUR}
    assert found == found | again
    assert len(set(found.values())) >= 5
    assert found["none"] == evaluate(few, test, **PLAIN, dsa_strategy="none")["accuracies"][0]
    with pytest.raises(InputError, match="augmentation is 'cut': give one of dsa, none"):
        evaluate(few, test, **PLAIN, augmentation="cut")


def test_training_needs_the_augmenter_of_its_protocol(digits):
    protocol, network = EvaluationProtocol(0, 0.1, 8, "", augmentation="mixup"), build_network("MLP", 1, 10, (8, 8))
    with pytest.raises(ValueError, match="to train with mixup takes"):
        train(network, digits[0], protocol, torch.Generator())
    with pytest.raises(ValueError, match="to train with dsa takes"):
        train(network, digits[0], replace(protocol, augmentation="dsa"), torch.Generator(), None, lambda: None,
              Augmenter("mixup", digits[0]))  # fmt: skip
    with pytest.raises(ValueError, match="to train with mixup takes"):
        stack.train(stack.stacked(network), *stack.initial(network, [0]), [digits[0]], protocol, [torch.Generator()])


def test_the_rule_for_epochs_counts_the_augmentation():
    plain = EvaluationProtocol(None, 0.01, 256, "")
    assert plain.for_network("CIFAR10", "ConvNetD3").epochs == 300
    assert replace(plain, augmentation="none").for_network("MNIST", "ConvNetBN").dc_strategy == ""
    assert replace(plain, augmentation="none").for_network("MNIST", "ConvNetD3").epochs == 300
    assert replace(plain, augmentation="cutmix").for_network("MNIST", "ConvNetD3").epochs == 1000
    assert plain.as_metadata() == {"epochs": None, "lr": 0.01, "batch": 256, "strategy": ""}
    assert replace(plain, augmentation="mixup").as_metadata()["augmentation"] == "mixup"
    told = [EvaluationProtocol(1, 0.1, 8, "color_crop"), plain.for_network("MNIST", "MLP"), plain,
            replace(plain, augmentation="mixup")]  # fmt: skip
    assert [each.describe_augmentation() for each in told] == [
        "dsa color_crop", "dc crop_scale_rotate", "none", "mixup",
    ]  # fmt: skip


def test_what_cannot_be_augmented_is_refused_in_a_sentence(digits, cache, tmp_path):
    data = digits[0]
    white = whiten(data, whitening_of(data, 0.1, False), False)
    for name in ("autoaugment", "randaugment"):
        with pytest.raises(InputError, match=f"--augmentation {name} works on pixels of 8 bits, which ZCA-whitened"):
            Augmenter(name, white)
    for name in ("dsa", "none", "cutmix", "mixup"):
        check_augmentation(name, white)
    with pytest.raises(InputError, match="takes images with one or three channels, and those of digits have 2"):
        check_augmentation("randaugment", replace(data, images=data.images.expand(-1, 2, -1, -1), mean=(0.0, 0.0),
                                                  std=(1.0, 1.0)))  # fmt: skip
    write_voxels(tmp_path / "3D-MNIST" / "full_dataset_vectors.h5", make_voxels())
    result = call("3D-MNIST/evaluate.py", "--baseline", "random", "--augmentation", "cutmix", "--data_path", tmp_path,
                  "--device", "cpu", "--num_eval", 1)  # fmt: skip
    assert_refused(result, "--augmentation cutmix is for pictures", "give none")


def test_the_command_says_what_it_used(tmp_path):
    flags = ["--baseline", "random", "--dataset", "digits", "--num_eval", 1, "--device", "cpu"]
    flags += ["--model", "ConvNetD1W16", "--epoch_eval_train", 2, "--output", tmp_path / "result.json"]
    result = call("DM/evaluate.py", *flags, "--augmentation", "cutmix")
    assert result.code == 0, result.err
    assert "(1 x ConvNetD1W16, augmentation cutmix)" in result.out
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["augmentation"] == {"ConvNetD1W16": "cutmix"}
    assert written["evaluation"] == {"epochs": 2, "lr": 0.01, "batch": 256, "strategy": "", "augmentation": "cutmix"}
    head, row = (tmp_path / "result.csv").read_text().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["augmentation"] == "cutmix"
    refused = call("DM/evaluate.py", *flags, "--augmentation", "cutmix", "--dsa_strategy", "flip")
    assert_refused(refused, "--dsa_strategy says what --augmentation dsa draws from", "leave one of them out")


def test_a_coreset_is_the_same_whatever_augments_it():
    chosen = []
    for name in ("dsa", "mixup"):
        options = EvaluateOptions(
            baseline="herding", dataset="digits", model="MLP", coreset_epochs=1, augmentation=name
        )  # fmt: skip
        setup = prepare_evaluation(options, "DM", {}, torch.device("cpu"))
        assert setup.protocol.augmentation == name
        chosen.append(setup.training_sets(0).images)
    assert torch.equal(*chosen)
