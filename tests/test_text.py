"""Amounts are said in words that people use, and accuracies picked and written in one way."""

import numpy as np
import pytest

from common.system.text import (
    best_by_network,
    best_of,
    counted,
    describe_bytes,
    describe_seconds,
    difference,
    in_percent,
    mean_and_std,
    networks_of,
    percent,
    percent_with_std,
    point_of,
    published_with_std,
)


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


def test_one_thing_or_several():
    assert counted(1, "image") == "1 image"
    assert counted(0, "image") == "0 images"
    assert counted(1024, "image") == "1,024 images"


def test_mean_and_std_are_numpys():
    values = [0.5, 0.7, 0.9]
    assert mean_and_std(values) == {"mean": np.mean(values), "std": np.std(values), "n": 3}


def test_accuracies_in_percent():
    figures = mean_and_std([0.25, 0.75])
    assert percent(2 / 3) == "66.67"
    assert percent_with_std(figures) == "50.00 ± 25.00"
    assert in_percent(figures) == "50.00 +- 25.00 %"
    assert published_with_std({"accuracy": 44.5}) == "44.5"
    assert published_with_std({"accuracy": 44.5, "std": 0.4}, "+-") == "44.5 +- 0.4"


def test_the_best_evaluations():
    """The second best of A comes with a pool; A is also tested alone; of equals the first counts."""
    alone = {"iteration": 0, **point_of({"A": [0.5]}, "A")}
    pool = {"iteration": 1, **point_of({"A": [0.4], "B": [0.1]}, "A")}
    again = {"iteration": 2, **point_of({"A": [0.5], "B": [0.2]}, "A")}
    assert list(networks_of(alone)) == ["A"]
    assert list(networks_of(pool)) == ["A", "B"]
    assert best_of([pool, alone, again]) is alone
    best = best_by_network([alone, pool, again])
    assert {name: figures["iteration"] for name, figures in best.items()} == {"A": 0, "B": 2}
    assert best["B"] == {"mean": 0.2, "std": 0.0, "n": 1, "accuracies": [0.2], "iteration": 2}


def test_a_difference_names_both_values():
    assert difference("--ipc", 1, 10) == "--ipc 1 there, 10 now"
