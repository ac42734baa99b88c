"""Drifted test sets are read right, and networks trained once are tested on all of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.datasets import ImageData
from common.images.pixels import Resize
from common.images.zca import whitened
from common.robustness.conditions import CIFAR10_CLASSES, CORRUPTIONS, LEVELS, Condition, TargetName
from common.robustness.figures import mean_corruption_error, summarise
from common.robustness.targets import open_target
from common.system.errors import InputError
from common.training import pool
from tests.command_line import assert_refused, call
from tests.conftest import ROOT
from tests.imagenet_sets import WOOF, make_imagenet

pytestmark = pytest.mark.usefixtures("cache")

SCRIPT = "corruption-exp/evaluate.py"
SIDE = 8  # pixels
COUNT = 20  # images a level
TWO = ("gaussian_noise", "contrast")
STATISTICS = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def clean_images(names: tuple[str, ...] = CIFAR10_CLASSES, name: str = "CIFAR10", side: int = SIDE) -> ImageData:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % len(names)
    images = torch.randint(0, 256, (COUNT, 3, side, side), dtype=torch.uint8, generator=draws)
    return ImageData(images, labels, *STATISTICS, names, name)


def make_cifar10c(root: Path, kinds: tuple[str, ...] = TWO, labels: int | None = 5 * COUNT) -> Path:
    """Images whose first pixel says which row, and whose second which corruption they are."""
    folder = root / "CIFAR10-C"
    folder.mkdir(parents=True)
    for number, kind in enumerate(kinds):
        rows = np.random.default_rng(number).integers(0, 256, (5 * COUNT, SIDE, SIDE, 3)).astype(np.uint8)
        rows[:, 0, 0] = np.arange(5 * COUNT)[:, None]
        rows[:, 0, 1] = number
        np.save(folder / f"{kind}.npy", rows)
    if labels is not None:
        np.save(folder / "labels.npy", np.tile(9 - np.arange(COUNT) % 10, 5)[:labels])
    return folder


def opened(root: Path, name: TargetName = "CIFAR10-C", kinds: tuple[str, ...] = TWO, **how):
    return open_target(name, root, how.pop("clean", clean_images()), kinds, **how)


# -- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [COUNT, 5 * COUNT])
def test_a_level_is_its_rows(tmp_path, labels):
    make_cifar10c(tmp_path, labels=labels)
    target = opened(tmp_path)
    assert list(target.parts) == [Condition(kind, level) for kind in TWO for level in LEVELS]
    for (kind, level), part in target.parts.items():
        data = part.read()
        assert part.size == len(data) == COUNT
        assert data.images.shape == (COUNT, 3, SIDE, SIDE)
        assert data.images[:, 2, 0, 0].tolist() == list(range((level - 1) * COUNT, level * COUNT))
        assert (data.images[:, 0, 0, 1] == TWO.index(kind)).all()
        assert data.labels.tolist() == [9 - i % 10 for i in range(COUNT)]
        assert (data.mean, data.std) == STATISTICS


def test_one_level_is_read_at_a_time(tmp_path, monkeypatch):
    make_cifar10c(tmp_path)
    modes = []
    load = np.load
    monkeypatch.setattr(
        np, "load", lambda file, **how: (modes.append((how["mmap_mode"], how["allow_pickle"])), load(file, **how))[1]
    )
    for part in opened(tmp_path, levels=(3,)).parts.values():
        part.read()
    assert set(modes) == {("r", False)}


def test_labels_of_the_test_images_stand_in(tmp_path):
    make_cifar10c(tmp_path, labels=None)
    assert opened(tmp_path).parts[Condition("contrast", 2)].read().labels.tolist() == [i % 10 for i in range(COUNT)]
    with pytest.raises(InputError, match=r"no labels\.npy, and folder:x"):
        opened(tmp_path, clean=clean_images(name="folder:x"))


def test_an_array_of_one_level_is_not_cut_into_five(tmp_path):
    folder = make_cifar10c(tmp_path)
    for kind in TWO:
        np.save(folder / f"{kind}.npy", np.load(folder / f"{kind}.npy")[-COUNT:])
    np.save(folder / "labels.npy", np.load(folder / "labels.npy")[-COUNT:])
    with pytest.raises(InputError, match=r"gaussian_noise\.npy does not hold 5 levels of the same 4 images"):
        opened(tmp_path, levels=(5,))
    (folder / "labels.npy").unlink()
    with pytest.raises(InputError, match=r"4 images per level, but the test images of CIFAR10 20 labels"):
        opened(tmp_path, levels=(5,))


def test_the_folder_may_be_named_as_the_archive_unpacks(tmp_path):
    make_cifar10c(tmp_path).rename(tmp_path / "CIFAR-10-C")
    assert len(opened(tmp_path).parts) == 10


def make_cifar101(folder: Path, version: str, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"cifar10.1_{version}_data.npy", np.full((count, SIDE, SIDE, 3), count, np.uint8))
    np.save(folder / f"cifar10.1_{version}_labels.npy", (np.arange(count) % 10).astype(np.int32))


@pytest.mark.parametrize("inner", ["CIFAR10.1/datasets", "CIFAR10.1"])
def test_cifar101(tmp_path, inner):
    for version, count in (("v4", 21), ("v6", 20)):
        make_cifar101(tmp_path / inner, version, count)
    target = opened(tmp_path, "CIFAR10.1", ("v4", "v6"))
    assert list(target.parts) == [("v4", None), ("v6", None)]
    for part, count in zip(target.parts.values(), (21, 20), strict=True):
        data = part.read()
        assert (data.images == count).all()
        assert data.labels.tolist() == [i % 10 for i in range(count)]


def make_imagenetc(root: Path, kinds: tuple[str, ...] = TWO, group: str = "") -> Path:
    """Images of one brightness each, which says class and level; a class that is none of the subset's is broken."""
    for kind in kinds:
        for level in LEVELS:
            place = root / "imagenet-c" / group / kind / str(level)
            for label, wnid in enumerate((*WOOF, "n01440764")):
                (place / wnid).mkdir(parents=True)
                file = place / wnid / "ILSVRC2012_val_00000001.JPEG"
                if wnid in WOOF:
                    Image.new("RGB", (16, 16), (20 * label + level,) * 3).save(file, quality=95)
                else:
                    file.write_bytes(b"no image")
    return root / "imagenet-c"


@pytest.mark.parametrize("group", ["", "noise"])
def test_imagenetc_has_the_published_labels(tmp_path, group):
    make_imagenetc(tmp_path, TWO[:1], group)
    clean = clean_images(tuple(WOOF.values()), "imagenet-imagewoof")
    target = opened(tmp_path, "ImageNet-C", TWO[:1], clean=clean, resize=Resize(SIDE, "squash"), workers=1)
    for (_, level), part in target.parts.items():
        data = part.read()
        assert data.images.shape == (10, 3, SIDE, SIDE)
        assert data.labels.tolist() == list(range(10))
        brightness = data.images.float().mean(dim=(1, 2, 3))
        assert (brightness - torch.tensor([20.0 * label + level for label in range(10)])).abs().max() < 2
    assert list(WOOF) != sorted(WOOF)


def test_imagenetc_of_a_folder_of_class_folders(tmp_path):
    make_imagenetc(tmp_path, TWO[:1])
    clean = clean_images(tuple(sorted(WOOF)), "folder:x")
    target = opened(tmp_path, "ImageNet-C", TWO[:1], clean=clean, levels=(1,), resize=Resize(SIDE))
    brightness = target.parts[Condition(TWO[0], 1)].read().images.float().mean(dim=(1, 2, 3))
    order = [list(WOOF).index(wnid) for wnid in sorted(WOOF)]
    assert (brightness - torch.tensor([20.0 * place + 1 for place in order])).abs().max() < 2


def test_a_damaged_image_is_named_or_left_out(tmp_path, caplog):
    tree = make_imagenetc(tmp_path, TWO[:1])
    broken = tree / TWO[0] / "2" / next(iter(WOOF)) / "a.JPEG"
    broken.write_bytes(b"no image")
    clean = clean_images(tuple(WOOF.values()), "imagenet-imagewoof")
    how = {"clean": clean, "levels": (2,), "resize": Resize(SIDE)}
    with pytest.raises(InputError, match=r"a\.JPEG cannot be read"):
        opened(tmp_path, "ImageNet-C", TWO[:1], **how).parts[Condition(TWO[0], 2)].read()
    data = opened(tmp_path, "ImageNet-C", TWO[:1], skip_corrupt=True, **how).parts[Condition(TWO[0], 2)].read()
    assert data.labels.tolist() == list(range(10))
    assert "1 of the 11 images" in caplog.text


def test_what_is_left_out_and_shown_otherwise_is_told(tmp_path, caplog):
    tree = make_imagenetc(tmp_path, TWO[:1])
    folder = tree / TWO[0] / "2" / next(iter(WOOF))
    (folder / "._ILSVRC2012_val_00000001.JPEG").write_bytes(b"AppleDouble")
    (file,) = [each for each in folder.iterdir() if not each.name.startswith(".")]
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    image.save(file, exif=exif)
    clean = clean_images(tuple(WOOF.values()), "imagenet-imagewoof", side=16)
    how = {"clean": clean, "levels": (2,)}
    read = {
        decoding: opened(tmp_path, "ImageNet-C", TWO[:1], decoding=decoding, **how).parts[Condition(TWO[0], 2)].read()
        for decoding in ("stored", "shown")
    }
    assert torch.equal(read["shown"].images[0], read["stored"].images[0].rot90(-1, (1, 2)))
    told = [line for line in caplog.messages if "hidden" in line or "turned" in line]
    left_out = "1 entry of ImageNet-C is not read as images: 1 hidden (._ILSVRC2012_val_00000001.JPEG)"
    assert told[0] == told[2] == left_out
    assert told[1].startswith(f"of the 10 images of {TWO[0]} 2, 1 is not turned as the EXIF orientation says")
    assert told[3].startswith(f"of the 10 images of {TWO[0]} 2, 1 is turned as the EXIF orientation says")


def test_whitened_sources_get_whitened_images(tmp_path):
    make_cifar10c(tmp_path)
    raw = clean_images()
    _, clean = whitened(raw, raw, progress=False)
    data = opened(tmp_path, clean=clean).parts[Condition("contrast", 4)].read()
    expected = opened(tmp_path).parts[Condition("contrast", 4)].read().images
    assert torch.allclose(data.batch(torch.arange(COUNT)), clean.whitening.apply(expected), atol=1e-5)


# -- figures -------------------------------------------------------------------------------------------------------


def test_mce_by_hand():
    """CE_c is a ratio of sums over levels, not a mean of ratios; mCE the mean over corruptions."""
    errors = {
        Condition("fog", 1): [0.2, 0.4],
        Condition("fog", 5): [0.4, 0.8],
        Condition("snow", 1): [0.3, 0.3],
        Condition("snow", 5): [0.3, 0.5],
    }
    baseline = dict(zip(errors, (0.1, 0.9, 0.5, 0.5), strict=True))
    found = mean_corruption_error(errors, baseline)
    assert found["networks"] == pytest.approx([(0.6 / 1.0 + 0.6 / 1.0) / 2, (1.2 / 1.0 + 0.8 / 1.0) / 2])
    assert found["mean"] == pytest.approx(0.8)
    assert found["std"] == pytest.approx(0.2)
    assert found["by_kind"] == pytest.approx({"fog": 0.9, "snow": 0.7})
    with pytest.raises(InputError, match="no error under snow"):
        mean_corruption_error(errors, baseline | dict.fromkeys([Condition("snow", 1), Condition("snow", 5)], 0.0))


def test_the_figure_is_the_plain_mean_and_a_baseline_of_itself_gives_one():
    accuracies = {Condition("fog", 5): [0.1, 0.3], Condition("snow", 5): [0.5, 0.5]}
    errors = {condition: 1 - sum(each) / 2 for condition, each in accuracies.items()}
    found = summarise([0.5, 0.7], accuracies, errors)
    assert found["mean"]["accuracies"] == pytest.approx([0.3, 0.4])
    assert found["mean"]["mean"] == pytest.approx(0.35)
    assert found["relative_drop"] == pytest.approx(1 - 0.35 / 0.6)
    assert found["mce"]["mean"] == pytest.approx(1)
    assert summarise([0.0], {Condition("fog", 1): [0.0]})["relative_drop"] is None


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of pictures with CIFAR-10's classes, a synthetic set of them, and a drifted archive."""
    root = tmp_path_factory.mktemp("source")
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(CIFAR10_CLASSES):
            (root / "images" / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = draws.integers(0, 60, (SIDE, SIDE, 3)) + 19 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / split / name / f"{index}.png")
    folder = make_cifar10c(root, CORRUPTIONS)
    for file in folder.glob("*.npy"):  # brightness tells the class here, too
        if file.stem != "labels":
            rows = np.load(file)
            labels = np.load(folder / "labels.npy")
            np.save(file, (rows // 5 + 19 * labels[:, None, None, None]).astype(np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRED_CACHE", str(root / "cache"))
        made = call(
            "DM/distill.py", "--dataset", f"folder:{root / 'images'}", "--msz_per_channel", 32, "--lr_freq", 1,
            "--validation_share", 0,
            "--model", "ConvNetD1W32", "--batch_real", 2, "--Iteration", 0, "--num_eval", 1, "--epoch_eval_train", 8,
            "--lr_net", 0.05, "--device", "cpu", "--save_path", root / "runs", "--name", "run", "--export",
        )  # fmt: skip
    assert made.code == 0, made.err
    (run,) = (root / "runs").glob("DM/*/ipc1/run")
    return root, run / "synset.safetensors"


def robustness(source, *flags, synset=True):
    root, file = source
    named = ["--synset", file] if synset else []
    return call(SCRIPT, *named, "--target_path", root, "--num_eval", 2, "--device", "cpu", *flags)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_networks_are_trained_once_and_tested_on_everything(source, tmp_path, monkeypatch):
    trained, train = [], pool.train
    monkeypatch.setattr(pool, "train", lambda *words, **named: (trained.append(1), train(*words, **named))[1])
    first = robustness(source, "--output", tmp_path / "first")
    assert first.code == 0, first.err
    assert len(trained) == 2
    found = results(tmp_path / "first")
    assert [(each["kind"], each["level"]) for each in found["conditions"]] == [
        (kind, level) for kind in CORRUPTIONS for level in LEVELS
    ]
    assert set(found["images"].values()) == {COUNT}
    accuracies = np.array([each["accuracies"] for each in found["conditions"]])
    assert found["mean"]["accuracies"] == pytest.approx(accuracies.mean(axis=0).tolist())
    assert found["mean"]["mean"] > 0.2  # brightness tells the class
    for kind in (*CORRUPTIONS, "clean", "mean", "drop"):
        assert any(line.startswith(kind) for line in first.out.splitlines()), kind
    assert f"{100 * found['mean']['mean']:.2f}" in first.out
    rows = (tmp_path / "first" / "results.csv").read_text().splitlines()
    assert rows[0] == "kind,level,network,number,accuracy"
    assert len(rows) == 1 + 2 * (1 + 75)
    with Image.open(tmp_path / "first" / "heatmap.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50

    # On clean images they are the networks of any evaluation, and what is tested together changes nothing.
    alone = call(
        "DM/evaluate.py", "--synset", source[1], "--num_eval", 2, "--device", "cpu", "--output", tmp_path / "o"
    )
    assert alone.code == 0
    assert json.loads((tmp_path / "o").read_text())["accuracies"] == found["clean"]["accuracies"]
    flags = ["--level", 5, "--corruptions", "contrast", "fog", "--output", tmp_path / "second"]
    assert robustness(source, *flags, "--relative_to", tmp_path / "first" / "results.json").code == 0
    second = results(tmp_path / "second")
    of_first = {(each["kind"], each["level"]): each for each in found["conditions"]}
    assert second["conditions"] == [of_first["contrast", 5], of_first["fog", 5]]
    assert second["mce"]["mean"] == pytest.approx(1)


def test_half_statistics_are_of_the_drifted_images_alone(source, tmp_path, monkeypatch):
    from common.robustness import command as module

    seen: dict[str, list[torch.Tensor]] = {}
    accuracy = module.accuracy
    for stats in ("train", "half"):
        seen[stats] = []
        monkeypatch.setattr(
            module,
            "accuracy",
            lambda network, data, *rest, of=stats: (seen[of].append(data), accuracy(network, data, *rest))[1],
        )
        flags = ["--level", 1, "--corruptions", "fog", "--num_eval", 1, "--output", tmp_path / stats]
        assert robustness(source, *flags, "--target_stats", stats).code == 0
    (train,), (half,) = seen["train"], seen["half"]
    assert torch.equal(train.images, half.images)
    indices = torch.arange(COUNT)
    assert torch.equal(half.batch(indices), (half.images.float() / 255 - 0.5) / 0.5)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (train.mean, train.std))
    assert torch.allclose(half.batch(indices), (train.batch(indices) * std + mean - 0.5) / 0.5, atol=1e-5)
    assert results(tmp_path / "train")["clean"] == results(tmp_path / "half")["clean"]
    refused = robustness(source, "--level", 1, "--corruptions", "fog", "--relative_to", tmp_path / "half/results.json")
    assert_refused(refused, "--target_stats half, this is CIFAR10-C with train")


def test_baselines_and_cifar101(source, tmp_path):
    root, _ = source
    make_cifar101(tmp_path / "CIFAR10.1" / "datasets", "v6", 20)
    flags = [
        "--dataset", f"folder:{root / 'images'}", "--model", "ConvNetD1W32", "--epoch_eval_train", 1, "--num_eval", 1,
        "--target_dataset", "CIFAR10.1", "--target_path", tmp_path, "--output", tmp_path / "out",
    ]  # fmt: skip
    result = robustness(source, "--baseline", "random", "--stored_as", "png", "--ipc", 2, *flags, synset=False)
    assert result.code == 0, result.err
    storage = results(tmp_path / "out")["storage"]
    assert all(8 * each <= storage["budget_bits"] for each in storage["bytes"])
    assert "as PNG" in result.out
    assert [(each["kind"], each["level"]) for each in results(tmp_path / "out")["conditions"]] == [("v6", None)]
    assert (tmp_path / "out" / "heatmap.png").is_file()


def test_the_authors_names(source, tmp_path):
    """FreD/<dataset>/FreD_ipc<ipc>#images_best.pt, or the pair itself; the file says neither network nor protocol."""
    root, file = source
    dataset = f"folder:{root / 'images'}"
    flags = [
        "--dataset", dataset, "--model", "ConvNetD1W32", "--epoch_eval_train", 8, "--lr_net", 0.05, "--level", 1,
        "--corruptions", "fog",
    ]  # fmt: skip
    pair = file.parent / "images_best.pt"
    ours, theirs = (
        robustness(source, *named, *flags, "--output", tmp_path / where, synset=False)
        for where, named in (("ours", ["--synset", file]), ("theirs", ["--synset", pair]))
    )
    assert (ours.code, theirs.code) == (0, 0), theirs.err
    assert results(tmp_path / "ours")["clean"] == results(tmp_path / "theirs")["clean"]
    missing = call(SCRIPT, "--synset_path", tmp_path / "sets", "--ipc", 2)
    assert_refused(missing, "FreD/CIFAR10/FreD_ipc2#images_best.pt", "--synset FILE")
    subset = call(SCRIPT, "--synset_path", tmp_path / "sets", "--source_dataset", "ImageNet", "--subset", "imagemeow")
    assert_refused(subset, "FreD/ImageNet/imagemeow/FreD_ipc1#images_best.pt")


def test_imagenetc_by_the_authors_names(tmp_path):
    """Their ImageNet sets, which their own script cannot test: squashed images, classes in the published order."""
    make_imagenet(tmp_path / "data")
    make_imagenetc(tmp_path / "data", TWO)
    place = tmp_path / "sets" / "FreD" / "ImageNet" / "imagewoof"
    place.mkdir(parents=True)
    labels = torch.arange(10)
    images = (20 * labels.view(-1, 1, 1, 1) / 255 - 0.45) / 0.225
    torch.save(images.expand(-1, 3, SIDE, SIDE).clone(), place / "FreD_ipc1#images_best.pt")
    torch.save(labels, place / "FreD_ipc1#labels_best.pt")
    result = call(
        SCRIPT, "--synset_path", tmp_path / "sets", "--source_dataset", "ImageNet", "--subset", "imagewoof",
        "--data_path", tmp_path / "data", "--corruptions", *TWO, "--model", "ConvNetD1W32NN", "--dsa_strategy", "none",
        "--epoch_eval_train", 60, "--lr_net", 0.05, "--num_eval", 1, "--device", "cpu", "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    found = results(tmp_path / "out")
    assert found["target"] == "ImageNet-C"
    assert set(found["images"].values()) == {10}
    assert found["mean"]["mean"] > 0.5  # brightness tells the class: another order would give a tenth


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--level", 0], ["--level 0 is none of 1, 2, 3, 4, 5 or all"]),
        (["--level", 6], ["--level 6"]),
        (["--level", "high"], ["--level high"]),
        (["--corruptions", "fogg"], ["CIFAR10-C has no 'fogg'", "did you mean fog?"]),
        (["--versions", "v4"], ["--versions is for CIFAR10.1"]),
        (["--target_dataset", "CIFAR10.1"], ["CIFAR10.1 is not in", "https://github.com/modestyachts/CIFAR-10.1"]),
        (["--target_dataset", "CIFAR10.1", "--corruptions", "fog"], ["CIFAR10.1 has --versions"]),
        (["--target_dataset", "ImageNet-C"], ["ImageNet-C is not in", "https://zenodo.org/records/2235448"]),
        (["--target_path", "nowhere"], ["CIFAR10-C is not in nowhere", "https://zenodo.org/records/2535967"]),
        (["--relative_to", "nothing.json"], ["nothing.json cannot be read"]),
        (["--ipc", 1], ["--ipc, --recipe and --cifar100_stats are for baselines"]),
        (["--baseline", "random"], ["either --synset FILE or --baseline"]),
        (["--stored_as", "png"], ["give it with --baseline"]),
        (["--num_eval", 0], ["--num_eval 0 is too small"]),
        (["--output", ROOT / "README.md"], ["README.md/results.json: a file is in the place of its"]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_bad_values_are_refused_in_a_sentence(source, flags, parts):
    assert_refused(robustness(source, *flags), *parts)


def test_a_baseline_is_not_overwritten_by_what_is_compared_with_it(source, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    result = robustness(source, "--output", tmp_path, "--relative_to", tmp_path / "results.json")
    assert_refused(result, f"over {tmp_path}/results.json, which is read")


def spoil(what: str, folder: Path) -> None:
    """Something that is wrong with an archive."""
    fog = folder / "fog.npy"
    if what == "missing":
        fog.unlink()
    elif what == "truncated":
        fog.write_bytes(fog.read_bytes()[:1000])
    elif what == "pickle":
        np.save(fog, np.array([{}], dtype=object))
    elif what == "archive":
        with fog.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    elif what == "text":
        fog.write_text("no array")
    elif what == "float":
        np.save(fog, np.load(fog).astype(np.float32))
    elif what == "size":
        np.save(fog, np.zeros((5 * COUNT, SIDE, SIDE + 1, 3), np.uint8))
    elif what == "rows":
        np.save(fog, np.load(fog)[:-1])
    elif what == "few labels":
        np.save(folder / "labels.npy", np.zeros(7, np.int64))
    elif what == "label 10":
        np.save(folder / "labels.npy", np.full(COUNT, 10))


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("missing", "there is no fog.npy"),
        ("truncated", "fog.npy is truncated, damaged or no array"),
        ("pickle", "fog.npy is truncated, damaged or no array"),
        ("archive", "fog.npy is an archive"),
        ("text", "fog.npy is truncated, damaged or no array"),
        ("float", "fog.npy holds float32"),
        ("size", f"[{5 * COUNT}, {SIDE}, {SIDE + 1}, 3], not uint8 [N, {SIDE}, {SIDE}, 3]"),
        ("rows", "99 rows, which are not 5 levels"),
        ("few labels", "labels.npy 7 labels"),
        ("label 10", "labels from 10 to 10"),
    ],
)
def test_an_archive_that_is_not_whole_is_refused_before_the_training(source, tmp_path, monkeypatch, what, part):
    shutil.copytree(source[0] / "CIFAR10-C", tmp_path / "CIFAR10-C")
    spoil(what, tmp_path / "CIFAR10-C")
    monkeypatch.setattr(pool, "train", lambda *_: pytest.fail("trained"))
    result = robustness(source, "--target_path", tmp_path)
    assert_refused(result, "CIFAR10-C is not whole in", part, "https://zenodo.org/records/2535967")


def test_other_classes_are_refused(tmp_path):
    make_cifar10c(tmp_path)
    with pytest.raises(InputError, match="labelled in this order"):
        opened(tmp_path, clean=clean_images(CIFAR10_CLASSES[::-1]))
    (tmp_path / "imagenet-c").mkdir()
    with pytest.raises(InputError, match="ImageNet-C has the classes of ImageNet"):
        opened(tmp_path, "ImageNet-C")
    clean = clean_images(tuple(WOOF.values()), "imagenet-imagewoof")
    with pytest.raises(InputError, match="there is no folder gaussian_noise"):
        opened(tmp_path, "ImageNet-C", clean=clean)
    (tmp_path / "imagenet-c" / TWO[0] / "1" / next(iter(WOOF))).mkdir(parents=True)
    with pytest.raises(InputError, match=r"gaussian_noise/1/n02096294 \(Australian terrier\) has no images"):
        opened(tmp_path, "ImageNet-C", clean=clean)


def test_the_shell_script_is_the_published_test(tmp_path):
    """With a PYTHON that prints its arguments."""
    echo = tmp_path / "echo me"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    names = ("SYNSET", "BASELINE", "DATASET", "SUBSET", "IPC", "LEVEL", "TARGET_DATASET", "TARGET_PATH", "SYNSET_PATH")
    clean = {key: value for key, value in os.environ.items() if key not in (*names, "DATA_PATH")}

    def arguments(**environment):
        command = ["sh", str(ROOT / "corruption-exp/scripts/run.sh"), "--seed", "1"]
        chosen = clean | {"PYTHON": str(echo)} | environment
        done = subprocess.run(command, cwd=tmp_path, env=chosen, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[1:]

    assert arguments() == ["--level", "5", "--seed", "1"]
    given = dict.fromkeys(names, "x") | {"DATA_PATH": "a b"}
    words = arguments(**given)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--seed": "1",
        **{f"--{name.lower()}": value for name, value in given.items()},
    }
