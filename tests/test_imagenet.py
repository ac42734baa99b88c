"""Subsets of ImageNet: every layout gives the same data in the published order; what is missing or damaged is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from scipy.io import savemat
from torchvision import transforms

from common.config.command_line import parse, parse_buffer, parse_plain
from common.config.evaluate_options import EvaluateOptions
from common.config.options import DataOptions
from common.datasets import DATASETS, ImageData, load_dataset, statistics
from common.datasets.imagenet_classes import NAMES, SUBSETS, SYNONYMS, resolve
from common.datasets.imagenet_devkit import DEVKIT, META, SOLUTION, TRUTH
from common.datasets.presence import is_there
from common.images import decode
from common.system.errors import InputError
from common.training import evaluation_setup
from common.training.evaluate_command import evaluate_file
from tests.command_line import assert_refused, call
from tests.image_sets import forbid_decoding
from tests.imagenet_sets import (
    OTHER,
    TRAIN,
    VAL,
    WOOF,
    make_imagenet,
    pack_devkit,
    save_jpeg,
    write_devkit,
    write_table,
)

pytestmark = pytest.mark.usefixtures("cache")

REAL = Path(os.environ.get("FRED_DATA", "no data"))
NORMALISATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SIDE = 8  # pixels


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGENET", raising=False)


def load(root: Path, name: str = "imagenet-imagewoof", **options: object) -> tuple[ImageData, ImageData]:
    return load_dataset(name, root, progress=False, **{"image_size": SIDE, **options})


def cropped(file: Path, side: int = SIDE) -> torch.Tensor:
    with Image.open(file) as image:
        square = transforms.CenterCrop(side)(transforms.Resize(side)(image.convert("RGB")))
    return torchvision.transforms.functional.pil_to_tensor(square)


# -- classes and their order ---------------------------------------------------------------------------------------


def test_subsets_have_ten_classes_each() -> None:
    keys = "a b c d e imagenette imagewoof fruits yellow cats birds geo food mammals marine"
    assert list(SUBSETS) == keys.split()
    for classes in SUBSETS.values():
        assert len(set(classes)) == len(set(classes.values())) == 10
        assert all(wnid[0] == "n" and wnid[1:].isdigit() and len(wnid) == 9 for wnid in classes)
    # A class has one name wherever it occurs.
    names = {(wnid, name) for classes in SUBSETS.values() for wnid, name in classes.items()}
    assert len(names) == len({wnid for wnid, _ in names})
    assert set(NAMES) <= set(DATASETS)
    assert all(statistics(name) == NORMALISATION for name in (*NAMES, "imagenet-meow"))


def test_imagenette_is_torchvisions() -> None:
    theirs = {wnid: names[0] for wnid, names in torchvision.datasets.Imagenette._WNID_TO_CLASS.items()}
    assert theirs == SUBSETS["imagenette"]


@pytest.mark.parametrize("layout", ["folders", "devkit", "archive", "table", "Kaggle", "inside Kaggle"])
def test_labels_follow_the_published_order(tmp_path: Path, layout: str) -> None:
    assert list(WOOF) != sorted(WOOF)
    root = make_imagenet(tmp_path, flat=layout != "folders")
    if layout == "archive":
        pack_devkit(root)
    elif layout not in ("folders", "devkit"):
        write_table(root)
    where = root
    if "Kaggle" in layout:  # the table lies beside ILSVRC/
        inner = root / "ILSVRC" / "Data" / "CLS-LOC"
        inner.mkdir(parents=True)
        for split in ("train", "val"):
            (root / split).rename(inner / split)
        where, root = (inner if layout == "inside Kaggle" else root), inner
    assert is_there("imagenet-imagewoof", where)
    train, test = load(where)
    assert train.class_names == test.class_names == tuple(WOOF.values())
    assert train.labels.tolist() == [label for label in range(10) for _ in range(TRAIN)]
    assert test.labels.tolist() == [label for label in range(10) for _ in range(VAL)]
    files = [root / "train" / wnid / f"{wnid}_{i}.JPEG" for wnid in WOOF for i in range(TRAIN)]
    assert torch.equal(train.images, torch.stack([cropped(file) for file in files]))
    numbers = [label + 1 + 11 * i for label in range(10) for i in range(VAL)]
    found = [next((root / "val").rglob(f"ILSVRC2012_val_{number:08d}.JPEG")) for number in numbers]
    assert torch.equal(test.images, torch.stack([cropped(file) for file in found]))
    for data in (train, test):  # the brightness is that of the class
        assert torch.equal((data.images.float().mean((1, 2, 3)) / 20 - 1).round().long(), data.labels)
        assert (data.mean, data.std) == NORMALISATION


@pytest.mark.parametrize(("synonym", "key"), SYNONYMS.items())
def test_synonyms_are_one_dataset(tmp_path: Path, cache: Path, synonym: str, key: str) -> None:
    root = make_imagenet(tmp_path, tuple(SUBSETS[key]))
    first, _ = load(root, f"imagenet-{synonym}")
    assert first.name == f"imagenet-{key}"
    again, _ = load(root, first.name)
    assert torch.equal(first.images, again.images)
    assert again.name == first.name
    assert len(list(cache.iterdir())) == 1


# -- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [SIDE, 32])  # 32: the files are smaller, and are enlarged
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("antialias", [True, False])
def test_images_are_resized_as_torchvision_does(tmp_path: Path, side: int, resize: str, antialias: bool) -> None:
    """Without antialiasing in the authors' order: to a tensor, normalise, resize, crop."""
    root = make_imagenet(tmp_path)
    train, _ = load(root, image_size=side, resize=resize, antialias=antialias)
    assert train.images.shape == (10 * TRAIN, 3, side, side)
    to = (side, side) if resize == "squash" else side
    normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*NORMALISATION)])
    scale = transforms.Compose([transforms.Resize(to, antialias=antialias), transforms.CenterCrop(side)])
    for i, wnid in enumerate(list(WOOF)[:3]):
        with Image.open(root / "train" / wnid / f"{wnid}_1.JPEG") as image:
            expected = normalise(scale(image)) if antialias else scale(normalise(image))
        result = train.batch(torch.tensor([TRAIN * i + 1]))[0]
        # Our pixels are whole numbers, which with antialiasing theirs are too.
        most = torch.tensor([0.0 if antialias else 0.5 / 255 + 1e-5]) / torch.tensor(NORMALISATION[1])
        assert ((result - expected).abs() <= most[:, None, None]).all()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_all_images_become_rgb(tmp_path: Path, mode: str) -> None:
    root = make_imagenet(tmp_path)
    for label, wnid in enumerate(WOOF):
        for i in range(TRAIN if mode == "L" else 1):
            save_jpeg(root / "train" / wnid / f"{wnid}_{i}.JPEG", label, i, mode=mode)
    for number, file in enumerate((root / "val").rglob("*.JPEG")):
        save_jpeg(file, 3, number, mode=mode)
    train, test = load(root)
    assert train.channels == test.channels == 3
    wnid = next(iter(WOOF))
    assert torch.equal(train.images[0], cropped(root / "train" / wnid / f"{wnid}_0.JPEG"))


def test_pixels_are_those_of_published_work_unless_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It ignores the EXIF orientation of some of ILSVRC's photographs, as ImageNet-C did; one line tells."""
    root = make_imagenet(tmp_path)
    file = root / "train" / next(iter(WOOF)) / f"{next(iter(WOOF))}_0.JPEG"
    exif = Image.Exif()
    exif[0x0112] = 8
    with Image.open(file) as image:
        image.save(file, exif=exif)
    stored, _ = load(root)
    assert torch.equal(stored.images[0], cropped(file))
    assert "of the 40 images of imagenet-imagewoof, 1 is not turned as the EXIF orientation says" in caplog.text
    shown, _ = load(root, decoding="shown")
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image)
    upright.save(root / "upright.png")
    assert torch.equal(shown.images[0], cropped(root / "upright.png"))
    assert not torch.equal(shown.images[0], stored.images[0])
    assert torch.equal(shown.images[1:], stored.images[1:])


def test_side_is_128_unless_asked_for(tmp_path: Path) -> None:
    root = make_imagenet(tmp_path)
    assert load_dataset("imagenet-imagewoof", root, progress=False)[0].im_size == (128, 128)
    assert DataOptions(dataset="imagenet-imagewoof", data_path=str(root)).image_size == 128
    assert DataOptions().image_size is None


# -- the cache -----------------------------------------------------------------------------------------------------


def test_every_resizing_and_subset_has_a_cache_of_its_own(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fruits = SUBSETS["fruits"]
    root = make_imagenet(tmp_path, tuple(dict.fromkeys([*WOOF, *fruits])))
    starts = [
        {"name": name, "image_size": side, "resize": resize, "antialias": antialias}
        for name in ("imagenet-imagewoof", "imagenet-fruits")
        for side in (6, 7)
        for resize in ("crop", "squash")
        for antialias in (True, False)
    ]
    images = [load(root, **start)[0].images for start in starts]
    assert len(list(cache.iterdir())) == len(starts) == 16
    assert len({each.numpy().tobytes() for each in images}) == 16
    forbid_decoding(monkeypatch)
    for start, before in zip(starts, images, strict=True):
        assert torch.equal(load(root, **start)[0].images, before)


def test_changed_class_is_read_again_and_no_other_is_looked_at(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_imagenet(tmp_path)
    load(root)
    (root / "train" / OTHER / "new.JPEG").write_bytes(b"no image")
    with monkeypatch.context() as patch:
        forbid_decoding(patch)
        load(root)
        wnid = list(WOOF)[4]
        os.utime(root / "train" / wnid / f"{wnid}_0.JPEG", (1, 1))
        with pytest.raises(AssertionError, match="an image was decoded"):
            load(root)
    load(root)
    assert len(list(cache.iterdir())) == 1


def test_mapped_images_are_those_in_memory(tmp_path: Path, cache: Path) -> None:
    root = make_imagenet(tmp_path)
    in_memory = load(root)
    next(cache.iterdir()).unlink()
    for _ in range(2):
        for mapped, expected in zip(load(root, map_above=100), in_memory, strict=True):
            assert torch.equal(mapped.batch(slice(None)), expected.batch(slice(None)))
            assert torch.equal(mapped.labels, expected.labels)


@pytest.mark.parametrize("map_above", [None, 100])
def test_truncated_image_is_named_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, map_above: int | None
) -> None:
    root = make_imagenet(tmp_path)
    whole = load(root)
    wnids = list(WOOF)
    file = root / "train" / wnids[2] / f"{wnids[2]}_1.JPEG"
    file.write_bytes(file.read_bytes()[:-60])
    with pytest.raises(InputError, match=f"^{file} cannot be read as an image.*give --skip_corrupt"):
        load(root, map_above=map_above)
    for _ in range(2):
        caplog.clear()
        train, test = load(root, map_above=map_above, skip_corrupt=True)
        assert "1 of the 40 images of imagenet-imagewoof cannot be read" in caplog.text
        assert str(file) in caplog.text
        kept = [i for i in range(10 * TRAIN) if i != 2 * TRAIN + 1]
        assert torch.equal(train.images, whole[0].images[kept])
        assert torch.equal(train.labels, whole[0].labels[kept])
        assert torch.equal(test.images, whole[1].images)
        monkeypatch.setattr(decode, "read_chunk", None)


# -- what is wrong is said -----------------------------------------------------------------------------------------

WNID = next(iter(WOOF))
LAST = 11 * (VAL - 1) + 1  # the number of that class's last validation image


def remove_images(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "there is no such folder"),
        (lambda root: shutil.rmtree(root / "train"), "it has no folder train/"),
        (lambda root: (root / "val").rename(root / "test"), "it has no folder val/"),
        (lambda root: shutil.rmtree(root / "train" / WNID), rf"train/ lacks the class folder {WNID} \(Australian terr"),
        (
            lambda root: shutil.rmtree(root / "val" / WNID),
            rf"val/ lacks the class folder {WNID} \(Australian terrier\)",
        ),
        (lambda root: remove_images(root / "train" / WNID), rf"train/{WNID} \(Australian terrier\) has no images"),
        (lambda root: remove_images(root / "val" / WNID), rf"val/{WNID} \(Australian terrier\) has no images"),
        (lambda root: [shutil.rmtree(root / "val" / wnid) for wnid in WOOF], "neither the class folders nor ILSVRC"),
    ],
)
def test_incomplete_class_folders_are_explained(tmp_path: Path, damage: Callable, words: str) -> None:
    root = make_imagenet(tmp_path / "tree")
    damage(root)
    explained(root, words)


def test_what_is_left_out_of_class_folders_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_imagenet(tmp_path)
    whole, _ = load(root)
    assert not caplog.messages
    folder = root / "train" / next(iter(WOOF))
    (folder / "._0.JPEG").write_bytes(b"AppleDouble")
    (folder / "more.tar").write_bytes(b"1")
    train, _ = load(root)
    assert torch.equal(train.images, whole.images)
    assert caplog.messages == [
        "2 entries of imagenet-imagewoof are not read as images: 1 .tar (more.tar), 1 hidden (._0.JPEG)"
    ]


def test_archive_of_a_class_that_is_still_to_be_unpacked_is_named(tmp_path: Path) -> None:
    root = make_imagenet(tmp_path)
    wnid = next(iter(WOOF))
    shutil.rmtree(root / "train" / wnid)
    (root / "train" / f"{wnid}.tar").write_bytes(b"1")
    explained(root, rf"train/ lacks the class folder {wnid} \(.*\), but has {wnid}.tar: unpack it there")


def explained(root: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load(root)
    told = str(caught.value)
    assert told.startswith(f"imagenet-imagewoof is not whole in {root}: ")
    for part in ("registration at https://image-net.org", "--data_path", "IMAGENET", "train/WNID/*.JPEG", DEVKIT):
        assert part in told
    assert "\n" not in told


def edit_devkit(root: Path, **changes: object) -> None:
    """Write the devkit of `make_imagenet` anew with other WordNet ids or another ground truth."""
    ids = {wnid: 3 * place + 1 for place, wnid in enumerate((*reversed(WOOF), OTHER))}
    truth = [int(line) for line in (root / DEVKIT / TRUTH).read_text().split()]
    write_devkit(root / DEVKIT, changes.get("ids", ids), changes.get("truth", truth))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root / DEVKIT), f"{DEVKIT} or {SOLUTION}, which say what its images show, are not"),
        (lambda root: (root / DEVKIT / META).unlink(), f"{DEVKIT}/ has no data/meta.mat"),
        (lambda root: (root / DEVKIT / TRUTH).unlink(), f"{DEVKIT}/ has no data/ILSVRC2012_validation_ground"),
        (lambda root: (root / DEVKIT / META).write_bytes(b"not MATLAB's"), "meta.mat in .* is truncated or damaged"),
        (lambda root: (root / DEVKIT / META).write_bytes((root / DEVKIT / META).read_bytes()[:300]), "is truncated"),
        (lambda root: savemat(root / DEVKIT / META, {"synsets": np.zeros(3)}), "meta.mat in .* has no table"),
        (lambda root: edit_devkit(root, ids={"dog": 1}), "meta.mat in .* has 'dog' where a WordNet id should be"),
        (lambda root: edit_devkit(root, ids={WNID: "1"}), "has a synset without a number or a WordNet id"),
        (lambda root: edit_devkit(root, ids={WNID: 1001}), "gives several classes one WordNet id, or has none"),
        (lambda root: edit_devkit(root, truth=[]), "ground_truth.txt in .* is empty"),
        (lambda root: edit_devkit(root, truth=[1, 1001]), "ground_truth.txt in .* has 1001, where classes are 1 to"),
        (lambda root: (root / DEVKIT / TRUTH).write_text("1\nn02096294\n"), "is not a list of numbers"),
        (lambda root: edit_devkit(root, truth=[31] * 22), rf"the list of classes names no .* of {WNID} \(Austr"),
        (lambda root: edit_devkit(root, truth=[1] * 5), "val/ has ILSVRC2012_val_00000022.JPEG, but .* only 5 images"),
        (lambda root: (root / f"val/ILSVRC2012_val_{LAST:08d}.JPEG").unlink(),
         rf"val/ lacks ILSVRC2012_val_{LAST:08d}.JPEG, of {WNID} \(Austr"),
        (lambda root: [(root / f"val/ILSVRC2012_val_{each:08d}.JPEG").unlink() for each in (1, LAST)],
         rf"val/ lacks ILSVRC2012_val_00000001.JPEG and 1 more, of {WNID}"),
        (lambda root: (a := pack_devkit(root)).write_bytes(a.read_bytes()[:-99]), "tar.gz is truncated or damaged"),
        (lambda root: (root / DEVKIT / META).unlink() or pack_devkit(root), "tar.gz is truncated or damaged"),
    ],
)  # fmt: skip
def test_damaged_devkit_is_explained(tmp_path: Path, damage: Callable, words: str) -> None:
    root = make_imagenet(tmp_path, flat=True)
    damage(root)
    explained(root, words)


COLUMNS = "ImageId,PredictionString\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (COLUMNS, f"{SOLUTION} is empty"),
        ("", f"{SOLUTION} is empty"),
        ("\xff\xfe", f"{SOLUTION} is truncated or damaged: it is a table of ImageId and PredictionString"),
        ("ImageId,Class\nILSVRC2012_val_00000001,n02096294\n", f"{SOLUTION} is truncated or damaged"),
        (f"{COLUMNS}ILSVRC2012_val_00000001\n", f"{SOLUTION} is truncated or damaged"),
        (f"{COLUMNS}ILSVRC2012_val_00000001,\n", f"{SOLUTION} is truncated or damaged"),
        (f"{COLUMNS}ILSVRC2012_val_1,n02096294 1 2 3 4\n", "has 'ILSVRC2012_val_1' with 'n02096294', where"),
        (f"{COLUMNS}ILSVRC2012_val_00000001,dog\n", "has 'ILSVRC2012_val_00000001' with 'dog', where"),
        (f"{COLUMNS}ILSVRC2012_val_00000022,n02096294 1 2 3 4\n", "names no validation image of n02093754"),
        (f"{COLUMNS}ILSVRC2012_val_00000001,n02096294 1 2 3 4\n", "val/ has .*_00000022.JPEG, but .* only 1 images"),
    ],
)
def test_damaged_table_is_explained(tmp_path: Path, content: str, words: str) -> None:
    root = make_imagenet(tmp_path, flat=True)
    write_table(root)
    (root / SOLUTION).write_text(content, encoding="latin-1")
    explained(root, words)


def test_a_split_that_is_not_ilsvrcs_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """That of fast.ai's Imagenette has the names of training images."""
    root = make_imagenet(tmp_path)
    load(root)
    assert "a split of its own" not in caplog.text
    save_jpeg(root / "val" / WNID / f"{WNID}_12.JPEG", 1, 1)
    load(root)
    told = f"1 of the 21 test images of imagenet-imagewoof, such as {WNID}_12.JPEG, are training images of ILSVRC"
    assert told in caplog.text


def test_images_are_never_downloaded(tmp_path: Path, offline: None) -> None:
    with pytest.raises(InputError, match="there is no such folder; ImageNet is given out after registration"):
        load_dataset("imagenet-a", tmp_path / "nowhere")


# -- options -------------------------------------------------------------------------------------------------------


def test_two_part_names_are_resolved() -> None:
    assert resolve("ImageNet", "imagenette") == ("imagenet-imagenette", None)
    assert resolve("ImageNet", "imagesquawk") == ("imagenet-birds", None)
    assert resolve("CIFAR10", "none") == ("CIFAR10", None)  # as the authors' scripts say
    options = parse_buffer(DataOptions, "TM", ["--dataset", "ImageNet", "--subset", "imagemeow"])
    assert (options.dataset, options.subset) == ("imagenet-cats", None)
    evaluated = parse_plain(EvaluateOptions, ["--dataset", "ImageNet", "--subset", "imagemeow", "--res", "64"])
    assert (evaluated.dataset, evaluated.subset, evaluated.image_size) == ("imagenet-cats", None, 64)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset", "CIFAR10", "--subset", "imagenette"], "--subset imagenette is for --dataset ImageNet"),
        (["--dataset", "imagenet-a", "--subset", "b"], "--subset b is for --dataset ImageNet"),
        (["--dataset", "ImageNet"], "ImageNet is distilled by subsets: give --subset with one of a, b"),
        (
            ["--dataset", "ImageNet", "--subset", "dogs"],
            "ImageNet has no subset 'dogs': give --subset with one of a, b",
        ),
        (["--dataset", "imagenet-dogs"], "there is no dataset 'imagenet-dogs'"),
        (["--dataset", "MNIST", "--resize", "squash"], "--resize squash says how .* those of MNIST are not: leave it"),
        (["--dataset", "Tiny", "--no_antialias"], "--no_antialias says how .* those of Tiny are not: leave it out"),
        (["--dataset", "digits", "--skip_corrupt"], "--skip_corrupt leaves out .* digits has none: leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        parse_plain(DataOptions, words).load()
    result = call("DM/distill.py", *words, "--msz_per_channel", 4, "--lr_freq", 1, "--save_path", tmp_path)
    assert_refused(result, told.split(" .*")[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--res", "--image_size", "--image-size"])
def test_the_side_has_the_authors_flag_too(flag: str) -> None:
    from DM.distill import Options

    given = ["--dataset", "imagenet-a", "--msz_per_channel", "8", "--lr_freq", "1"]
    options, sources = parse(Options, "DM", [*given, flag, "256"])
    assert (options.image_size, sources["image_size"]) == (256, "flag")
    options, sources = parse(Options, "DM", given)
    assert (options.image_size, sources["image_size"]) == (128, "default")
    options, _ = parse(Options, "DM", ["--dataset", "digits"])
    assert options.image_size is None


def test_variable_names_the_folder_unless_a_flag_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_imagenet(tmp_path / "imagenet")
    monkeypatch.setenv("IMAGENET", str(root))
    monkeypatch.chdir(tmp_path)
    options = ["--dataset", "imagenet-imagewoof", "--res", str(SIDE)]
    assert len(parse_plain(DataOptions, options).load()[0]) == 10 * TRAIN
    with pytest.raises(InputError, match=rf"is not whole in {tmp_path / 'data'}: there is no such folder"):
        parse_plain(DataOptions, [*options, "--data_path", "data"]).load()
    monkeypatch.delenv("IMAGENET")
    with pytest.raises(InputError, match=rf"is not whole in {tmp_path / 'data'}: there is no such folder"):
        parse_plain(DataOptions, options).load()


def test_a_synthetic_set_says_how_its_images_were_resized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_imagenet(tmp_path / "imagenet")
    monkeypatch.setenv("IMAGENET", str(root))
    flags = ["--dataset", "ImageNet", "--subset", "imagewoof", "--res", 16, "--resize", "squash", "--no_antialias"]
    flags += ["--model", "ConvNetD1W32", "--Iteration", 0, "--num_eval", 1, "--epoch_eval_train", 0, "--device", "cpu"]
    flags += ["--msz_per_channel", 256, "--lr_freq", 1, "--save_path", tmp_path / "runs"]
    result = call("DM/distill.py", *flags, "--eval_mode", "SS")
    assert result.code == 0, result.err
    (file,) = tmp_path.glob("runs/DM/imagenet-imagewoof/ipc1/*/synset.safetensors")
    asked = {}

    def remember(*names: object, **options: object) -> tuple[ImageData, ImageData]:
        asked.update(options)
        return load_dataset(*names, **{**options, "progress": False})

    monkeypatch.setattr(evaluation_setup, "load_dataset", remember)
    evaluate = ["--synset", str(file), "--num_eval", "1", "--device", "cpu"]
    shown = evaluate_file(parse_plain(EvaluateOptions, evaluate), "DM", {})
    assert {key: asked[key] for key in ("image_size", "resize", "antialias", "skip_corrupt")} == {
        "image_size": 16, "resize": "squash", "antialias": False, "skip_corrupt": False,
    }  # fmt: skip
    assert shown["stored"]["accuracies"] is not None
    flagged = parse_plain(EvaluateOptions, [*evaluate, "--resize", "crop", "--antialias", "--skip_corrupt"])
    evaluate_file(flagged, "DM", {})
    assert (asked["resize"], asked["antialias"], asked["skip_corrupt"]) == ("crop", True, True)
    # Files that say nothing were made before there was a choice.
    original = evaluation_setup.open_synset

    def older(*names: object, **options: object) -> tuple:
        synset, metadata = original(*names, **options)
        return synset, {key: value for key, value in metadata.items() if key not in ("resize", "antialias", "content")}

    monkeypatch.setattr(evaluation_setup, "open_synset", older)
    evaluate_file(parse_plain(EvaluateOptions, evaluate), "DM", {})
    assert (asked["resize"], asked["antialias"]) == ("crop", True)
    assert_refused(call("DM/evaluate.py", *evaluate, "--subset", "a"), "--subset a is for --dataset ImageNet")
    assert json.loads((file.parent / "config.json").read_text())["options"]["image_size"]["source"] == "flag"


# -- real images ---------------------------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.skipif(not (REAL / "imagenette128").is_dir(), reason="FRED_DATA has no imagenette128")
def test_real_imagenette() -> None:
    train, test = load_dataset("imagenet-imagenette", REAL / "imagenette128", image_size=64, progress=False)
    assert (train.images.shape, test.images.shape) == ((9469, 3, 64, 64), (3925, 3, 64, 64))
    assert [len(each) for each in train.class_indices] == [963, 955, 993, 858, 941, 956, 961, 931, 951, 960]
    assert train.class_names[:3] == ("tench", "English springer", "cassette player")
    values = train.batch(torch.arange(0, 9469, 9))
    assert abs(values.mean()) < 0.15
    assert abs(values.std() - 1.2) < 0.15
