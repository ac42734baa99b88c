"""Amounts are said in words that people use, accuracies by their mean and deviation."""

import numpy as np
import pytest

from common.system.text import describe_bytes, describe_seconds, mean_and_std


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.42, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (35, "35 s"),
        (59.7, "1 min"),
        (720, "12 min"),
        (3599, "1 h"),
        (9600, "2 h 40 min"),
        (86_399, "1 d"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_in_words(seconds, words):
    assert describe_seconds(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (512, "512 bytes"),
        (35e6, "35 MB"),
        (1.24e9, "1.2 GB"),
        (9.97e9, "10 GB"),
        (999_999, "1.0 MB"),
        (2.5e12, "2.5 TB"),
    ],
)
def test_amounts_in_words(number, words):
    assert describe_bytes(number) == words


def test_mean_and_std_are_numpys():
    values = [0.5, 0.7, 0.9]
    assert mean_and_std(values) == {"mean": np.mean(values), "std": np.std(values), "n": 3}
