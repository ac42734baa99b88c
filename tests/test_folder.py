"""Folders of images: read as ImageFolder reads them, decoded once, and what is damaged or lacks is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from common.datasets import ImageData, load_dataset
from common.images import decode, decoded, disk_cache, encoded, image_tree
from common.images.pixels import Resize
from common.system.errors import InputError
from tests.image_sets import forbid_decoding

pytestmark = pytest.mark.usefixtures("cache")


def make_tree(root: Path, test: str = "test", size: tuple[int, int] = (9, 7), mode: str = "RGB") -> Path:
    """Two classes, 3 training and 2 test images of each, `size` = (width, height)."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), (test, 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3)[: 3 if mode == "RGB" else 2], dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def load_folder(root: Path, **options: object) -> tuple[ImageData, ImageData]:
    return load_dataset(f"folder:{root}", progress=False, **options)


@pytest.mark.parametrize("test_folder", ["test", "val"])
@pytest.mark.parametrize("workers", [1, 3])
def test_folder_is_read_as_image_folder_reads_it(
    tmp_path: Path, test_folder: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "CHUNK", 2)
    make_tree(tmp_path, test_folder)
    for data, split in zip(load_folder(tmp_path, workers=workers), ("train", test_folder), strict=True):
        reference = torchvision.datasets.ImageFolder(str(tmp_path / split))
        expected = torch.stack([torchvision.transforms.functional.pil_to_tensor(image) for image, _ in reference])
        assert torch.equal(data.images, expected)
        assert data.labels.tolist() == reference.targets
        assert data.class_names == tuple(reference.classes)
        assert data.name == f"folder:{tmp_path}"


def test_folder_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    train, test = load_folder(make_tree(tmp_path))
    values = train.images.double().transpose(0, 1).flatten(1) / 255
    assert train.mean == pytest.approx(values.mean(1).tolist(), abs=1e-6)
    assert train.std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-6)
    assert (test.mean, test.std) == (train.mean, train.std)
    borrowed, _ = load_folder(tmp_path, mean=[0.5] * 3, std=[0.25] * 3)
    assert (borrowed.mean, borrowed.std) == ((0.5,) * 3, (0.25,) * 3)


def test_constant_channel_can_be_normalised() -> None:
    mean, std = decoded.channel_statistics(decoded.count_values(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)))
    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


@pytest.mark.parametrize("size", [(9, 7), (7, 9), (12, 12), (5, 20), (6, 11)])
@pytest.mark.parametrize("side", [4, 7, 16])
def test_resizing_is_torchvisions(size: tuple[int, int], side: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    functional = torchvision.transforms.functional
    image = Image.fromarray(pixels)
    as_float = functional.pil_to_tensor(image).float()
    for mode, to in (("crop", side), ("squash", (side, side))):
        expected = functional.center_crop(functional.resize(image, to), [side])
        result = encoded.resized(image, Resize(side, mode))
        assert np.array_equal(result, functional.pil_to_tensor(expected).numpy())
        # Of tensors, as the authors' code resizes: theirs are floating point, ours are rounded.
        expected = functional.center_crop(functional.resize(as_float, to, antialias=False), [side])
        result = torch.from_numpy(encoded.resized(image, Resize(side, mode, antialias=False)))
        assert (result - expected).abs().max() <= 0.5 + 1e-3


def test_extensions_are_torchvisions_and_more_that_pillow_reads() -> None:
    theirs = torchvision.datasets.folder.IMG_EXTENSIONS
    assert image_tree.EXTENSIONS[: len(theirs)] == theirs
    more = image_tree.EXTENSIONS[len(theirs) :]
    assert set(more) - {".avif"} <= set(Image.registered_extensions())  # AVIF came with Pillow 11.3
    assert {".gif", ".jfif", ".avif"} <= set(more)


def test_image_size_and_mixed_sizes(tmp_path: Path) -> None:
    make_tree(tmp_path)
    odd = tmp_path / "test" / "dog" / "1.png"
    Image.new("RGB", (12, 8)).save(odd)
    with pytest.raises(InputError, match=rf"0.png is 9 x 7 and {odd} is 12 x 8 pixels: give --image_size"):
        load_folder(tmp_path)
    train, test = load_folder(tmp_path, image_size=4)
    assert train.images.shape == (6, 3, 4, 4)
    assert test.images.shape == (4, 3, 4, 4)


def test_grayscale_folder_has_one_channel_and_a_mixed_one_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path, mode="L")
    gray, _ = load_folder(tmp_path)
    assert gray.images.shape == (6, 1, 7, 9)
    Image.new("RGB", (9, 7), (255, 0, 0)).save(tmp_path / "train" / "dog" / "2.png")
    for chunk in (1, 100):
        monkeypatch.setattr(decode, "CHUNK", chunk)
        mixed, _ = load_folder(tmp_path)
        assert mixed.images.shape == (6, 3, 7, 9)
        assert torch.equal(mixed.images[:5], gray.images[:5].expand(-1, 3, -1, -1))
        assert mixed.images[5, :, 0, 0].tolist() == [255, 0, 0]
        next(image_tree.cache_file(tmp_path.resolve(), None).parent.iterdir()).unlink()


def test_second_start_reads_the_cache_alone(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path)
    first = load_folder(tmp_path)
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
    forbid_decoding(monkeypatch)
    for before, after in zip(first, load_folder(tmp_path), strict=True):
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels)
        assert (before.mean, before.std, before.class_names) == (after.mean, after.std, after.class_names)
    with pytest.raises(AssertionError):
        load_folder(tmp_path, image_size=4)


def test_unreadable_files_are_left_out_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = load_folder(make_tree(tmp_path))
    first, other = tmp_path / "train" / "cat" / "0.png", tmp_path / "test" / "dog" / "1.png"
    first.write_bytes(first.read_bytes()[:99])
    other.write_bytes(b"")
    for start in range(2):  # the second one from the cache
        caplog.clear()
        train, test = load_folder(tmp_path, skip_corrupt=True)
        assert torch.equal(train.images, whole.images[1:])
        assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1, 1], [0, 0, 1])
        assert (
            f"2 of the 10 images of {tmp_path.name} cannot be read and are left out, the first is {first}"
            in caplog.text
        )
        if start == 0:
            with pytest.raises(InputError, match=f"{first} cannot be read.*give --skip_corrupt"):
                load_folder(tmp_path)
            monkeypatch.setattr(decode, "read_chunk", None)


@pytest.mark.parametrize(("files", "words"), [(2, "test images of the class dog"), (4, "none of the 4 test images")])
def test_a_class_that_nothing_is_left_of_is_named(tmp_path: Path, files: int, words: str) -> None:
    make_tree(tmp_path)
    for file in sorted(tmp_path.glob("test/*/*.png"))[-files:]:
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match=words):
        load_folder(tmp_path, skip_corrupt=True)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("gray", [0, 3, 6])
def test_mapped_images_are_those_in_memory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, skip: bool, gray: int
) -> None:
    """Also where colour comes late, in the last training images, or only in the test images, which are read first."""
    monkeypatch.setattr(decode, "CHUNK", 2)
    make_tree(tmp_path)
    for file in sorted(tmp_path.glob("train/*/*.png"))[:gray]:
        Image.open(file).convert("L").save(file)
    if skip:
        (tmp_path / "train" / "cat" / "1.png").write_bytes(b"no image")
    in_memory = load_folder(tmp_path, skip_corrupt=skip)
    (file,) = cache.iterdir()
    file.unlink()
    first = load_folder(tmp_path, skip_corrupt=skip, map_above=0)
    assert list(cache.iterdir()) == [file]
    forbid_decoding(monkeypatch)
    for start in (
        first,
        load_folder(tmp_path, skip_corrupt=skip, map_above=0),
        load_folder(tmp_path, skip_corrupt=skip),
    ):
        for before, after in zip(in_memory, start, strict=True):
            assert torch.equal(before.images, after.images)
            assert torch.equal(before.labels, after.labels)
            assert (before.mean, before.std) == (after.mean, after.std)
    assert torch.equal(first[0].batch(torch.tensor([2, 0])), in_memory[0].batch(torch.tensor([2, 0])))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone says what is mapped")
def test_mapped_images_are_not_in_memory(tmp_path: Path, cache: Path) -> None:
    """Nothing may be written to them, which shows what they are."""
    make_tree(tmp_path)
    mapped = load_folder(tmp_path, map_above=0)[0].images
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        (line,) = [line for line in maps if f"{cache}/" in line and line.rstrip().endswith(".safetensors")]
    begin, end = (int(each, 16) for each in line.split()[0].split("-"))
    assert begin <= mapped.data_ptr() < end
    assert line.split()[1].startswith("r--")


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "short", "longer"])
def test_damaged_mapped_cache_is_rebuilt(
    tmp_path: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree(tmp_path)
    before, _ = load_folder(tmp_path, map_above=0)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    broken = {"cut": content[:-5], "garbage": b"x" * 99, "empty": b"", "short": content[:40], "longer": content + b"x"}
    file.unlink()  # not changed in place: `before` is a view of it
    file.write_bytes(broken[damage])
    after, _ = load_folder(tmp_path, map_above=-1)
    assert torch.equal(before.images, after.images)
    assert "is damaged" in caplog.text


def test_mapped_cache_that_cannot_be_written_stops_the_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "tree")
    with monkeypatch.context() as patch:
        patch.setattr(disk_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(InputError, match=r"take 0.0 GB.*cannot write .*No space left.*FRED_CACHE names the folder"):
            load_folder(tmp_path / "tree", map_above=0)
    assert not list(cache.iterdir())
    file = tmp_path / "tree" / "train" / "cat" / "1.png"
    content = file.read_bytes()
    file.write_bytes(content[:99])
    with pytest.raises(InputError, match=f"^{file} cannot be read"):
        load_folder(tmp_path / "tree", map_above=0)
    assert not list(cache.iterdir())


def test_what_killed_processes_left_of_a_mapped_cache_is_removed(tmp_path: Path, cache: Path) -> None:
    make_tree(tmp_path)
    name = image_tree.cache_file(tmp_path.resolve(), None).name
    for pid in (1, 2):
        (cache / f".{name}.{pid}.tmp").write_bytes(b"half")
    os.utime(cache / f".{name}.1.tmp", (1, 1))
    load_folder(tmp_path, map_above=0)
    assert {file.name for file in cache.iterdir()} == {name, f".{name}.2.tmp"}  # the second may be under way


@pytest.mark.parametrize("change", ["content", "touch", "new", "gone", "renamed"])
def test_changed_tree_is_read_again(tmp_path: Path, cache: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path)
    load_folder(tmp_path)
    file = tmp_path / "train" / "cat" / "1.png"
    if change == "content":
        Image.new("RGB", (9, 7), (1, 2, 3)).save(file)
    elif change == "touch":
        os.utime(file, (1, 1))
    elif change == "new":
        file.with_name("9.png").write_bytes(file.read_bytes())
    elif change == "gone":
        file.unlink()
    else:
        file.rename(file.with_name("8.png"))
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        with pytest.raises(AssertionError):
            load_folder(tmp_path)
    load_folder(tmp_path)
    assert len(list(cache.iterdir())) == 1
    forbid_decoding(monkeypatch)
    load_folder(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "empty"])
def test_damaged_cache_is_rebuilt(
    tmp_path: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path)
    before, _ = load_folder(tmp_path)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    last = bytes([content[-1] ^ 1])
    file.write_bytes({"cut": content[:-5], "flipped": content[:-1] + last, "garbage": b"x" * 99, "empty": b""}[damage])
    after, _ = load_folder(tmp_path)
    assert torch.equal(before.images, after.images)
    assert "is damaged" in caplog.text
    assert list(cache.iterdir()) == [file]
    forbid_decoding(monkeypatch)
    load_folder(tmp_path)


def test_cache_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree(tmp_path / "tree")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FRED_CACHE", str(tmp_path / "file" / "cache"))
    train, _ = load_folder(tmp_path / "tree")
    assert len(train) == 6
    assert "cannot be kept" in caplog.text


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert image_tree.cache_file(tmp_path, None).parent == tmp_path / "fred"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert image_tree.cache_file(tmp_path, None).parent == tmp_path / "home" / ".cache" / "fred"


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "16 bits"])
def test_damaged_image_is_named(tmp_path: Path, cache: Path, damage: str) -> None:
    file = make_tree(tmp_path) / "train" / "dog" / "1.png"
    if damage == "16 bits":
        Image.fromarray(np.full((7, 9), 40000, dtype=np.uint16)).save(file)
    else:
        content = file.read_bytes()
        file.write_bytes({"cut": content[: len(content) // 2], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(InputError, match=f"{file} (cannot be read|has more than 8 bits)"):
        load_folder(tmp_path)
    assert not list(cache.iterdir())


def test_truncated_jpeg_is_named(tmp_path: Path) -> None:
    file = make_tree(tmp_path) / "train" / "dog" / "1.JPEG"
    Image.new("RGB", (9, 7)).save(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{file} cannot be read"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        (["train"], "has no folder train/"),
        (["test"], "has neither test/ nor val/"),
        (["train/cat", "test/cat"], "train has 1 class folder.*at least 2"),
        (["train/cat", "train/dog"], "train has 0 class folder"),
        (["test/dog"], "dog only in .*train"),
        (["train/cat/0.png", "train/cat/1.png", "train/cat/2.png"], "train/cat has no images"),
        (["."], "is not a folder"),
    ],
)
def test_incomplete_tree_is_explained(tmp_path: Path, gone: list[str], words: str) -> None:
    root = make_tree(tmp_path / "tree")
    for name in gone:
        path = root / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(InputError, match=words):
        load_folder(root)


def unsplit(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 8), (index, 100 * number, 7)).save(root / name / f"{index:02}.png")
    return root


def test_a_folder_that_is_not_split_holds_a_share_of_each_class_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = unsplit(tmp_path / "mine", {"cat": 20, "dog": 11, "eel": 2})
    train, test = load_folder(root)
    assert train.class_names == ("cat", "dog", "eel")
    assert torch.bincount(train.labels).tolist() == [16, 9, 1]
    assert torch.bincount(test.labels).tolist() == [4, 2, 1]
    together = {tuple(image[:, 0, 0].tolist()) for data in (train, test) for image in data.images}
    assert len(together) == 33  # each image is in one of both
    again = load_folder(root)
    assert torch.equal(again[1].images, test.images)
    load_dataset(f"folder:{root}", progress=True)
    told = f"{root} has no train/ and test/: 7 of its 33 images, 20 % of each class, are held out for tests"
    assert told in capsys.readouterr().out


def test_splits_of_another_name_are_no_classes(tmp_path: Path) -> None:
    for split in ("Training", "Testing"):
        unsplit(tmp_path / split, {"cat": 3, "dog": 3})
    with pytest.raises(InputError, match="has no folder train/"):
        load_folder(tmp_path)


def test_what_is_held_out_is_a_mixture(tmp_path: Path) -> None:
    """Files are often in the order in which they were taken."""
    _, test = load_folder(unsplit(tmp_path, {"cat": 50, "dog": 50}))
    for label in (0, 1):
        index = test.images[test.labels == label][:, 0, 0, 0].tolist()
        assert min(index) < 20 < 30 < max(index)


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    root = unsplit(tmp_path, {"cat": 5, "dog": 1})
    with pytest.raises(InputError, match="dog has one image: add another, for one is held out for tests"):
        load_folder(root)


def test_hidden_folders_and_other_files_are_no_classes(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "README.txt").write_text("hello")
    (tmp_path / "train" / "cat" / "labels.csv").write_text("1")
    train, _ = load_folder(tmp_path)
    assert (train.class_names, len(train)) == (("cat", "dog"), 6)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"image_size": 0}, "--image_size must be from 1 to 4,096 pixels, not 0"),
        ({"workers": 0}, "at least 1"),
        ({"resize": "squash"}, "--resize squash says how images are resized: give --image_size too"),
        ({"antialias": False}, "--no_antialias says how images are resized: give --image_size too"),
    ],
)
def test_senseless_options_are_refused(tmp_path: Path, option: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_folder(make_tree(tmp_path), **option)
