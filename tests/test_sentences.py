"""Common mistakes, and files as others make them: what is meant is read, or one sentence says what is wrong."""

import gzip
import json
import unicodedata

import numpy as np
import pytest
import torch
from scipy.io import savemat

from common.config.options import DataOptions
from common.datasets import check_dataset, load_dataset
from common.disk.kinds import foreign_kind
from common.experts.open import open_buffer
from common.images import zca
from common.images.image_data import different_content
from common.report.evaluated import lines_of
from common.synset.authors import read_authors
from common.system import devices
from common.system.errors import InputError
from common.system.text import told_apart
from tests.command_line import TINY, assert_refused, call
from tests.expert_buffers import MODEL, made_for, random_rows, replay
from tests.image_sets import make_folder

pytestmark = pytest.mark.usefixtures("cache")


def make_images(root, classes=("a", "b"), mode="RGB"):
    return make_folder(root, classes, (8, 8), 2, mode=mode)


# -- datasets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "recipe", "mean", "told"),
    [
        (
            "L",
            "CIFAR10",
            (0.4914 + 0.4822 + 0.4465) / 3,
            "of 3 channels to images of 1: their mean is taken, 0.4734 and",
        ),
        ("RGB", "MNIST", 0.1307, "of 1 channel to images of 3: every channel takes the same, 0.1307 and 0.3081"),
    ],
)
def test_gray_and_colour_lend_each_other_mean_and_std(tmp_path, capsys, mode, recipe, mean, told):
    options = DataOptions(dataset=f"folder:{make_images(tmp_path, mode=mode)}", recipe=recipe)
    for data in options.load():
        assert data.mean == pytest.approx((mean,) * data.channels, abs=1e-4)
        assert len(data.std) == data.channels == (1 if mode == "L" else 3)
    assert f"--recipe {recipe} lends mean and std {told}" in capsys.readouterr().out


def test_as_many_channels_borrow_as_ever(tmp_path, capsys):
    train, _ = DataOptions(dataset=f"folder:{make_images(tmp_path)}", recipe="CIFAR10").load()
    assert (train.mean, train.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert "lends" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("imagenette", "imagenet-imagenette"), ("imagewoof", "imagenet-imagewoof"), ("ImageMeow", "imagenet-cats"),
        ("TinyImageNet", "Tiny"), ("tiny-imagenet-200", "Tiny"), ("cifar-10", "CIFAR10"),
        ("fashion-mnist", "FashionMNIST"),
        ("3dmnist", "3D-MNIST"), ("MNSIT", "MNIST"), ("imagenet-fruit", "imagenet-fruits"), ("SVHM", "SVHN"),
    ],
)  # fmt: skip
def test_the_name_that_was_meant_comes_first(name, meant):
    with pytest.raises(InputError, match=f"there is no dataset '{name}', did you mean {meant}[ ,?]"):
        check_dataset(name)


def test_a_missing_folder_is_not_a_missing_recipe(tmp_path):
    words = [*TINY, "--dataset", f"folder:{tmp_path}/none", "--transform", "dft"]
    assert_refused(call("DM/distill.py", *words), f"{tmp_path}/none is not a folder: give folder:PATH the folder that")
    assert_refused(call("DM/distill.py", *words[:-3], make_images(tmp_path / "x"), *words[-2:]), "no dataset")


def test_names_that_look_alike_are_told_apart(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert told_apart([composed, "b ", "c"], [decomposed, "b", "c", "d"]) == [r"'caf\xe9'", "'b '", "c"]
    assert told_apart(["cat", "dog"], ["cat", "bird"]) == ["cat", "dog"]
    make_images(tmp_path, [composed, "b"])
    (tmp_path / "test" / composed).rename(tmp_path / "test" / decomposed)
    with pytest.raises(InputError) as refused:
        load_dataset(f"folder:{tmp_path}")
    assert f"'caf\\xe9' only in {tmp_path / 'train'} and 'cafe\\u0301' only in {tmp_path / 'test'}" in str(
        refused.value
    )
    content = {"class_names": [composed, "b"], "train": 1, "test": 1, "fingerprint": ""}
    told = different_content({**content, "class_names": [decomposed, "b"]}, content)
    assert told == r"the classes were 'cafe\u0301', b and are 'caf\xe9', b"


def write_svhn(folder, labels):
    for split in ("train", "test"):
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": pixels, "y": np.array(labels, dtype=np.uint8)[:, None]})


def test_svhn_labelled_from_0_is_read(tmp_path, capsys):
    write_svhn(tmp_path, [*range(10), 0])
    train, test = load_dataset("SVHN", tmp_path, download=False)
    assert train.labels.tolist() == test.labels.tolist() == [*range(10), 0]
    assert "has labels 0 to 9, where the published file has 1 to 10" in capsys.readouterr().out
    write_svhn(tmp_path, [10, *range(1, 10), 10])
    assert load_dataset("SVHN", tmp_path, download=False)[0].labels.tolist() == [*range(10), 0]
    assert not capsys.readouterr().out
    write_svhn(tmp_path, range(11))
    with pytest.raises(InputError, match="has labels 0 and 10, which both mean the digit 0"):
        load_dataset("SVHN", tmp_path, download=False)


# -- sets and experts ------------------------------------------------------------------------------------------------


def test_labels_from_1_are_told(tmp_path):
    torch.save(torch.zeros(9, 1, 8, 8), tmp_path / "images_best.pt")
    torch.save(torch.arange(1, 4).repeat_interleave(3), tmp_path / "labels_best.pt")
    with pytest.raises(InputError, match=r"numbers its classes from 1 \(1 to 3\), and they are counted from 0 here"):
        read_authors(tmp_path / "images_best.pt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x93NUMPY\x01\x00v", "an array of NumPy (.npy)"),
        (b"PK\x03\x04", "a zip file, as are .npz and .pt"),
        (gzip.compress(b"x", mtime=0), "a gzip file"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path, content, kind):
    for name in ("x.npy", "x.safetensors"):
        (tmp_path / name).write_bytes(content)
        told = f"{tmp_path / name} is {kind}"
        assert_refused(
            call("DM/evaluate.py", "--synset", tmp_path / name), told, "no synthetic set: give a .safetensors"
        )


def test_other_files_have_no_kind(tmp_path):
    (tmp_path / "x").write_bytes(b"anything")
    assert foreign_kind(tmp_path / "x") is None
    assert foreign_kind(tmp_path / "nothing") is None


def test_replay_buffers_of_old_torch_are_read(tmp_path):
    """Before version 1.6 it wrote no zip files, which alone can be mapped."""
    rows = random_rows(count=1)
    folder = replay(tmp_path / "made up_NO_ZCA" / MODEL, rows)
    file = folder / "replay_buffer_0.pt"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    (expert,) = open_buffer(folder, made_for()).experts
    for epoch, row in enumerate(rows[0]):
        assert torch.equal(expert.snapshot(epoch), row)


def test_an_evaluation_says_why_its_figure_is_another():
    figures = {"mean": 0.5, "std": 0.0, "n": 1, "network": "ConvNet"}
    result = {
        **figures, "published": None, "stored": figures, "scores": {"ConvNet": {}}, "references": {},
        "augmentation": {"ConvNet": ""}, "evaluation_seconds": {"ConvNet": 1.0}, "distillation_seconds": None,
        "options": {"augmentation": "dsa"}, "soft_labels": None,
    }  # fmt: skip
    last = list(lines_of(json.loads(json.dumps(result))))[-1]
    assert (
        last
        == "50.00 +- 0.00 % is stored in the file (1 x ConvNet); its networks were other draws, whatever the --seed"
    )


# -- what takes too long ---------------------------------------------------------------------------------------------


def test_whitening_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    train, _ = load_dataset(f"folder:{make_images(tmp_path)}")
    monkeypatch.setattr(zca, "total_memory", lambda device: 10**6)
    told = (
        r"is a matrix of 192 x 192 numbers, which takes at least 1.2 MB of memory to fit, and this machine has 1.0 MB"
    )
    with pytest.raises(InputError, match=told):
        zca.whitening_of(train)
    monkeypatch.setattr(zca, "total_memory", lambda device: None)
    assert zca.whitening_of(train).matrix.shape == (192, 192)
    monkeypatch.setattr(zca, "total_memory", lambda device: 64 * 10**9)
    with pytest.raises(InputError, match="a matrix of 49,152 x 49,152 numbers, which takes at least 81 GB"):
        zca.check_fit("imagenet-a", 10_000, 3 * 128**2)


@pytest.mark.parametrize(("flags", "slow"), [("avx2 avx512f", True), ("avx512f avx512_bf16", False)])
def test_bf16_without_its_arithmetic_is_warned_of_once(monkeypatch, tmp_path, capsys, flags, slow):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    devices.warn_of_slow_bf16.cache_clear()
    for _ in range(2):
        devices.check_precision("bf16", torch.device("cpu"))
        devices.check_precision("fp32", torch.device("cpu"))
    assert capsys.readouterr().err.count("warning: this CPU has no bf16 arithmetic") == slow
    devices.warn_of_slow_bf16.cache_clear()
