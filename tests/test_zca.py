"""ZCA whitening: what it does to a covariance, the way back, and that a set's file finds the same whitening again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.config.options import DataOptions
from common.datasets import DATASETS, ImageData, load_dataset
from common.images import zca
from common.images.image_data import Request, with_classes
from common.synset.file import load_synset, save_synset
from common.system.errors import InputError
from tests.command_line import SHORT, assert_refused, call, run_folder
from tests.conftest import ROOT
from tests.image_sets import make_folder

pytestmark = pytest.mark.usefixtures("cache")

REAL = Path(os.environ.get("FRED_DATA", "no data"))


def forbid_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a whitening was fitted")

    monkeypatch.setattr(zca, "fit", fail)


def eigenvalues(rows: torch.Tensor) -> torch.Tensor:
    """Of the covariance of `[N, D]`, ascending, in float64."""
    return torch.linalg.eigvalsh(torch.cov(rows.double().T))


# --- the transform


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_whitened_covariance_has_the_eigenvalues_that_eps_leaves(eps: float) -> None:
    """Each eigenvalue l becomes l / (l + eps): 1 where the images vary, 0 where they are constant."""
    train, _ = load_dataset("digits")
    before = eigenvalues(train.images.flatten(1) / 255)
    whitening = zca.fit(train.images, eps)
    after = eigenvalues(whitening.apply(train.images).flatten(1))
    torch.testing.assert_close(after, before / (before + eps), atol=2e-4, rtol=0)
    if eps < 1e-3:
        assert (after[before > 1e-3] > 0.99).all()
        assert (before < 1e-9).sum() == (after < 1e-3).sum() > 0  # digits have pixels that are always white
    matrix = whitening.matrix
    assert (matrix - matrix.T).abs().max() < 1e-6 * matrix.abs().max()


def test_images_stay_close_to_themselves() -> None:
    """ZCA, unlike PCA, does not turn the axes: a whitened image correlates with the centred one."""
    train, _ = load_dataset("digits")
    whitening = zca.fit(train.images)
    centred = train.images.flatten(1) / 255 - whitening.mean
    similarity = torch.cosine_similarity(whitening.apply(train.images).flatten(1), centred)
    assert similarity.min() > 0.8


def test_the_test_images_get_the_training_images_transform() -> None:
    raw = load_dataset("digits")
    whitening = zca.fit(raw[0].images)
    for before, after in zip(raw, load_dataset("digits", zca=True), strict=True):
        torch.testing.assert_close(after.images, whitening.apply(before.images))
        assert (after.mean, after.std) == ((0.0,), (1.0,))
        assert after.images.dtype == torch.float32
        assert (after.name, after.class_names) == (before.name, before.class_names)
        assert torch.equal(after.labels, before.labels)
        assert before.images.dtype == torch.uint8


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = load_dataset("digits")
    whitening = zca.fit(train.images)
    whole = zca.whiten(train, whitening)
    monkeypatch.setattr(zca, "CHUNK", 100)
    torch.testing.assert_close(zca.whiten(train, whitening).images, whole.images)


def check_way_back(raw: ImageData, whitened: ImageData) -> None:
    batch = whitened.batch(slice(None))
    for pictures in (whitened.denormalise(batch), whitened.whitening.invert(batch)):
        assert (pictures - raw.images / 255).abs().max() < 1e-3


def test_batches_and_the_way_back() -> None:
    for raw, whitened in zip(load_dataset("digits"), load_dataset("digits", zca=True), strict=True):
        check_way_back(raw, whitened)
        indices = torch.tensor([[3, 0], [7, 3]])
        assert torch.equal(whitened.batch(indices), whitened.images[indices])
        for pixels in (raw.images, raw.images / 255):  # raw ones are whitened, whatever their type
            torch.testing.assert_close(whitened.normalise(pixels[indices]), whitened.batch(indices))
        outside = whitened.denormalise(whitened.batch(slice(None)) * 10)
        assert (outside.min(), outside.max()) == (0, 1)


def test_float_images_are_whitened_like_8_bit_ones() -> None:
    train, _ = load_dataset("digits")
    torch.testing.assert_close(zca.fit(train.images / 255).matrix, zca.fit(train.images).matrix)


def test_images_and_whitening_must_fit() -> None:
    train, _ = load_dataset("digits", zca=True)
    with pytest.raises(ValueError, match="64 pixels"):
        replace(train, images=train.images[..., :4])
    with pytest.raises(ValueError, match="mean must be 0"):
        replace(train, mean=(0.5,))


def test_what_cannot_be_whitened() -> None:
    with pytest.raises(InputError, match="either zca, or mean and std"):
        load_dataset("digits", zca=True, mean=[0.5])
    with pytest.raises(InputError, match="either zca, or mean and std"):
        load_dataset("digits", zca=True, std=[0.5])
    volumes = ImageData(torch.rand(4, 1, 3, 3, 3), torch.arange(4) % 2, (0.0,), (1.0,), ("a", "b"), "volumes")
    with pytest.raises(InputError, match="those of volumes are 3 x 3 x 3: leave out --zca"):
        zca.whitened(volumes, volumes)


@pytest.mark.cuda
def test_a_gpu_whitens_and_goes_back_alike() -> None:
    raw, _ = load_dataset("digits")
    train, _ = load_dataset("digits", zca=True)
    on_gpu = train.to("cuda")
    batch = on_gpu.batch(slice(0, 50))
    assert batch.is_cuda
    assert torch.equal(batch.cpu(), train.batch(slice(0, 50)))
    torch.testing.assert_close(on_gpu.denormalise(batch).cpu(), raw.images[:50] / 255, atol=1e-3, rtol=0)


# --- the cache


def fitted(cache: Path) -> list[Path]:
    return list(cache.glob("zca-*"))


def test_second_start_does_not_fit(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset("digits", zca=True)
    assert len(fitted(cache)) == 1
    forbid_fitting(monkeypatch)
    second = load_dataset("digits", zca=True)
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before.images, after.images)
        for name in ("mean", "matrix", "inverse"):
            assert torch.equal(getattr(before.whitening, name), getattr(after.whitening, name))
        assert before.whitening.fingerprint == after.whitening.fingerprint


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_cache_is_fitted_anew(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = load_dataset("digits", zca=True)
    (file,) = fitted(cache)
    content = file.read_bytes()
    last = bytes([content[-1] ^ 1])
    file.write_bytes({"cut": content[:-5], "flipped": content[:-1] + last, "empty": b""}[damage])
    after, _ = load_dataset("digits", zca=True)
    assert "is damaged" in caplog.text
    assert torch.equal(before.images, after.images)
    forbid_fitting(monkeypatch)
    load_dataset("digits", zca=True)


def test_other_training_images_replace_what_was_kept(cache: Path) -> None:
    train, _ = load_dataset("digits")
    zca.whitening_of(train)
    (file,) = fitted(cache)
    half = replace(train, images=train.images[::2], labels=train.labels[::2])
    assert torch.equal(zca.whitening_of(half).matrix, zca.fit(half.images).matrix)
    assert fitted(cache) == [file]


def test_fingerprint_follows_the_images_alone() -> None:
    make = "torch.arange(120, dtype=torch.uint8).view(5, 2, 3, 4)"
    program = f"import torch; from common.images.zca import whitening_fingerprint; print(whitening_fingerprint({make}))"
    elsewhere = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    batch = torch.arange(120, dtype=torch.uint8).view(5, 2, 3, 4)
    assert elsewhere.stdout.strip() == zca.whitening_fingerprint(batch)
    strided = batch.to(memory_format=torch.channels_last)
    assert zca.whitening_fingerprint(strided) == zca.whitening_fingerprint(batch)
    changed = batch.clone()
    changed[-1, -1, -1, -1] ^= 1
    others = (changed, batch[:-1], batch.view(5, 2, 4, 3), batch.to(torch.int8))
    marks = [
        zca.whitening_fingerprint(batch),
        *map(zca.whitening_fingerprint, others),
        zca.whitening_fingerprint(batch, eps=0.2),
    ]
    assert len(set(marks)) == 6


# --- options and files


def test_a_whitened_folder_does_not_borrow_mean_and_std(tmp_path: Path) -> None:
    tree = make_folder(tmp_path / "tree")
    train, _ = DataOptions(dataset=f"folder:{tree}", recipe="CIFAR10", zca=True).load()
    assert train.whitening is not None
    assert (train.mean, train.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic-set file of a short run on whitened digits."""
    path = tmp_path_factory.mktemp("distilled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRED_CACHE", str(path / "cache"))
        result = call("DM/distill.py", *SHORT, "--zca", "--epoch_eval_train", 2, "--save_path", path)
    assert result.code == 0, result.err
    return run_folder(path) / "synset.safetensors"


EVALUATE = ["--num_eval", 2, "--device", "cpu"]


def test_file_says_how_its_images_were_whitened(distilled: Path) -> None:
    train, _ = load_dataset("digits")
    _, metadata = load_synset(distilled)
    assert metadata["zca"] == {"eps": 0.1, "fingerprint": zca.whitening_fingerprint(train.images)}
    assert (metadata["mean"], metadata["std"]) == ([0.0], [1.0])
    assert json.loads((distilled.parent / "config.json").read_text())["identity"]["zca"] is True


def test_evaluation_is_the_same_in_a_fresh_process_without_a_cache(
    distilled: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(name: str, start: Callable[..., object]) -> list[float]:
        start("DM/evaluate.py", "--synset", distilled, *EVALUATE, "--zca", "--output", tmp_path / name)
        return json.loads((tmp_path / name).read_text())["accuracies"]

    def fresh(*words: object) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=environment, check=True)

    assert not list(cache.iterdir())
    fitted = evaluate("fitted", fresh)
    forbid_fitting(monkeypatch)
    assert evaluate("kept", call) == fitted
    shutil.rmtree(cache)
    monkeypatch.undo()
    monkeypatch.setenv("FRED_CACHE", str(cache))
    assert evaluate("fitted here", call) == fitted


def test_flags_that_contradict_the_file(distilled: Path) -> None:
    evaluate = ["DM/evaluate.py", "--synset", distilled, *EVALUATE]
    assert_refused(call(*evaluate, "--no_zca"), "was made with ZCA whitening: leave out --zca")
    assert_refused(call(*evaluate, "--cifar100_stats", "cifar10"), "--cifar100_stats are for baselines")


def test_other_training_images_are_noticed(distilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = DATASETS["digits"]

    def altered(request: Request) -> tuple[ImageData, ImageData]:
        train, test = original(request)
        train.images[0, 0, 3, 3] ^= 1
        return train, test

    monkeypatch.setitem(DATASETS, "digits", altered)
    forbid_fitting(monkeypatch)  # noticed before that
    result = call("DM/evaluate.py", "--synset", distilled, *EVALUATE)
    assert_refused(result, "whitened by other training images than those of digits", "give the --dataset")


def test_classes_in_another_order_are_told(distilled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders sort by their names: of a class that is called otherwise, the images come elsewhere."""
    original = DATASETS["digits"]
    order = ["0", "1", "2", "3", "4", "5", "6", "7", "9", "8"]

    def altered(request: Request) -> tuple[ImageData, ImageData]:
        train, test = (with_classes(each, {name: name for name in order}, order) for each in original(request))
        return replace(train, images=train.images.flip(0), labels=train.labels.flip(0)), test

    monkeypatch.setitem(DATASETS, "digits", altered)
    result = call("DM/evaluate.py", "--synset", distilled, *EVALUATE)
    told = "than those of digits, or by the same in another order (the classes come as 0, 1, 2, 3, 4, 5, 6, 7, 9, 8, in"
    assert_refused(result, told)


def test_files_from_before_the_option(tmp_path: Path) -> None:
    assert call("DM/distill.py", *SHORT, "--save_path", tmp_path).code == 0
    synset, metadata = load_synset(run_folder(tmp_path) / "synset.safetensors")
    assert metadata.pop("zca") is None
    path = save_synset(synset, tmp_path / "old.safetensors", metadata)
    assert call("DM/evaluate.py", "--synset", path, *EVALUATE).code == 0
    assert_refused(call("DM/evaluate.py", "--synset", path, *EVALUATE, "--zca"), "was made without ZCA whitening")


def test_baselines_can_be_whitened(tmp_path: Path, cache: Path) -> None:
    words = ["--baseline", "random", *EVALUATE, "--model", "ConvNetD1W32", "--epoch_eval_train", 0]
    accuracies = []
    for flags in ([], ["--zca"]):
        assert call("DM/evaluate.py", *words, *flags, "--output", tmp_path / "result.json").code == 0
        accuracies.append(json.loads((tmp_path / "result.json").read_text())["accuracies"])
        assert len(fitted(cache)) == len(flags)
    assert accuracies[0] != accuracies[1]


# --- real data, where there is some


@pytest.mark.data
@pytest.mark.skipif(not (REAL / "MNIST" / "raw").is_dir(), reason="FRED_DATA has no MNIST")
def test_way_back_on_mnist() -> None:
    raw = load_dataset("MNIST", REAL, download=False)
    for before, after in zip(raw, load_dataset("MNIST", REAL, download=False, zca=True), strict=True):
        check_way_back(before, after)


@pytest.mark.data
@pytest.mark.skipif(not (REAL / "cifar10-jpeg").is_dir(), reason="FRED_DATA has no cifar10-jpeg")
def test_way_back_on_a_part_of_cifar10(tmp_path: Path) -> None:
    for split, count in (("train", 200), ("test", 20)):
        for label in sorted((REAL / "cifar10-jpeg" / split).iterdir()):
            (tmp_path / split / label.name).mkdir(parents=True)
            for file in sorted(label.iterdir())[:count]:
                (tmp_path / split / label.name / file.name).symlink_to(file)
    raw = load_dataset(f"folder:{tmp_path}")
    for before, after in zip(raw, load_dataset(f"folder:{tmp_path}", zca=True), strict=True):
        check_way_back(before, after)
