"""Datasets by name: unknown names are answered with the known ones, options reach the images."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from common.datasets import DATASETS, digits, load_dataset, statistics
from common.images import disk_cache
from common.system.errors import InputError


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("mnist", "did you mean .*MNIST"),
        ("cifar-10", "did you mean CIFAR10"),
        ("qqq", "'qqq', did you mean .*, .* or "),
    ],
)
def test_unknown_name_is_answered_with_the_nearest_ones(name: str, guess: str) -> None:
    with pytest.raises(InputError, match=guess) as caught:
        load_dataset(name)
    assert all(known in str(caught.value) for known in ["folder:PATH", "hf:owner/name"])
    assert len([known for known in DATASETS if re.search(rf"\b{known}\b", str(caught.value))]) <= 4  # 3D-MNIST has two


def test_statistics_by_name() -> None:
    assert statistics("MNIST") == ((0.1307,), (0.3081,))
    assert statistics("CIFAR10") == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert statistics("folder:somewhere") is None


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean has 3 values.*1 channels"),
        ({"std": (0.5, 0.5)}, "std has 2 values.*1 channels"),
        ({"std": (0.0,)}, "above 0"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"image_size": 16}, "8 x 8 pixels, not 16"),
    ],
)
def test_options_that_do_not_fit_the_images(option: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_dataset("digits", **option)


def test_given_statistics_are_used() -> None:
    for data in load_dataset("digits", mean=[0.1], std=[0.2], image_size=8):
        assert (data.mean, data.std) == ((0.1,), (0.2,))


def test_digits_are_split_in_proportion_and_their_statistics_are_right() -> None:
    train, test = load_dataset("digits")
    assert (len(train), len(test), train.im_size, train.images.dtype) == (1437, 360, (8, 8), torch.uint8)
    shares = [torch.bincount(data.labels) / len(data) for data in (train, test)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    assert train.images.max() == 255
    values = train.images.double() / 255
    assert (round(values.mean().item(), 4), round(values.std().item(), 4)) == (train.mean[0], train.std[0])
    assert digits.STATISTICS == statistics("digits") == (train.mean, train.std)


def test_digits_are_kept_so_that_scikit_learn_is_imported_once(monkeypatch) -> None:
    first = load_dataset("digits")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)
        again = load_dataset("digits")
    monkeypatch.setattr(disk_cache, "read", lambda *_: None)
    made = load_dataset("digits")
    for each, *others in zip(first, again, made, strict=True):
        for other in others:
            assert torch.equal(each.images, other.images)
            assert torch.equal(each.labels, other.labels)
            assert each.class_names == other.class_names
            assert each.fingerprint == other.fingerprint
