"""Trees of image files: pixels are those that a viewer shows, and what is not read is told in one line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.config.options import DataOptions
from common.datasets import ImageData, load_dataset
from common.images import disk_cache, encoded, image_tree
from common.images.image_data import refuse_alike
from common.system.errors import InputError
from tests.command_line import assert_refused, call
from tests.image_sets import forbid_decoding, make_data, make_folder

pytestmark = pytest.mark.usefixtures("cache")
SIDE = 12


def load(root: Path, **options: object) -> tuple[ImageData, ImageData]:
    return load_dataset(f"folder:{root}", progress=False, **options)


def in_alpha(root: Path, mode: str = "RGBA", colour: int = 0) -> Path:
    """`make_folder`'s images, grayscale, moved into the alpha channel of images of one colour."""
    for file in make_folder(root).rglob("*.png"):
        with Image.open(file) as stored:
            alpha = stored.convert("L")
        image = Image.new("RGB" if mode == "RGBA" else "L", alpha.size, (colour,) * 3 if mode == "RGBA" else colour)
        image.putalpha(alpha)
        image.save(file)
    return root


def turned(root: Path) -> Path:
    """`make_folder`'s images, wider than high, of which every first of a class is to be turned right by 90 degrees."""
    make_folder(root, size=(8, SIDE))
    exif = Image.Exif()
    exif[0x0112] = 6
    for file in root.rglob("0.png"):
        with Image.open(file) as stored:
            pixels = stored.copy()
        pixels.save(file, exif=exif)
    return root


def pixels_of(root: Path, split: str = "train") -> list[np.ndarray]:
    """[H, W, ch] of each file as it is stored, in the order of the images."""
    return [np.asarray(Image.open(file).convert("RGB")) for file in sorted((root / split).rglob("*.png"))]


# -- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_content_in_alpha_is_read(
    tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = in_alpha(tmp_path / "icons", mode)
    alphas = [np.asarray(Image.open(file).getchannel("A")) for file in sorted((root / "train").rglob("*.png"))]
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        train, _ = load(root)
        assert train.channels == (3 if mode == "RGBA" else 1)
        assert np.array_equal(train.images[:, 0].numpy(), 255 - np.stack(alphas))
        assert 0.05 < train.std[0] < 0.5
        assert "of the 12 images of icons, 12 are laid over white because of transparent pixels" in caplog.text
        forbid_decoding(monkeypatch)


@pytest.mark.parametrize("map_above", [None, 0])
@pytest.mark.parametrize(
    ("colour", "how", "words"),
    [
        (
            0,
            {"decoding": "stored"},
            "all 6 training images of .* are alike and of one colour.*: replace them, or, as 12 images of the dataset "
            "have transparent pixels, which may be all that they show, give --decoding shown$",
        ),
        (
            255,
            {},
            "all 6 training images of .* are alike and of one colour.*: replace them; 12 images of the dataset have "
            "transparent pixels, which were laid over white, on which white is not seen$",
        ),
    ],
)
def test_training_images_that_are_all_alike_are_refused(
    tmp_path: Path, colour: int, how: dict, words: str, map_above: int | None
) -> None:
    root = in_alpha(tmp_path / "icons", colour=colour)
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            load(root, map_above=map_above, **how)


@pytest.mark.parametrize("how", [{}, {"decoding": "stored"}, {"decoding": "shown"}])
def test_of_transparency_nothing_is_said_where_there_is_none(tmp_path: Path, how: dict) -> None:
    """Opaque files, also those that have an alpha channel."""
    for mode in ("RGB", "RGBA"):
        root = make_folder(tmp_path / mode)
        for file in root.rglob("*.png"):
            Image.new(mode, (SIDE, SIDE), "red").save(file)
        for _ in range(2):  # the second time from the cache
            with pytest.raises(InputError, match=r"so nothing tells their classes apart: replace them$"):
                load(root, **how)


def test_one_picture_over_and_over_is_refused_too(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "same")
    files = sorted(root.rglob("*.png"))
    one = files[0].read_bytes()
    for file in files:
        if "test" in file.parts:
            file.write_bytes(one)
    with pytest.raises(InputError, match=r"all 6 test images of \S* are alike, so nothing tells"):
        load(root)
    for file in files:
        file.write_bytes(one)
    with pytest.raises(InputError, match=r"all 6 training images of \S* are alike, so nothing tells"):
        load(root)


def test_images_of_which_one_differs_are_not_alike() -> None:
    data = make_data((3, 3))
    data.images[:] = 7
    with pytest.raises(InputError, match="all 6 test images of made up are alike and of one colour"):
        refuse_alike(data, "test images")
    data.images[5, 2, 3, 5] = 8
    refuse_alike(data, "test images")


def test_arrays_of_zeros_are_refused(tmp_path: Path) -> None:
    """Files of another kind: what a copy that broke off left of MNIST's, of the right length."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, count in (("train", 20), ("t10k", 20)):
        sizes = b"".join(each.to_bytes(4, "big") for each in (count, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sizes + bytes(count * 28 * 28))
        labels = bytes(range(10)) * (count // 10)
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + labels)
    with pytest.raises(InputError, match="all 20 training images of MNIST are alike and of one colour"):
        load_dataset("MNIST", tmp_path, download=False)


def test_orientation_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = turned(tmp_path / "phone")
    with pytest.raises(InputError, match=r"0.png is 8 x 12 and \S*1.png is 12 x 8 pixels"):
        load(root)
    train, _ = load(root, image_size=8)
    wide = pixels_of(root)
    expected = [np.rot90(each, -1)[2:10] if number % 3 == 0 else each[:, 2:10] for number, each in enumerate(wide)]
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), np.stack(expected))
    assert "of the 12 images of phone, 4 are turned as the EXIF orientation says (--decoding stored" in caplog.text


def test_the_old_pixels_are_an_option(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each decoding has a cache of its own."""
    root = turned(tmp_path / "phone")
    stored, _ = load(root, decoding="stored")
    assert np.array_equal(stored.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels_of(root)))
    assert "of the 12 images of phone, 4 are not turned as the EXIF orientation says (--decoding shown" in caplog.text
    small, _ = load(root, image_size=8, decoding="stored")
    shown, _ = load(root, image_size=8, decoding="shown")
    assert torch.equal(load(root, image_size=8)[0].images, shown.images)
    assert not torch.equal(small.images[0], shown.images[0])
    assert torch.equal(small.images[1:3], shown.images[1:3])
    assert len(list(cache.iterdir())) == 3


def test_plain_images_are_the_same_either_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "plain")
    shown, stored = load(root)[0], load(root, decoding="stored")[0]
    assert torch.equal(shown.images, stored.images)
    assert np.array_equal(shown.images.permute(0, 2, 3, 1).numpy(), np.stack(pixels_of(root)))
    assert not caplog.records


def write_cache_of_format_1(root: Path) -> Path:
    """As the version before wrote it: black images, whose content was in alpha."""
    tree = [path for split in ("train", "test") for path in sorted((root / split).rglob("*.png"))]
    digest = hashlib.blake2b(f"1\0{root}\0None".encode(), digest_size=20)
    for path in tree:
        status = path.stat()
        digest.update(f"\0{str(path)[len(str(root)) :]}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    name = hashlib.blake2b(json.dumps([str(root), None]).encode(), digest_size=10).hexdigest()
    file = Path(os.environ["FRED_CACHE"]) / f"folder-{name}.safetensors"
    black = torch.zeros(len(tree) // 2, 3, SIDE, SIDE, dtype=torch.uint8)
    facts = {"statistics": [[0.0] * 3, [1.0] * 3]}
    disk_cache.write(file, digest.hexdigest(), {"test": black, "train": black.clone()}, facts)
    return file


def test_a_cache_of_the_version_before_is_replaced(tmp_path: Path, cache: Path) -> None:
    root = in_alpha(tmp_path / "icons")
    file = write_cache_of_format_1(root)
    before = file.read_bytes()
    train, _ = load(root)
    alphas = [np.asarray(Image.open(file).getchannel("A")) for file in sorted((root / "train").rglob("*.png"))]
    assert np.array_equal(train.images[:, 0].numpy(), 255 - np.stack(alphas))
    assert list(cache.iterdir()) == [file]
    assert file.read_bytes() != before


def test_format_is_what_tells_the_cache_of_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    tree = image_tree.Tree(("a",), [], [], image_tree.LeftOut())
    for number in (1, encoded.FORMAT):
        monkeypatch.setattr(image_tree, "FORMAT", number)
        keys |= {image_tree.tree_fingerprint(tmp_path, None, decoding, tree) for decoding in ("shown", "stored")}
    assert len(keys) == 4


def test_options_have_the_choice_and_other_datasets_refuse_it(tmp_path: Path) -> None:
    root = turned(tmp_path / "phone")
    train, _ = DataOptions(dataset=f"folder:{root}", decoding="stored").load()
    assert train.im_size == (8, SIDE)
    for name in ("digits", "CIFAR10", "3D-MNIST"):
        with pytest.raises(InputError, match=f"--decoding says how image files are read, and {name} has none"):
            load_dataset(name, decoding="shown")


def test_a_set_is_tested_on_images_that_are_read_as_its_own_were(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = turned(tmp_path / "phone")
    flags = ["--dataset", f"folder:{root}", "--model", "ConvNetD1", "--num_eval", "1", "--epoch_eval_train", "0"]
    made = [*flags, "--decoding", "stored", "--Iteration", "1", "--msz_per_channel", "48", "--lr_freq", "1"]

    done = call("DM/distill.py", *made, "--save_path", tmp_path / "runs", "--device", "cpu")
    assert done.code == 0, done.err
    (file,) = (tmp_path / "runs").rglob("synset.safetensors")
    tested = call("DM/evaluate.py", "--synset", file, *flags[4:], "--device", "cpu")
    assert tested.code == 0, tested.err
    assert "are not turned as the EXIF orientation says" in caplog.text
    other = call("DM/evaluate.py", "--synset", file, *flags[4:], "--decoding", "shown", "--device", "cpu")
    assert_refused(other, "is 8 x 12 and")


# -- what is left out ----------------------------------------------------------------------------------------------


def test_hidden_files_and_folders_are_never_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "pets")
    whole = load(root)
    image = (root / "train" / "cat" / "0.png").read_bytes()
    for split in ("train", "test"):
        for hidden in (".ipynb_checkpoints", "@eaDir"):
            for place in (root / split, root / split / "cat"):
                (place / hidden).mkdir()
                (place / hidden / "0-checkpoint.png").write_bytes(image)
        (root / split / "cat" / "._0.png").write_bytes(b"AppleDouble")
        (root / split / "cat" / "@eaDir" / "0.png").mkdir()
    caplog.clear()
    for before, after in zip(whole, load(root), strict=True):
        assert torch.equal(before.images, after.images)
        assert before.class_names == after.class_names == ("cat", "dog")
    assert caplog.messages == ["10 entries of pets are not read as images: 10 hidden (._0.png, ...)"]


def test_one_line_says_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "pets")
    cat = root / "train" / "cat"
    for name in ("a.heic", "b.HEIC", "labels.csv", "README"):
        (cat / name).write_bytes(b"1")
    for split in ("train", "test"):
        (root / split / "owl").symlink_to(tmp_path / "nowhere")
        (root / split / "owl.tar.gz").write_bytes(b"1")
    (root / "train" / "stray.png").write_bytes(b"1")
    (cat / "self").symlink_to(cat)
    (root / "val").mkdir()
    os.mkfifo(cat / "pipe.png")
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        train, _ = load(root)
        assert len(train) == 6
        assert caplog.messages == [
            "12 entries of pets are not read as images: 2 .gz (owl.tar.gz, ...), 2 .heic (a.heic, ...), "
            "2 linked to nothing (owl, ...), 1 .csv (labels.csv), 1 linked to an enclosing folder (self), "
            "1 neither file nor folder (pipe.png), 1 outside the class folders (stray.png), "
            "1 second test split (val/), 1 without an extension (README)"
        ]


@pytest.mark.parametrize("test", ["test", "val"])
def test_what_lies_beside_the_splits_is_counted(tmp_path: Path, test: str, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "pets")
    (root / "test").rename(root / test)
    for name in (".git", "@eaDir"):  # hidden ones are no part of the tree
        (root / name).mkdir()
    (root / ".DS_Store").touch()
    load(root)
    assert not caplog.messages
    for name in ("validation", "more"):
        (root / name / "cat").mkdir(parents=True)
    for name in ("extra.zip", "cover.png", "LICENSE"):
        (root / name).write_bytes(b"1")
    train, _ = load(root)
    assert len(train) == 6
    assert caplog.messages == [
        "5 entries of pets are not read as images: 2 beside the splits (more/, ...), 1 .zip (extra.zip), "
        "1 outside the class folders (cover.png), 1 without an extension (LICENSE)"
    ]


def test_nothing_left_out_is_nothing_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(make_folder(tmp_path / "pets"))
    assert not caplog.messages


@pytest.mark.parametrize("extension", ["gif", "jfif", "JPE", "pnm"])
def test_formats_that_people_keep_images_in_are_read(tmp_path: Path, extension: str) -> None:
    root = make_folder(tmp_path / "pets")
    image = Image.new("RGB", (SIDE, SIDE), (200, 0, 0))
    kind = {"gif": "GIF", "pnm": "PPM"}.get(extension, "JPEG")
    image.save(root / "train" / "dog" / f"9.{extension}", kind)
    train, _ = load(root)
    assert len(train) == 7
    assert train.images[6, :, 0, 0].tolist() == pytest.approx([200, 0, 0], abs=4)


def test_a_link_to_an_image_that_is_gone_is_an_image_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path / "pets")
    link = root / "train" / "cat" / "7.png"
    link.symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=f"{link} cannot be read as an image .*No such file.*--skip_corrupt"):
        load(root)
    train, _ = load(root, skip_corrupt=True)
    assert len(train) == 6
    assert "1 of the 13 images of pets cannot be read" in caplog.text
    (tmp_path / "gone.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    assert len(load(root)[0]) == 7


def test_a_link_to_another_folder_is_followed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "pets")
    more = tmp_path / "more"
    (root / "train" / "cat").rename(more)
    (root / "train" / "cat").symlink_to(more)
    (root / "train" / "dog" / "further").symlink_to(more)
    train, _ = load(root)
    assert train.labels.tolist() == [0] * 3 + [1] * 6


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cat: cat.rename(cat.with_name(".cat")), r"train has 1 class folder.*it also has 1 hidden \(.cat\)"),
        (
            lambda cat: [each.rename(each.with_suffix(".heic")) for each in cat.glob("*.png")],
            r"train/cat has no images \(.*\) but 3 .heic \(0.heic, ...\): add some",
        ),
    ],
)
def test_errors_say_what_lies_there_instead(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    root = make_folder(tmp_path / "pets")
    spoil(root / "train" / "cat")
    with pytest.raises(InputError, match=words):
        load(root)
