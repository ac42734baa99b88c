"""Datasets: what is loaded is what is on disk, what is damaged is named, and draws are fair and repeatable."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from common.datasets import (
    DATASETS,
    ClassSampler,
    ImageData,
    decode,
    digits,
    draw_per_class,
    folder,
    folder_cache,
    load_dataset,
    statistics,
)
from common.errors import InputError
from common.seeds import generator

REAL = Path(os.environ.get("FRED_DATA", "no data"))


def make_data(counts: tuple[int, ...] = (5, 9, 3), channels: int = 3) -> ImageData:
    """Random 4x6 images, `counts[c]` of class c, in shuffled order."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=rng)]
    images = torch.randint(0, 256, (len(labels), channels, 4, 6), dtype=torch.uint8, generator=rng)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    return ImageData(images, labels, mean, std, tuple(f"class {c}" for c in range(len(counts))), "made up")


# --- ImageData


def test_batch_is_what_torchvision_computes() -> None:
    data = make_data()
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(data.mean, data.std)]
    )
    indices = torch.tensor([3, 0, 3, 11])
    expected = torch.stack([transform(data.images[i].permute(1, 2, 0).numpy()) for i in indices])
    assert torch.equal(data.batch(indices), expected)
    assert torch.equal(data.batch(slice(2, 4)), data.batch(torch.tensor([2, 3])))
    assert torch.equal(data.batch(indices.view(2, 2)), expected.view(2, 2, 3, 4, 6))


def test_denormalise_inverts_and_clamps() -> None:
    data = make_data()
    batch = data.batch(slice(None))
    torch.testing.assert_close(data.denormalise(batch), data.images / 255)
    assert (data.denormalise(batch * 100) >= 0).all()
    assert (data.denormalise(batch * 100) <= 1).all()


def test_float_volumes_are_not_divided_by_255_nor_changed() -> None:
    volumes = torch.rand(6, 1, 3, 4, 5)
    before = volumes.clone()
    data = ImageData(volumes, torch.tensor([0, 1] * 3), (0.5,), (0.25,), ("a", "b"), "volumes")
    torch.testing.assert_close(data.batch(slice(None)), (before - 0.5) / 0.25)
    assert torch.equal(volumes, before)
    assert data.im_size == (3, 4, 5)


def test_class_indices_and_sizes() -> None:
    data = make_data((5, 9, 3))
    for c, indices in enumerate(data.class_indices):
        assert torch.equal(indices, torch.nonzero(data.labels == c).flatten())
    assert data.class_indices is data.class_indices
    assert (len(data), data.num_classes, data.channels, data.im_size) == (17, 3, 3, (4, 6))
    assert data.to("cpu") is data


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_cuda_gives_the_same_draws_and_batches() -> None:
    data = make_data()
    on_gpu = data.to("cuda")
    drawn = ClassSampler(on_gpu).draw(3, generator(0, "draw"))
    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), ClassSampler(data).draw(3, generator(0, "draw")))
    torch.testing.assert_close(on_gpu.batch(drawn).cpu(), data.batch(drawn.cpu()))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "mean has 3 values.*1 channels"),
        ({"std": (0.5, 0.5)}, "std has 2 values.*1 channels"),
        ({"std": (0.0,)}, "above 0"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"image_size": 16}, "8 x 8 pixels, not 16"),
    ],
)
def test_options_that_do_not_fit_the_images(option: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_dataset("digits", **option)


def test_given_statistics_are_used() -> None:
    for data in load_dataset("digits", mean=[0.1], std=[0.2], image_size=8):
        assert (data.mean, data.std) == ((0.1,), (0.2,))


# --- names


@pytest.mark.parametrize(
    ("name", "guess"),
    [("mnist", "did you mean .*MNIST"), ("cifar-10", "did you mean CIFAR10"), ("qqq", "'qqq': give one of")],
)
def test_unknown_name_is_answered_with_the_known_ones(name: str, guess: str) -> None:
    with pytest.raises(InputError, match=guess) as caught:
        load_dataset(name)
    assert all(known in str(caught.value) for known in [*DATASETS, "folder:PATH"])


def test_statistics_by_name() -> None:
    assert statistics("MNIST") == ((0.1307,), (0.3081,))
    assert statistics("CIFAR10") == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert statistics("folder:somewhere") is None


# --- digits


def test_digits_are_split_in_proportion_and_their_statistics_are_right() -> None:
    train, test = load_dataset("digits")
    assert (len(train), len(test), train.im_size, train.images.dtype) == (1437, 360, (8, 8), torch.uint8)
    shares = [torch.bincount(data.labels) / len(data) for data in (train, test)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    assert train.images.max() == 255
    values = train.images.double() / 255
    assert (round(values.mean().item(), 4), round(values.std().item(), 4)) == (train.mean[0], train.std[0])
    assert digits.STATISTICS == statistics("digits") == (train.mean, train.std)
    again, _ = load_dataset("digits")
    assert torch.equal(train.images, again.images)


# --- sampling


def test_draw_takes_different_images_of_the_right_class() -> None:
    data = make_data((40, 9, 25))
    drawn = ClassSampler(data).draw(9, generator(0, "draw"))
    assert drawn.shape == (3, 9)
    for c, row in enumerate(drawn):
        assert (data.labels[row] == c).all()
        assert len(row.unique()) == 9


def test_draw_covers_a_class_uniformly() -> None:
    data = make_data((20, 7))
    sampler, rng = ClassSampler(data), generator(0, "draw")
    draws = 4000
    counts = sum(torch.bincount(sampler.draw(5, rng).flatten(), minlength=27) for _ in range(draws))
    for indices in data.class_indices:
        share = 5 / len(indices)
        deviation = (counts[indices] - draws * share) / (draws * share * (1 - share)) ** 0.5
        assert deviation.abs().max() < 4.5


def test_order_of_a_draw_is_random() -> None:
    data = make_data((6, 6))
    sampler, rng = ClassSampler(data), generator(0, "draw")
    first = torch.cat([sampler.draw(4, rng)[:, 0] for _ in range(3000)])
    counts = torch.bincount(first, minlength=12)
    assert ((counts - 500).abs() < 4.5 * (3000 * 5 / 36) ** 0.5).all()


def test_draws_depend_on_the_generator_alone() -> None:
    data = make_data((40, 30))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = ClassSampler(data).draw(10, generator(3, "draw"))
    torch.randn(3)
    assert torch.equal(first, ClassSampler(data).draw(10, generator(3, "draw")))
    assert not torch.equal(first, ClassSampler(data).draw(10, generator(4, "draw")))
    torch.set_rng_state(state)
    draw_per_class(data, 3, generator(3, "draw"))
    assert torch.equal(state, torch.get_rng_state())


def test_class_with_too_few_images_repeats_all_of_them_evenly() -> None:
    data = make_data((3, 50, 10))
    for n in (8, 10, 64):
        drawn = ClassSampler(data).draw(n, generator(0, "draw"))
        for c, row in enumerate(drawn):
            assert (data.labels[row] == c).all()
            times = torch.bincount(row, minlength=len(data))[data.class_indices[c]]
            assert times.max() - times.min() <= 1
            assert times.sum() == n


def test_draw_per_class_refuses_a_class_with_too_few_images() -> None:
    data = make_data((30, 9, 25))
    assert draw_per_class(data.class_indices, 9, generator(0, "init")).shape == (3, 9)
    with pytest.raises(InputError, match=r"'class 1' has 9 images, but 10 of each class are needed: lower --ipc"):
        draw_per_class(data, 10, generator(0, "init"))
    with pytest.raises(InputError, match="class 'b' has no images"):
        ClassSampler(ImageData(data.images[:2], torch.zeros(2).long(), (0,) * 3, (1,) * 3, ("a", "b"), "x"))


# --- torchvision's sets, written here in their own formats


def write_idx(file: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(header + array.astype(np.uint8).tobytes())


def make_idx_set(root: Path, name: str = "MNIST") -> tuple[Path, dict[str, np.ndarray]]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28))
        arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(count) % 10
    for file, array in arrays.items():
        write_idx(raw / file, array)
    return raw, arrays


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_idx_files_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    _, arrays = make_idx_set(tmp_path, name)
    for data, prefix in zip(load_dataset(name, tmp_path, download=False), ("train", "t10k"), strict=True):
        assert np.array_equal(data.images[:, 0].numpy(), arrays[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(data.labels.numpy(), arrays[f"{prefix}-labels-idx1-ubyte"])
        assert (data.images.dtype, data.labels.dtype) == (torch.uint8, torch.int64)
        assert (data.mean, data.std) == statistics(name)
        assert (data.name, data.num_classes) == (name, 10)


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "header", "other header"])
def test_damaged_idx_file_is_named(tmp_path: Path, file: str, damage: str) -> None:
    raw, _ = make_idx_set(tmp_path)
    content = (raw / file).read_bytes()
    damaged = {
        "cut": content[:-1],
        "longer": content + b"\0",
        "empty": b"",
        "header": content[:6],
        "other header": b"<htm" + content[4:],
    }
    (raw / file).write_bytes(damaged[damage])
    with pytest.raises(InputError, match=f"{raw / file} is truncated or damaged: delete it and run again"):
        load_dataset("MNIST", tmp_path)


def test_idx_labels_that_are_no_classes_are_noticed(tmp_path: Path) -> None:
    raw, _ = make_idx_set(tmp_path)
    write_idx(raw / "train-labels-idx1-ubyte", np.full(30, 200))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte are truncated or damaged"):
        load_dataset("MNIST", tmp_path)
    write_idx(raw / "train-labels-idx1-ubyte", np.zeros(29))
    with pytest.raises(InputError, match="train-labels-idx1-ubyte are truncated or damaged"):
        load_dataset("MNIST", tmp_path)


def test_archives_that_are_there_are_unpacked_without_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, arrays = make_idx_set(tmp_path)
    resources = []
    for file in arrays:
        packed = gzip.compress((raw / file).read_bytes())
        (raw / f"{file}.gz").write_bytes(packed)
        (raw / file).unlink()
        resources.append((f"{file}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    train, test = load_dataset("MNIST", tmp_path, download=False)
    assert (len(train), len(test)) == (30, 20)


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A CIFAR-10 of 60 images in the real format, with torchvision's checksums changed to theirs."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)

    def write(file: str, content: dict) -> str:
        (root / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((root / file).read_bytes()).hexdigest()

    def write_batch(file: str, part: int) -> list[str]:
        return [file, write(file, {"data": rows[10 * part : 10 * part + 10], "labels": list(range(10))})]

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [write_batch(f"data_batch_{i + 1}", i) for i in range(5)])
    monkeypatch.setattr(kind, "test_list", [write_batch("test_batch", 5)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write("batches.meta", {"label_names": CIFAR_NAMES})})
    return tmp_path, rows


def test_cifar_batches_are_read_as_they_are(cifar: tuple[Path, np.ndarray]) -> None:
    root, rows = cifar
    train, test = load_dataset("CIFAR10", root, download=False)
    assert np.array_equal(train.images.flatten(1).numpy(), rows[:50])
    assert np.array_equal(test.images.flatten(1).numpy(), rows[50:])
    assert train.images.is_contiguous()
    assert train.labels.tolist() == list(range(10)) * 5
    assert train.class_names == test.class_names == tuple(CIFAR_NAMES)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar_file_is_named_and_never_unpickled(cifar: tuple[Path, np.ndarray], file: str) -> None:
    root, _ = cifar
    damaged = root / "cifar-10-batches-py" / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{damaged} is truncated or damaged: delete it and run again"):
        load_dataset("CIFAR10", root, download=False)
    damaged.unlink()
    with pytest.raises(InputError, match=rf"{damaged.parent} \({file} not found\)"):
        load_dataset("CIFAR10", root, download=False)


@pytest.mark.parametrize(
    ("name", "looked_in", "archive"),
    [
        ("MNIST", "MNIST/raw", "train-images-idx3-ubyte.gz"),
        ("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ],
)
def test_missing_data_says_where_and_how(tmp_path: Path, name: str, looked_in: str, archive: str) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path, download=False)
    for words in (f"{name} is not in {tmp_path / looked_in}", archive, "run once without --no_download", "--data_path"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
        ("CIFAR10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    ],
)
def test_failed_download_names_address_and_folder(
    tmp_path: Path, name: str, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    for words in (f"{name} could not be downloaded from", address, str(tmp_path), "no network in tests", "put"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_failed_download_says_which_file_was_to_be_replaced(
    cifar: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = cifar
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"half")

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(InputError, match=r"data_batch_2 in .* is damaged"):
        load_dataset("CIFAR10", root)


# --- folders of images


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FRED_CACHE", str(path))
    return path


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
    mean, std = folder.measure(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,))
    assert std == (1.0,)


@pytest.mark.parametrize("size", [(9, 7), (7, 9), (12, 12), (5, 20), (6, 11)])
@pytest.mark.parametrize("side", [4, 7, 16])
def test_resizing_is_torchvisions(size: tuple[int, int], side: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    functional = torchvision.transforms.functional
    image = Image.fromarray(pixels)
    expected = functional.center_crop(functional.resize(image, side), [side])
    assert np.array_equal(np.asarray(decode.resize_and_crop(image, side)), np.asarray(expected))


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
        next(folder_cache.cache_file(tmp_path.resolve(), None).parent.iterdir()).unlink()


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(decode, "read_image", fail)


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
    assert folder_cache.cache_file(tmp_path, None).parent == tmp_path / "fred"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder_cache.cache_file(tmp_path, None).parent == tmp_path / "home" / ".cache" / "fred"


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


def remove(path: Path) -> None:
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.rmdir()


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
        path.unlink() if path.is_file() else remove(path)
    with pytest.raises(InputError, match=words):
        load_folder(root)


def test_hidden_folders_and_other_files_are_no_classes(tmp_path: Path) -> None:
    make_tree(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "README.txt").write_text("hello")
    (tmp_path / "train" / "cat" / "labels.csv").write_text("1")
    train, _ = load_folder(tmp_path)
    assert (train.class_names, len(train)) == (("cat", "dog"), 6)


@pytest.mark.parametrize("option", [{"image_size": 0}, {"workers": 0}])
def test_senseless_options_are_refused(tmp_path: Path, option: dict) -> None:
    with pytest.raises(InputError, match="at least 1"):
        load_folder(make_tree(tmp_path), **option)


# --- real data, where there is some


@pytest.mark.data
@pytest.mark.skipif(not (REAL / "MNIST" / "raw").is_dir(), reason="FRED_DATA has no MNIST")
def test_real_mnist() -> None:
    train, test = load_dataset("MNIST", REAL, download=False)
    assert (train.images.shape, test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert [len(indices) for indices in test.class_indices] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    values = train.batch(slice(None))
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 1) < 1e-3


@pytest.mark.data
@pytest.mark.skipif(not (REAL / "cifar-10-batches-py").is_dir(), reason="FRED_DATA has no CIFAR-10")
def test_real_cifar10() -> None:
    train, test = load_dataset("CIFAR10", REAL, download=False)
    assert (train.images.shape, test.images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert abs(train.batch(slice(None)).mean()) < 1e-3
