"""Tiny ImageNet: every layout in which its validation images lie gives the same data; what is damaged is named."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from common.datasets import ImageData, load_dataset, statistics, tiny
from common.system.errors import InputError
from tests.image_sets import forbid_decoding

pytestmark = pytest.mark.usefixtures("cache")

# Not in the order of their ids, as in the real wnids.txt; two classes share their first synonym.
WORDS = {
    "n02124075": "Egyptian cat",
    "n01443537": "goldfish, Carassius auratus",
    "n03126707": "crane",
    "n02012849": "crane, wading bird",
}
NAMES = ("goldfish", "crane (n02012849)", "Egyptian cat", "crane (n03126707)")


def save(file: Path, seed: int, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (64, 64, 3) if mode == "RGB" else (64, 64)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(file, quality=90)


def make_tiny(data_path: Path) -> Path:
    """Four classes of 3 training and 2 validation images, as the archive unpacks; one of each split is grayscale."""
    root = data_path / "tiny-imagenet-200"
    annotations = []
    for c, wnid in enumerate(WORDS):
        for i in range(3):
            save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * c + i, "L" if c == i == 1 else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for i in range(2):
            name = f"val_{4 * i + c}.JPEG"
            save(root / "val" / "images" / name, 100 + 10 * c + i, "L" if (c, i) == (2, 0) else "RGB")
            annotations.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    (root / "wnids.txt").write_text("\n".join(WORDS) + "\n")
    others = {"n00001740": "entity", **WORDS}
    (root / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in others.items()))
    (root / "test" / "images").mkdir(parents=True)
    (root / "test" / "images" / "test_0.JPEG").write_bytes(b"not read")
    return root


def sort_val(root: Path, below: str, keep_annotations: bool) -> None:
    """Move the images of val/images into class folders, as many a script does."""
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid = line.split("\t")[:2]
        target = root / "val" / wnid / below / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(target)
    if not keep_annotations:
        (root / "val" / "images").rmdir()
        (root / "val" / "val_annotations.txt").unlink()


def load_tiny(data_path: Path, **options: object) -> tuple[ImageData, ImageData]:
    return load_dataset("Tiny", data_path, download=False, progress=False, **options)


def test_train_is_what_image_folder_reads(tmp_path: Path) -> None:
    root = make_tiny(tmp_path)
    train, _ = load_tiny(tmp_path)
    reference = torchvision.datasets.ImageFolder(str(root / "train"))
    expected = torch.stack([torchvision.transforms.functional.pil_to_tensor(image) for image, _ in reference])
    assert torch.equal(train.images, expected)
    assert train.images.shape == (12, 3, 64, 64)
    assert train.labels.tolist() == reference.targets
    assert train.class_names == NAMES
    assert (train.mean, train.std) == statistics("Tiny") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert train.name == "Tiny"


def test_val_has_the_labels_of_its_annotations(tmp_path: Path) -> None:
    root = make_tiny(tmp_path)
    _, test = load_tiny(tmp_path)
    lines = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    label_of = {name: sorted(WORDS).index(wnid) for name, wnid, *_ in lines}
    assert test.labels.tolist() == [label_of[f"val_{i}.JPEG"] for i in range(8)]
    for i, image in enumerate(test.images):
        stored = Image.open(root / "val" / "images" / f"val_{i}.JPEG").convert("RGB")
        assert torch.equal(image, torchvision.transforms.functional.pil_to_tensor(stored))
        stored.close()


@pytest.mark.parametrize("below", ["", "images"])
@pytest.mark.parametrize("keep_annotations", [False, True])
def test_val_in_class_folders_gives_the_same_images(tmp_path: Path, below: str, keep_annotations: bool) -> None:
    root = make_tiny(tmp_path)
    _, unsorted = load_tiny(tmp_path)
    sort_val(root, below, keep_annotations)
    _, test = load_tiny(tmp_path)
    by_label = torch.argsort(unsorted.labels, stable=True)
    assert torch.equal(test.images, unsorted.images[by_label])
    assert torch.equal(test.labels, unsorted.labels[by_label])
    assert test.class_names == NAMES


def test_a_whole_archive_leaves_nothing_out_and_what_is_added_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tiny(tmp_path)
    whole, _ = load_tiny(tmp_path)
    assert not caplog.messages
    images = root / "train" / next(iter(WORDS)) / "images"
    (images / ".ipynb_checkpoints").mkdir()
    save(images / ".ipynb_checkpoints" / "0-checkpoint.JPEG", 7)
    (root / "train" / ".DS_Store").write_bytes(b"1")
    train, _ = load_tiny(tmp_path)
    assert torch.equal(train.images, whole.images)
    assert caplog.messages == ["2 entries of tiny-imagenet-200 are not read as images: 2 hidden (.DS_Store, ...)"]


def test_second_start_reads_the_cache_alone(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(tmp_path)
    first = load_tiny(tmp_path)
    forbid_decoding(monkeypatch)
    for before, after in zip(first, load_tiny(tmp_path), strict=True):
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels)
    assert len(list(cache.iterdir())) == 1


def test_changed_annotation_changes_the_label(tmp_path: Path) -> None:
    annotations = make_tiny(tmp_path) / "val" / "val_annotations.txt"
    load_tiny(tmp_path)
    annotations.write_text(annotations.read_text().replace("val_0.JPEG\tn02124075", "val_0.JPEG\tn03126707"))
    _, test = load_tiny(tmp_path)
    assert test.labels[0] == 3


def test_class_without_a_word_is_called_by_its_id(tmp_path: Path) -> None:
    words = make_tiny(tmp_path) / "words.txt"
    words.write_text("n01443537\tgoldfish, Carassius auratus\n")
    names = ("goldfish", "n02012849", "n02124075", "n03126707")
    assert load_tiny(tmp_path)[0].class_names == names
    words.unlink()
    assert load_tiny(tmp_path)[0].class_names == ("n01443537", *names[1:])


def test_image_size_is_not_changed(tmp_path: Path) -> None:
    make_tiny(tmp_path)
    assert load_tiny(tmp_path, image_size=64)[0].im_size == (64, 64)
    with pytest.raises(InputError, match="images of Tiny are 64 x 64 pixels, not 32"):
        load_tiny(tmp_path, image_size=32)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: edit(root / "val/val_annotations.txt", "val_2.JPEG\tn03126707\t0\t32\t44\t62\n", ""),
         "val_annotations.txt has no line for val_2.JPEG;"),
        (lambda root: edit(root / "val/val_annotations.txt", "val_2.JPEG\tn03126707", "val_2.JPEG\tn99999999"),
         "line 5 of val/val_annotations.txt has 'n99999999'"),
        (lambda root: edit(root / "val/val_annotations.txt", "val_2.JPEG\tn03126707", "val_2.JPEG n03126707"),
         "line 5 of val/val_annotations.txt has '0'"),
        (lambda root: (root / "val/val_annotations.txt").unlink(), "val_annotations.txt, .* is not there"),
        (lambda root: (root / "val/images/val_3.JPEG").unlink(), "val/images lacks val_3.JPEG;"),
        (lambda root: [(root / f"val/images/val_{i}.JPEG").unlink() for i in (3, 5)], "lacks val_3.JPEG and 1 more;"),
        (lambda root: shutil.rmtree(root / "val/images"), "val/n01443537 has no images"),
        (lambda root: shutil.rmtree(root / "val"), "it has no folder val/"),
        (lambda root: shutil.rmtree(root / "train"), "it has no folder train/"),
        (lambda root: shutil.rmtree(root / "train/n02012849"), "train/ lacks the class folder n02012849"),
        (lambda root: (root / "train/n00000001").mkdir(), "has, unlike wnids.txt, the class folder n00000001"),
        (lambda root: shutil.rmtree(root / "train/n02012849/images"), "train/n02012849 has no images"),
    ],
)  # fmt: skip
def test_damaged_tree_is_explained(tmp_path: Path, damage, words: str) -> None:
    root = make_tiny(tmp_path)
    damage(root)
    with pytest.raises(InputError, match=words) as caught:
        load_tiny(tmp_path)
    assert "\n" not in str(caught.value)
    assert f"{root} is not Tiny ImageNet" in str(caught.value)
    assert "delete the folder and run again" in str(caught.value)


def test_damaged_image_is_named(tmp_path: Path) -> None:
    file = make_tiny(tmp_path) / "val" / "images" / "val_1.JPEG"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{file} cannot be read as an image"):
        load_tiny(tmp_path)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """tiny-imagenet-200.zip in an otherwise empty folder, with the checksum that is expected changed to its own."""
    make_tiny(tmp_path / "source")
    (tmp_path / "data").mkdir()
    packed = shutil.make_archive(str(tmp_path / "data" / "tiny-imagenet-200"), "zip", tmp_path / "source")
    monkeypatch.setattr(tiny, "MD5", hashlib.md5(Path(packed).read_bytes()).hexdigest())
    return Path(packed)


@pytest.mark.parametrize("download", [True, False])
def test_archive_that_is_there_is_unpacked_without_a_network(archive: Path, offline: None, download: bool) -> None:
    train, test = load_dataset("Tiny", archive.parent, download=download, progress=False)
    assert (len(train), len(test), train.class_names) == (12, 8, NAMES)
    assert sorted(file.name for file in archive.parent.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]


def test_interrupted_unpacking_leaves_no_folder(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.utils, "extract_archive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_tiny(archive.parent)
    assert [file.name for file in archive.parent.iterdir()] == [archive.name]


def test_missing_data_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_tiny(tmp_path)
    for words in ("Tiny is not in", "tiny-imagenet-200.zip", str(tmp_path), "run once without --no_download"):
        assert words in str(caught.value)


def test_damaged_archive_is_named(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{archive} is truncated or damaged: delete it"):
        load_tiny(archive.parent)


def test_failed_download_names_address_and_folder(tmp_path: Path, offline: None) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset("Tiny", tmp_path)
    for words in ("Tiny could not be downloaded from", tiny.ADDRESS, "no network in tests", f"into {tmp_path}"):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())
