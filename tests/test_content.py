"""What a dataset holds is known by its pixels and labels, not by its name: runs, checkpoints and sets keep to it."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets import load_dataset
from common.images import decoded
from common.images.image_data import content_of, different_content
from tests.command_line import assert_refused, call
from tests.conftest import ROOT
from tests.image_sets import make_folder

pytestmark = pytest.mark.usefixtures("cache", "one_thread")

WORDS = [
    "--model", "ConvNetD1W16", "--device", "cpu", "--ipc", 1, "--msz_per_channel", 144, "--lr_freq", 1,
    "--batch_real", 2, "--Iteration", 4, "--eval_it", 0, "--num_eval", 1, "--epoch_eval_train", 0, "--name", "run",
]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    return make_folder(tmp_path / "images")


def distil(images, path, *flags):
    return call("DM/distill.py", "--dataset", f"folder:{images}", *WORDS, *flags, "--save_path", path)


def repaint(path, value=7):
    """Replace an image by another one of the same size."""
    with Image.open(path) as image:
        side = image.size
    Image.fromarray(np.full((side[1], side[0], 3), value, np.uint8)).save(path)
    os.utime(path, (1, value))


CHANGES = {
    "a training image": (lambda images: repaint(images / "train/cat/0.png"), "other pixels or labels"),
    "a test image": (lambda images: repaint(images / "test/dog/1.png"), "other pixels or labels"),
    "a class renamed": (
        lambda images: [(images / split / "cat").rename(images / split / "bird") for split in ("train", "test")],
        "the classes were cat, dog and are bird, dog",
    ),
    "an image more": (
        lambda images: shutil.copy(images / "train/cat/0.png", images / "train/cat/9.png"),
        "there were 6 training images and are 7",
    ),
    "labels changed": (
        lambda images: [
            (images / "train" / a / "0.png").rename(images / "train" / b / "x.png")
            for a, b in (("cat", "dog"), ("dog", "cat"))
        ],
        "other pixels or labels",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stopped", [False, True], ids=["finished", "interrupted"])
def test_a_run_keeps_to_the_images_that_it_was_begun_with(images, tmp_path, monkeypatch, change, stopped):
    if stopped:
        stop_after(monkeypatch, 2)
    assert distil(images, tmp_path / "runs").code == (143 if stopped else 0)
    monkeypatch.undo()
    changing, told = CHANGES[change]
    changing(images)
    assert_refused(distil(images, tmp_path / "runs"), "are not those that", told, "--resume never")
    assert distil(images, tmp_path / "runs", "--resume", "never").code == 0


def stop_after(monkeypatch, updates):
    """SIGTERM in an update."""
    from common.matching import distribution

    original, calls = distribution.match, []

    def counted(*positional, **named):
        calls.append(None)
        if len(calls) == updates:
            os.kill(os.getpid(), 15)
        return original(*positional, **named)

    monkeypatch.setattr(distribution, "match", counted)


def test_an_added_class_is_named(images, tmp_path):
    assert distil(images, tmp_path / "runs").code == 0
    for split in ("train", "test"):
        shutil.copytree(images / split / "cat", images / split / "emu")
    assert_refused(distil(images, tmp_path / "runs"), "the classes were cat, dog and are cat, dog, emu")


def test_a_folder_that_is_moved_touched_or_copied_is_the_same(images, tmp_path):
    assert distil(images, tmp_path / "runs").code == 0
    moved = shutil.copytree(images, tmp_path / "elsewhere" / "images")
    for path in moved.rglob("*.png"):
        os.utime(path, (3, 4))
    images.rename(tmp_path / "away")
    (tmp_path / "elsewhere" / "images").rename(images)
    result = distil(images, tmp_path / "runs")
    assert result.code == 0
    assert "is finished" in result.out


@pytest.mark.parametrize("stopped", [False, True], ids=["finished", "interrupted"])
def test_a_run_goes_on_wherever_its_folder_of_images_lies(images, tmp_path, monkeypatch, stopped):
    """With its name it is found again; a folder of other images there is refused as ever."""
    if stopped:
        stop_after(monkeypatch, 2)
    assert distil(images, tmp_path / "runs", "--name", "n").code == (143 if stopped else 0)
    monkeypatch.undo()
    moved = tmp_path / "elsewhere" / images.name
    moved.parent.mkdir()
    images.rename(moved)
    result = distil(moved, tmp_path / "runs", "--name", "n")
    assert result.code == 0, result.err
    assert ("resumed from iteration" if stopped else "is finished") in result.out
    assert "is finished" in distil(moved, tmp_path / "runs", "--name", "n").out
    repaint(moved / "test/dog/1.png")
    assert_refused(distil(moved, tmp_path / "runs", "--name", "n"), "other pixels")
    third = shutil.copytree(moved, tmp_path / "third" / images.name)
    assert_refused(distil(third, tmp_path / "runs", "--name", "n"), "other pixels")


def test_a_set_is_not_evaluated_on_other_images_without_a_word(images, tmp_path):
    assert distil(images, tmp_path / "runs").code == 0
    (file,) = (tmp_path / "runs").rglob("synset.safetensors")
    words = ["--synset", file, "--device", "cpu", "--num_eval", 1, "--epoch_eval_train", 0]
    assert call("DM/evaluate.py", *words).code == 0
    repaint(images / "test/dog/1.png")
    assert_refused(call("DM/evaluate.py", *words), "was made from other images", "other pixels", "--dataset")
    chosen = call("DM/evaluate.py", *words, "--dataset", f"folder:{images}")
    assert chosen.code == 0
    assert "was made from other images than these" in chosen.out + chosen.err


@pytest.mark.parametrize(
    ("cat", "dog", "told"),
    [("C_at!", "dog", "by letters and digits: C_at! is cat"), ("cat", "Dog", "by letters and digits: Dog is dog")],
)
def test_classes_are_found_by_the_letters_and_digits_of_their_names(tmp_path, cat, dog, told):
    """In whatever order; "Dog" comes before "cat", as folders are sorted."""
    images = make_folder(tmp_path / "images", count=40)
    assert distil(images, tmp_path / "runs").code == 0
    (file,) = (tmp_path / "runs").rglob("synset.safetensors")
    words = ["--synset", file, "--device", "cpu", "--num_eval", 2, "--epoch_eval_train", 20, "--output"]
    assert call("DM/evaluate.py", *words, tmp_path / "before.json").code == 0
    for split in ("train", "test"):
        for name, new in (("cat", cat), ("dog", dog)):
            (images / split / name).rename(images / split / new)
    result = call("DM/evaluate.py", *words, tmp_path / "after.json", "--dataset", f"folder:{images}")
    assert result.code == 0, result.err
    assert f"the classes of folder:{images} are those of {file}, {told}" in result.out
    before, after = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("before", "after"))
    assert before["accuracies"] == after["accuracies"]
    assert before["mean"] > 0.8


@pytest.mark.parametrize("names", [("cat", "bird"), ("cat", "c.at"), ("dog", "dog ")])
def test_other_classes_are_refused_with_both_lists(tmp_path, names):
    images = make_folder(tmp_path / "images")
    assert distil(images, tmp_path / "runs").code == 0
    (file,) = (tmp_path / "runs").rglob("synset.safetensors")
    other = make_folder(tmp_path / "other", names)
    for image in other.rglob("*.png"):
        image.write_text("refused before any image is decoded")
    result = call("DM/evaluate.py", "--synset", file, "--device", "cpu", "--dataset", f"folder:{other}")
    listed = ", ".join(f"'{name}'" if name != name.strip() else name for name in sorted(names))
    assert_refused(result, f"was made for the classes cat, dog, and those of folder:{other} are {listed}", "--dataset")


def test_a_set_that_does_not_say_what_it_was_made_from_is_believed_with_a_line():
    file = ROOT / "tests/old_runs/finished/DM.safetensors"
    result = call("DM/evaluate.py", "--synset", file, "--device", "cpu", "--num_eval", 1, "--epoch_eval_train", 0)
    assert result.code == 0
    told = f"{file} does not say which images it was made from: those of digits are taken to be the same"
    assert result.out.splitlines().count(told) == 1


@pytest.mark.parametrize("map_above", [None, 0], ids=["in memory", "mapped"])
def test_the_fingerprint_is_computed_once_and_kept_in_the_cache(images, monkeypatch, map_above):
    first = content_of(*load_dataset(f"folder:{images}", progress=False, map_above=map_above))
    monkeypatch.setattr(decoded, "fingerprint", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr("common.images.image_data.fingerprint", lambda *_: pytest.fail("computed again"))
    again = content_of(*load_dataset(f"folder:{images}", progress=False, map_above=map_above))
    assert again == first
    assert different_content(first, again) == ""


def test_the_fingerprint_is_of_the_raw_images(images):
    """Normalisation and whitening change nothing; mapped or not, the images are the same."""
    name = f"folder:{images}"
    plain = content_of(*load_dataset(name, progress=False))
    assert content_of(*load_dataset(name, progress=False, zca=True)) == plain
    assert content_of(*load_dataset(name, progress=False, mean=[0.5] * 3, std=[0.5] * 3)) == plain
    assert content_of(*load_dataset(name, progress=False, map_above=0)) == plain
    train, test = load_dataset(name, progress=False)
    assert content_of(test, train)["fingerprint"] != plain["fingerprint"]


def test_whitened_images_do_not_tell_what_they_were():
    train, _ = load_dataset("digits", zca=True, progress=False)
    from dataclasses import replace

    assert replace(train).fingerprint == load_dataset("digits")[0].fingerprint
    with pytest.raises(ValueError, match="taken before"):
        assert replace(train, raw_fingerprint=None).fingerprint
    assert isinstance(train.images, torch.Tensor)
