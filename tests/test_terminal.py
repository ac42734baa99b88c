"""What a terminal shows beside the result: help in groups, guesses at what was meant, the command to run next."""

import dataclasses
import re

import pytest

import reproduce
from common.config.evaluate_options import EvaluateOptions
from common.config.options import BufferOptions
from common.robustness.options import RobustnessOptions
from common.terminal import next_step
from common.terminal.grouped import GROUPS, MANY, MATTER_FIRST, grouped, in_one_column
from DC import distill as dc
from DM import distill as dm
from tests.command_line import assert_refused, call, shown
from TM import distill as tm

KINDS = [dm.Options, dc.Options, tm.Options, BufferOptions, EvaluateOptions, RobustnessOptions, reproduce.Run]


def boxes(text):
    """The flags of each box of a help, by its title."""
    found = {}
    for line in text.splitlines():
        if title := re.match(r" (?:(\w+) )?options +$", line):
            found[title[1]] = []
        elif flags := re.match(r"  (--.*?)(?:  |$)", line):
            found[list(found)[-1]] += re.findall(r"--(\w+)", flags[1])
    return found


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_option_has_a_place(kind):
    places = [name for names in GROUPS.values() for name in names]
    assert len(places) == len(set(places))
    assert not {field.name for field in dataclasses.fields(kind)} - set(places)


def test_the_places_are_those_of_options():
    known = {field.name for kind in KINDS for field in dataclasses.fields(kind)} | {
        "transforms",
        "selections",
        "objective",
    }
    assert {name for names in GROUPS.values() for name in names} <= known
    assert set(MATTER_FIRST) <= known


@pytest.mark.parametrize(
    ("command", "first"),
    [
        ("DM/distill.py", ["dataset", "ipc", "storage", "Iteration", "model", "num_eval", "seeds", "device"]),
        ("TM/buffer.py", ["dataset", "num_experts", "train_epochs", "model", "device", "dry_run", "buffer_path"]),
        ("DM/evaluate.py", ["synset", "baseline", "dataset", "ipc", "model", "models", "references", "num_eval"]),
        ("reproduce.py run", ["table", "cells", "scale", "launcher", "seeds", "device", "output", "dry_run"]),
    ],
)
def test_help_begins_with_the_flags_that_matter(command, first):
    found = boxes(shown(command))
    assert found["main"][: len(first)] == first
    assert len(found["main"]) <= 10 + ("image_size" in found["main"])  # which has another name
    assert set(found) <= {None, "main", *GROUPS}  # --help has a box of its own
    assert "budget" in found or "distill" not in command
    named = [flag for flags in found.values() for flag in flags]
    assert len(named) == len(set(named))


def test_grouping_changes_no_default_and_no_text():
    options = dataclasses.replace(dm.Options(), lr_freq=3.5)
    kind = grouped(dm.Options, options)
    parts = [field.default_factory() for field in dataclasses.fields(kind)]
    values = {name: value for part in parts for name, value in vars(part).items()}
    assert values == vars(options)
    text = " ".join(shown("DM/distill.py").replace("│", " ").split())
    assert "how a synthetic set is stored; it is distilled through this rounding. fp32: k float32 numbers" in text
    assert kind.__doc__ == dm.Options.__doc__


def test_help_says_a_default_once_and_breaks_no_sentence():
    text = " ".join(shown("DM/distill.py").split())
    assert "threads that decode image files (default: by image size and CPU cores) --" in text
    assert "(default: 0; 0.1 for folder:PATH and hf:... without --recipe) --" in text
    lines = shown("DM/distill.py").splitlines()
    assert not [line for line in lines if line.split() in (["the", "one"], ["all)"], ["folder"], ["value"])]
    assert "(default: None)" not in " ".join(shown("compare.py").split())
    assert "(default: )" not in " ".join(shown("reproduce.py report").split())


def test_an_argument_without_a_flag_is_shown_by_its_name():
    text = shown("common/report/__main__.py gallery")
    assert text.splitlines()[0].endswith("FOLDER")
    assert "(default: FOLDER/gallery.html)" in text
    assert "None)" not in text


def test_few_options_stay_as_they_are():
    @dataclasses.dataclass
    class Few:
        seed: int = 0

    assert [field.name for field in dataclasses.fields(grouped(Few))] == ["seed"]
    assert grouped(Few)().seed == 0
    assert len(dataclasses.fields(EvaluateOptions)) > MANY


def test_help_is_one_column_on_a_wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with in_one_column():
        text = shown("DM/distill.py")
    assert all(len(line) <= 120 for line in text.splitlines())
    assert text.count("main options") == text.count("\n main options") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["common/report/__main__.py", "shwo", "x"],
            "there is no 'shwo' in python -m common.report, did you mean show",
        ),
        (["reproduce.py", "rnu"], "there is no 'rnu' in python reproduce.py, did you mean run"),
        (["common/pretrained/__main__.py", "conver", "x"], "did you mean convert"),
    ],
)
def test_a_misspelt_subcommand_is_guessed(words, said):
    assert_refused(call(*words), said)


def test_a_misspelt_flag_is_guessed():
    result = call("DM/distill.py", "--Iteratoin", "3")
    assert result.code == 2
    assert "Perhaps you meant" in result.err
    assert "--Iteration" in result.err


@pytest.mark.parametrize(
    ("flags", "said", "least"),
    [
        (["--dataset", "CIFAR01"], "did you mean CIFAR10 or CIFAR100?", "imagenet"),
        (["--dataset", "qqq"], "did you mean ", "CIFAR100"),
        (["--model", "AlexNt"], "Did you mean AlexNet, ", "ResNet18BN"),
    ],
)
def test_an_unknown_name_is_answered_with_three_names_not_with_all(tmp_path, flags, said, least):
    result = call("DM/distill.py", *flags, "--save_path", tmp_path, "--msz_per_channel", 4, "--lr_freq", 1)
    assert_refused(result, said)
    assert least not in result.err.split("error: ")[1].split("--help lists")[0]
    assert len(result.err) < 600
    guesses = re.search(r"id you mean (.*?)\?", result.err)[1].replace(" or ", ", ").split(", ")
    assert 1 <= len(guesses) <= 3


def test_the_next_command_is_one_to_paste():
    assert next_step.to_evaluate("TM", "a b.safetensors") == "next: python TM/evaluate.py --synset 'a b.safetensors'"
    assert next_step.to_evaluate("../x", "s").startswith("next: python DM/evaluate.py ")
    assert next_step.to_evaluate("ImageNet-abcde/DC", "s").startswith("next: python ImageNet-abcde/evaluate.py ")
    assert next_step.to_distill("ImageNet-abcde/TM", "--dataset", "imagenet-a") == (
        "next: python ImageNet-abcde/distill.py --objective TM --dataset imagenet-a"
    )
    assert next_step.to_show("s") == "next: python -m common.report show s"
    assert next_step.to_gallery("runs/DM") == "next: python -m common.report gallery runs/DM"
