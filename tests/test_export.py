"""Sets elsewhere: others read what is exported, its cost is measured, and what a form cannot hold is refused."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common.config.evaluate_options import EvaluateOptions
from common.datasets import load_dataset, statistics
from common.images.image_data import with_classes
from common.pretrained import forms
from common.pretrained.__main__ import COMMANDS
from common.pretrained.forms import folder_names
from common.synset.file import save_synset
from common.training.evaluate_command import evaluate_file
from tests.authors_files import started_from_digits, synthetic, write_pair
from tests.command_line import assert_refused, call
from tests.conftest import ROOT

MEAN, STD = (list(each) for each in statistics("digits"))
NAMES = list(map(str, range(10)))
PROTOCOL = {"epochs": 2, "lr": 0.01, "batch": 256, "strategy": ""}
KNOWN = {"dataset": "digits", "mean": MEAN, "std": STD, "class_names": NAMES, "network": "ConvNetD1W32"}
QUICK = ["--device", "cpu", "--num_eval", 1]
FASHION = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    """A set started from digits, whose pixels go beyond 0..1."""
    return started_from_digits()


@pytest.fixture(scope="module")
def file(digits, tmp_path_factory):
    return save(digits, tmp_path_factory.mktemp("set") / "set.safetensors")


def save(synset, path, **changes):
    return save_synset(synset, path, {**KNOWN, "evaluation": PROTOCOL, "source": {}, **changes})


def export(file, to, *words):
    return call("common/pretrained/__main__.py", "export", file, "--to", to, *QUICK, *words)


def exported(file, to, *words):
    result = export(file, to, *words)
    assert result.code == 0, result.err
    return result.out


def pixels(synset):
    """Computed here once more, in float64: not limited, [N, ch, H, W]."""
    images = synset.get(need_copy=True)[0].double().numpy()
    shape = (1, -1, *[1] * (images.ndim - 2))
    return images * np.reshape(STD, shape) + np.reshape(MEAN, shape)


def in_8_bits(synset):
    return np.rint(pixels(synset).clip(0, 1) * 255)


# -- what others read ----------------------------------------------------------------------------------------------


def test_a_folder_of_png_files(file, digits, tmp_path):
    from torchvision.datasets import ImageFolder

    out = exported(file, f"folder:{tmp_path / 'png'}", "--no_check")
    assert "40 images, " in out
    assert "lie outside 0..1 and are clipped" in out
    found = ImageFolder(tmp_path / "png")
    assert (found.classes, found.targets) == (NAMES, digits.labels.tolist())
    assert sorted(path.name for path in (tmp_path / "png" / "7").iterdir()) == [f"{n:04}.png" for n in range(4)]
    read = np.stack([np.asarray(Image.open(path)) for path, _ in found.samples])
    assert np.array_equal(read[:, None], in_8_bits(digits))
    text = (tmp_path / "png" / "about.json").read_text()
    about = json.loads(text)
    assert (about["class_names"], about["folders"], about["mean"], about["std"]) == (NAMES, NAMES, MEAN, STD)
    assert (about["dataset"], about["source"], about["evaluation"]) == ("digits", "set.safetensors", PROTOCOL)
    assert str(tmp_path) not in text


def test_files_for_torch_and_numpy_hold_the_same(file, digits, tmp_path):
    exported(file, f"pt:{tmp_path / 'x.pt'}", "--no_check")
    exported(file, f"npz:{tmp_path / 'x.npz'}", "--no_check")
    tensors = torch.load(tmp_path / "x.pt", weights_only=True)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(tensors)
        for key in ("images", "labels"):
            assert np.array_equal(arrays[key], tensors[key].numpy())
        for key in ("class_names", "mean", "std", "values"):
            assert arrays[key].tolist() == tensors[key]
        assert json.loads(str(arrays["about"])) == tensors["about"]
    assert (tensors["images"].dtype, tensors["labels"].dtype) == (torch.float32, torch.int64)
    assert np.abs(tensors["images"].numpy() - pixels(digits).clip(0, 1)).max() < 1e-6
    assert tensors["images"].aminmax() == (0, 1)
    assert torch.equal(tensors["labels"], digits.labels)
    assert (tensors["values"], tensors["class_names"]) == ("unit", NAMES)


def test_normalised_numbers_are_those_of_the_file(file, digits, tmp_path):
    out = exported(file, f"pt:{tmp_path / 'x.pt'}", "--values", "normalised")
    tensors = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(tensors["images"], digits.get(need_copy=True)[0])
    assert tensors["values"] == "normalised"
    assert "nothing is lost" in out


def test_parquet_for_the_library_and_for_our_own_loader(file, digits, tmp_path, cache):
    datasets = pytest.importorskip("datasets")
    out = exported(file, f"hf:{tmp_path / 'hf'}", "--no_check")
    assert "no test split" in out
    found = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(cache))["train"]
    assert isinstance(found.features["image"], datasets.Image)
    assert (found.features["label"].names, found["label"][:]) == (NAMES, digits.labels.tolist())
    assert np.array_equal(np.stack([np.asarray(image) for image in found["image"]])[:, None], in_8_bits(digits))
    exported(file, f"hf:{tmp_path / 'both'}", "--no_check", "--with_test")
    train, test = load_dataset(f"hf:{tmp_path / 'both'}", progress=False)
    assert np.array_equal(train.images.numpy(), in_8_bits(digits))
    assert torch.equal(test.images, load_dataset("digits")[1].images)


@pytest.mark.parametrize("kind", ["pt", "npz"])
def test_test_images_beside_them(file, tmp_path, kind):
    _, test = load_dataset("digits")
    path = tmp_path / f"x.{kind}"
    assert "40 images and 360 test images" in exported(file, f"{kind}:{path}", "--no_check", "--with_test")
    found = torch.load(path, weights_only=True) if kind == "pt" else np.load(path)
    assert np.array_equal(np.asarray(found["test_labels"]), test.labels.numpy())
    assert np.array_equal(np.asarray(found["test_images"]), (test.images.float() / 255).numpy())


def test_the_example_trains_on_a_folder_without_this_package(tmp_path, monkeypatch, capsys):
    """The classes of the set are in another order than those of ImageFolder."""
    train, _ = load_dataset("digits")
    train = with_classes(train, {name: name for name in NAMES}, NAMES[::-1])
    synset = synthetic(10, 1, (8, 8), 16)
    synset.init(train, train.labels, train.class_indices)
    file = save(synset, tmp_path / "set.safetensors", class_names=NAMES[::-1])
    exported(file, f"folder:{tmp_path / 'png'}", "--no_check", "--with_test")
    train, test = load_dataset(f"folder:{tmp_path / 'png'}", progress=False)  # our own loader takes it, too
    assert (len(train), len(test), train.class_names) == (40, 360, tuple(NAMES))
    example = ROOT / "docs" / "examples" / "train_on_png.py"
    assert "common" not in example.read_text().split('"""')[2]
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "png")])
    runpy.run_path(str(example), run_name="__main__")
    accuracy, _, rest = capsys.readouterr().out.partition(" % of ")
    assert rest == "360 test images are recognised\n"
    assert float(accuracy) > 40


def test_the_page_names_flags_and_commands_that_exist():
    page = (ROOT / "docs" / "pretrained.md").read_text(encoding="utf-8")
    flags = {"help"}.union(*(kind.__dataclass_fields__ for kind in (EvaluateOptions, *COMMANDS.values())))
    assert {flag.removeprefix("no_") for flag in re.findall(r"--(\w+)", page)} - {"Iteration", "eval_it"} <= flags
    assert set(re.findall(r"-m common\.pretrained (\w+)", page)) - {"COMMAND"} <= set(COMMANDS)


# -- what it costs -------------------------------------------------------------------------------------------------


def test_the_exported_images_are_compared_with_those_of_the_file(file, digits, tmp_path, monkeypatch):
    """Each accuracy is of a training on these very images."""
    seen = []

    def evaluate(options, objective, defaults, stored):
        seen.append(stored[0].get(need_copy=True)[0])
        return evaluate_file(options, objective, defaults, stored)

    monkeypatch.setattr("common.pretrained.export.evaluate_file", evaluate)
    out = exported(file, f"folder:{tmp_path / 'png'}")
    assert "1 x ConvNetD1W32) as exported, 8 bits per channel" in out
    assert "1 x ConvNetD1W32) as in the file" in out
    in_file, (mean,), (std,) = digits.get(need_copy=True)[0], MEAN, STD
    assert torch.equal(seen[1], in_file)
    assert torch.equal(seen[0], (torch.tensor(in_8_bits(digits)).float() / 255 - mean) / std)
    assert (seen[0] - in_file).abs().max() > 0.5  # what was clipped


def test_without_the_dataset_it_is_exported_all_the_same(digits, tmp_path):
    """And classes whose names cannot be those of folders, in another order than ImageFolder's."""
    file = save(digits, tmp_path / "set.safetensors", dataset="FashionMNIST", class_names=FASHION)
    out = exported(file, f"folder:{tmp_path / 'png'}", "--data_path", tmp_path / "none")
    assert "not compared with the file's own images: " in out
    assert "T-shirt/top is T-shirt_top" in out
    assert "in the order of their names, the dataset otherwise" in out
    about = json.loads((tmp_path / "png" / "about.json").read_text())
    assert (about["class_names"], about["folders"]) == (FASHION, ["T-shirt_top", *FASHION[1:]])
    for label, folder in enumerate(about["folders"]):
        image = np.asarray(Image.open(tmp_path / "png" / folder / "0000.png"))
        assert np.array_equal(image, in_8_bits(digits)[4 * label, 0])
    assert_refused(
        export(file, f"folder:{tmp_path / 'other'}", "--with_test", "--data_path", tmp_path / "none"), "FashionMNIST"
    )
    assert not (tmp_path / "other").exists()


def test_classes_that_a_file_does_not_name(digits, tmp_path):
    """The dataset names them where it is there; otherwise they are numbers, as wide as the largest."""
    file = save(digits, tmp_path / "set.safetensors", class_names=None, dataset="MNIST")
    out = exported(file, f"folder:{tmp_path / 'a'}", "--no_check", "--data_path", tmp_path)
    assert "called by their numbers" in out
    file = save(digits, tmp_path / "set.safetensors", class_names=None)
    out = exported(file, f"folder:{tmp_path / 'b'}", "--no_check")
    assert "called by their numbers" not in out
    many = save(synthetic(12), tmp_path / "many.safetensors", class_names=None, dataset=None)
    exported(many, f"folder:{tmp_path / 'c'}", "--no_check")
    assert sorted(each.name for each in (tmp_path / "c").iterdir() if each.is_dir())[:2] == ["00", "01"]


# -- what is refused -----------------------------------------------------------------------------------------------


def test_volumes_are_no_pictures(tmp_path):
    volumes = synthetic(2, 1, (4, 4, 4), 8)
    file = save(volumes, tmp_path / "set.safetensors", class_names=["a", "b"], dataset="3D-MNIST")
    for kind in forms.PICTURES:
        assert_refused(export(file, f"{kind}:{tmp_path / kind}"), "holds volumes")
    exported(file, f"npz:{tmp_path / 'x.npz'}", "--no_check")
    assert np.load(tmp_path / "x.npz")["images"].shape == (16, 1, 4, 4, 4)


def test_whitened_images_are_no_pixels(digits, tmp_path):
    zca = {"eps": 0.1, "fingerprint": None}
    file = save(digits, tmp_path / "set.safetensors", zca=zca, mean=None, std=None)
    assert_refused(export(file, f"folder:{tmp_path / 'png'}"), "ZCA-whitened", "pt:PATH or npz:PATH")
    assert_refused(export(file, f"npz:{tmp_path / 'x.npz'}", "--values", "unit"), "ZCA-whitened")
    assert "nothing is lost" in exported(file, f"npz:{tmp_path / 'x.npz'}")
    with np.load(tmp_path / "x.npz") as found:
        assert str(found["values"]) == "whitened"
        assert np.array_equal(found["images"], digits.get(need_copy=True)[0].numpy())


def test_a_set_that_does_not_say_how_it_is_normalised(digits, tmp_path):
    file = save(digits, tmp_path / "set.safetensors", mean=None, std=None)
    assert_refused(export(file, f"folder:{tmp_path / 'png'}"), "mean and std", "convert")
    exported(file, f"pt:{tmp_path / 'x.pt'}", "--values", "normalised")
    pair = write_pair(tmp_path / "pair", *digits.get(need_copy=True))
    assert_refused(export(pair, f"folder:{tmp_path / 'png'}"), "convert it first")


@pytest.mark.parametrize(
    ("to", "words", "told"),
    [
        ("png:x", [], "give folder:PATH, pt:PATH, npz:PATH, hf:PATH"),
        ("folder", [], "names no form"),
        ("folder:", [], "names no form"),
        ("pt:x.npz", [], "is to end in .pt"),
        ("folder:.", [], "not an empty folder"),
        ("folder:y", ["--values", "normalised"], "no pixels, which PNG files hold"),
        ("folder:y", ["--num_eval", 0], "--num_eval 0 is too small"),
        ("folder:y", ["--lr_net", -1], "--lr_net -1.0 must be positive"),
        ("folder:y", ["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(file, tmp_path, monkeypatch, to, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert_refused(export(file, to, *words), told)
    assert [each.name for each in tmp_path.iterdir()] == ["something"]


def test_nothing_is_left_of_an_export_that_failed(file, tmp_path, monkeypatch):
    def full(image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("common.pretrained.forms.png", full)
    assert_refused(export(file, f"folder:{tmp_path / 'png'}", "--no_check"), "No space left on device")
    assert not list(tmp_path.iterdir())


def test_names_of_folders():
    names = ["a/b", "a\\b", ".hidden", "con", "Cat", "cat", "dot.", "", "@eaDir", "gorilla", "lynx, catamount"]
    folders = [
        "a_b", "a_b_", "_.hidden", "_con", "Cat", "cat_", "dot_", "_", "_@eaDir", "gorilla", "lynx, catamount",
    ]  # fmt: skip
    assert folder_names(names) == folders
