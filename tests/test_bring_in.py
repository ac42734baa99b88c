"""Images that others made become a set: their pixels, their bytes on the disk, and the classes of the dataset."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets import load_dataset
from common.synset.file import load_synset, save_synset
from tests.authors_files import synthetic
from tests.command_line import assert_refused, call
from tests.image_sets import make_folder, make_idx_set

QUICK = ["--device", "cpu", "--num_eval", 1, "--epoch_eval_train", 2]
FASHION = [
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def bring_in(path, output, *words, dataset="digits"):
    return call("common/pretrained/__main__.py", "import", path, "--dataset", dataset, "--output", output, *words)


def brought_in(path, output, *words, **named):
    result = bring_in(path, output, *words, **named)
    assert result.code == 0, result.err
    return load_synset(output)


@pytest.fixture(scope="module")
def digits():
    """Two real images of each class in order, uint8 [20, 1, 8, 8], with their labels."""
    train, _ = load_dataset("digits")
    rows = torch.stack([indices[:2] for indices in train.class_indices]).flatten()
    return train.images[rows], train.labels[rows]


def write_images(root, images, labels, suffix=".png", names=None, **saved):
    for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
        folder = root / (names[label] if names else str(label))
        folder.mkdir(parents=True, exist_ok=True)
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number:02}{suffix}", **saved)
    return root


def normalised(images):
    return load_dataset("digits")[0].normalise(images)


# -- folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_pixels_and_bytes_are_those_of_the_files(tmp_path, digits, split):
    images, labels = digits
    path = write_images(tmp_path / "set" / ("train" if split else ""), images, labels)
    synset, metadata = brought_in(tmp_path / "set", tmp_path / "set.safetensors")
    assert torch.equal(synset.decode(), normalised(images))
    assert torch.equal(synset.labels, labels)
    on_disk = sum(file.stat().st_size for file in path.rglob("*.png"))
    assert metadata["files"] == {
        "kind": "png",
        "name": "set",
        "bytes": on_disk,
        "bits_per_class": -(-8 * on_disk // 10),
    }
    assert (metadata["network"], metadata["class_names"]) == ("ConvNetD3", list(map(str, range(10))))
    shown = call("DM/evaluate.py", "--synset", tmp_path / "set.safetensors", *QUICK, "--output", tmp_path / "r.json")
    assert shown.code == 0, shown.err
    assert f"from set (png), {on_disk:,} bytes on the disk" in shown.out
    assert json.loads((tmp_path / "r.json").read_text())["files"] == metadata["files"]
    shown = call("common/report/__main__.py", "show", tmp_path / "set.safetensors", "--output", tmp_path / "pictures")
    assert f"imported      from set (png), {on_disk:,} bytes" in shown.out


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_files_are_read_as_they_decode(tmp_path, digits, suffix):
    """WebP has no grayscale: three channels come back, which are made gray."""
    path = write_images(tmp_path / "set", *digits, suffix, quality=50)
    decoded = [np.asarray(Image.open(file).convert("L")) for file in sorted(path.rglob("*"), key=lambda each: each.name)
               if file.is_file()]  # fmt: skip
    synset, metadata = brought_in(path, tmp_path / "set.safetensors")
    assert torch.equal(synset.decode(), normalised(torch.from_numpy(np.stack(decoded))[:, None]))
    assert metadata["files"]["kind"] == suffix[1:]


def test_gray_images_of_a_dataset_in_colour(tmp_path):
    data = f"folder:{make_folder(tmp_path / 'data')}"
    gray = torch.arange(2 * 144).remainder(251).to(torch.uint8).view(2, 1, 12, 12)
    path = write_images(tmp_path / "set", gray, torch.arange(2), names=["cat", "dog"])
    synset, _ = brought_in(path, tmp_path / "set.safetensors", dataset=data)
    train, _ = load_dataset(data, progress=False)
    assert torch.equal(synset.decode(), train.normalise(gray.expand(-1, 3, -1, -1)))


def test_classes_are_those_of_the_dataset_in_its_order(tmp_path, cache):
    """FashionMNIST's folders sort otherwise than its labels, and one of its names cannot be a folder's."""
    make_idx_set(tmp_path, "FashionMNIST")
    images = torch.arange(10 * 784).remainder(253).to(torch.uint8).view(10, 1, 28, 28)
    path = write_images(tmp_path / "set", images, torch.arange(10), names=["t-shirt_TOP", *FASHION[1:]])
    synset, metadata = brought_in(
        path, tmp_path / "set.safetensors", "--data_path", tmp_path, "--no_download", dataset="FashionMNIST"
    )
    train, _ = load_dataset("FashionMNIST", tmp_path, download=False)
    assert torch.equal(synset.decode(), train.normalise(images))
    assert metadata["class_names"] == FASHION


def test_a_class_called_train_is_no_split(tmp_path, digits):
    names = ["train", "test"]
    data = make_folder(tmp_path / "data", names=("train", "test"))
    path = write_images(tmp_path / "set", torch.zeros(2, 3, 12, 12, dtype=torch.uint8), torch.arange(2), names=names)
    synset, metadata = brought_in(path, tmp_path / "set.safetensors", dataset=f"folder:{data}")
    assert (metadata["class_names"], len(synset.decode())) == (["test", "train"], 2)


def test_flags_and_the_recipe_say_how_networks_are_trained(tmp_path, digits):
    path = write_images(tmp_path / "set", *digits)
    output = tmp_path / "set.safetensors"
    _, metadata = brought_in(path, output)
    assert (metadata["objective"], metadata["evaluation"]["lr"], metadata["accuracy"]) == ("DM", 0.01, None)
    _, metadata = brought_in(path, output, "--model", "ConvNetD1W32", "--epochs", 3, "--lr_net", 0.5)
    assert (metadata["network"], metadata["evaluation"]["epochs"], metadata["evaluation"]["lr"]) == (
        "ConvNetD1W32", 3, 0.5,
    )  # fmt: skip
    result = bring_in(path, output, "--objective", "TM")
    assert "unknown in it: step size of the networks (--lr_net)" in result.out


def test_an_exported_set_comes_back_with_its_accuracy(tmp_path):
    train, _ = load_dataset("digits")
    synset = synthetic(10, 1, (8, 8), 16)
    synset.init(train, train.labels, train.class_indices)
    known = {"dataset": "digits", "mean": list(train.mean), "std": list(train.std), "network": "ConvNetD1W32"}
    protocol = {"epochs": 3, "lr": 0.01, "batch": 256, "strategy": "flip"}
    names = list(train.class_names)
    file = save_synset(synset, tmp_path / "a.safetensors", {**known, "class_names": names, "evaluation": protocol})
    told = call("common/pretrained/__main__.py", "export", file, "--to", f"folder:{tmp_path / 'png'}", *QUICK[:4])
    line = next(line for line in told.out.splitlines() if "as exported" in line)
    words = ["--model", "ConvNetD1W32", "--epochs", 3, "--dsa_strategy", "flip"]
    brought_in(tmp_path / "png", tmp_path / "b.safetensors", *words)
    again = call("DM/evaluate.py", "--synset", tmp_path / "b.safetensors", *QUICK[:4])
    assert line.startswith(again.out.splitlines()[-2].partition(";")[0])


# -- .npz and .pt --------------------------------------------------------------------------------------------------


def write(path, **content):
    if path.suffix == ".pt":
        torch.save(content, path)
    else:
        np.savez(path, **{key: np.asarray(value) for key, value in content.items()})
    return path


@pytest.fixture(params=["x.npz", "x.pt"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_whole_numbers_are_bytes_and_labels_the_datasets(path, digits):
    images, labels = digits
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    write(path, images=images[shuffled], labels=labels[shuffled])
    synset, metadata = brought_in(path, path.with_suffix(".safetensors"))
    assert torch.equal(synset.labels, labels)
    for label in range(10):
        assert torch.equal(
            synset.decode(slice(label, label + 1)), normalised(images[shuffled[labels[shuffled] == label]])
        )
    assert metadata["files"]["bytes"] == path.stat().st_size


def test_class_names_say_which_class_a_label_is(path, digits):
    images, labels = digits
    write(path, images=images, labels=9 - labels, class_names=[f"{9 - label}" for label in range(10)])
    synset, _ = brought_in(path, path.with_suffix(".safetensors"))
    assert torch.equal(synset.decode(), normalised(images))


@pytest.mark.parametrize(
    ("values", "convert"),
    [
        ("unit", lambda images: images.float() / 255),
        ("signed", lambda images: images.float() / 127.5 - 1),
        ("bytes", lambda images: images.float()),
        ("normalised", normalised),
    ],
)
def test_other_numbers_are_what_is_said_of_them(path, digits, values, convert):
    images, labels = digits
    output = path.with_suffix(".safetensors")
    write(path, images=convert(images), labels=labels)
    assert_refused(bring_in(path, output), "does not say what its numbers", "give --pixels")
    assert (brought_in(path, output, "--pixels", values)[0].decode() - normalised(images)).abs().max() < 1e-5
    write(path, images=convert(images), labels=labels, values=values)
    assert (brought_in(path, output)[0].decode() - normalised(images)).abs().max() < 1e-5
    other = "unit" if values != "unit" else "bytes"
    assert_refused(bring_in(path, output, "--pixels", other), "leave out --pixels")


def test_whitened_numbers_need_zca(path, digits):
    train, _ = load_dataset("digits", zca=True, progress=False)
    images, labels = digits
    white = train.normalise(images)
    write(path, images=white, labels=labels, values="whitened")
    output = path.with_suffix(".safetensors")
    assert_refused(bring_in(path, output), "give --zca")
    synset, metadata = brought_in(path, output, "--zca")
    assert torch.equal(synset.decode(), white)
    assert metadata["mean"] is None
    evaluated = call("DM/evaluate.py", "--synset", output, *QUICK)
    assert evaluated.code == 0, evaluated.err
    write(path, images=images, labels=labels)  # pixels, which --zca whitens
    assert torch.equal(brought_in(path, output, "--zca")[0].decode(), white)


def test_normalised_by_other_figures(path, digits):
    images, labels = digits
    write(path, images=normalised(images), labels=labels, values="normalised", mean=[0.5], std=[0.5])
    assert_refused(bring_in(path, path.with_suffix(".safetensors")), "another mean and std than digits")


@pytest.mark.parametrize(
    ("mean", "told"),
    [([10**400], "no list of numbers"), (torch.tensor([0.5], requires_grad=True), "another mean and std than digits")],
)
def test_figures_of_any_type(tmp_path, digits, mean, told):
    images, labels = digits
    torch.save(
        {"images": normalised(images), "labels": labels, "values": "normalised", "mean": mean, "std": [0.5]},
        tmp_path / "x.pt",
    )
    assert_refused(bring_in(tmp_path / "x.pt", tmp_path / "x.safetensors"), told)


@pytest.mark.parametrize("how", ["name", "length"])
def test_a_bit_of_the_directory_of_an_archive(tmp_path, digits, how):
    """Without its class_names, the images would be taken to be in the order of the dataset's classes."""
    images, labels = digits
    names = np.array([str(number) for number in range(10)])
    np.savez(tmp_path / "x.npz", images=images, labels=labels, class_names=names)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    if how == "name":
        content[content.rindex(b"class_names.npy")] ^= 1
    else:  # of the comment of the entry before
        content[content.rindex(b"labels.npy") - 13] ^= 4
    (tmp_path / "x.npz").write_bytes(content)
    assert_refused(bring_in(tmp_path / "x.npz", tmp_path / "x.safetensors"), "x.npz cannot be read", "it is damaged")


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", images=np.array([Evil()], dtype=object), labels=np.zeros(1))
    Path("x.pt").write_bytes(pickle.dumps({"images": Evil()}))
    for name in ("x.npz", "x.pt"):
        assert_refused(bring_in(name, "x.safetensors"), f"{name} cannot be read")
    assert not Path("ran").exists()


# -- what is refused -----------------------------------------------------------------------------------------------


def test_folders_that_cannot_be_a_set(tmp_path, digits):
    images, labels = digits
    output = tmp_path / "set.safetensors"
    other = write_images(tmp_path / "size", images[:, :, :7], labels)
    assert_refused(bring_in(other, output), "is 7 x 8 pixels, and the images of digits are 8 x 8 (height x width)")
    other = write_images(tmp_path / "classes", images[:18], labels[:18])
    assert_refused(bring_in(other, output), "has the classes 0, 1, 2", "--dataset")
    other = write_images(tmp_path / "unequal", images[1:], labels[1:])
    assert_refused(bring_in(other, output), "unequal size (1, 2, 2")
    other = write_images(tmp_path / "damaged", images, labels)
    (other / "3" / "06.png").write_bytes(b"no image")
    assert_refused(bring_in(other, output), "06.png cannot be read as an image", "replace it")
    (tmp_path / "empty").mkdir()
    assert_refused(bring_in(tmp_path / "empty", output), "no folders of images")
    assert_refused(bring_in(tmp_path / "none", output), "there is no folder or file")
    whole = write_images(tmp_path / "whole", images, labels)
    assert_refused(bring_in(whole, output, "--pixels", "unit"), "leave it out")
    assert_refused(bring_in(whole, tmp_path / "set.pt"), ".safetensors file")
    assert_refused(call("common/pretrained/__main__.py", "import", whole, "--output", output), "give --dataset")
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": None}, "has no images and labels"),
        ({"images": torch.tensor(1.0)}, "has no images and labels"),
        ({"images": torch.zeros(20, 1, 8, 8, dtype=torch.complex64)}, "has no images and labels"),
        ({"class_names": 10}, "no list of text"),
        ({"values": [1, 2]}, "give --pixels, and remove the entry"),
        ({"values": "normalised", "mean": ["a"], "std": [1.0]}, "no list of numbers"),
        ({"labels": torch.zeros(20)}, "not one whole number for each of its 20 images"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "not one whole number"),
        ({"labels": torch.arange(20) // 10}, "has 2 classes, and digits has 10"),
        ({"labels": torch.arange(20) // 2 - 1}, "not numbers of classes"),
        ({"images": torch.zeros(20, 3, 8, 8, dtype=torch.uint8)}, "are (1, 8, 8)"),
        ({"images": torch.full((20, 1, 8, 8), torch.nan), "values": "unit"}, "not finite"),
        ({"values": "pixels"}, "give --pixels, and remove the entry"),
        ({"class_names": ["a", "b"]}, "has the classes a, b"),
        ({"class_names": list("0123456789"), "labels": torch.arange(20)}, "none of the 10 classes that it names"),
    ],
)
def test_files_that_cannot_be_a_set(path, digits, changes, told):
    content = {"images": digits[0], "labels": digits[1], **changes}
    write(path, **{key: value for key, value in content.items() if value is not None})
    assert_refused(bring_in(path, path.with_suffix(".safetensors")), told)


def test_damaged_files(path, digits):
    write(path, images=digits[0], labels=digits[1])
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"no such file"):
        path.write_bytes(damaged)
        assert_refused(bring_in(path, path.with_suffix(".safetensors")), "cannot be read", "copy it again")
