"""torchvision's sets, written here in their own formats: read as they are, and what is damaged is named."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from common.datasets import load_dataset, statistics
from common.system.errors import InputError
from tests.image_sets import make_idx_set, write_idx

REAL = Path(os.environ.get("FRED_DATA", "no data"))


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


def test_archives_compressed_otherwise_are_unpacked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, arrays = make_idx_set(tmp_path)
    resources, sizes = [], {}
    for file in arrays:
        content = (raw / file).read_bytes()
        (raw / f"{file}.gz").write_bytes(gzip.compress(content, compresslevel=1))
        sizes[file] = len(content)
        (raw / file).unlink()
        resources.append((f"{file}.gz", hashlib.md5(gzip.compress(content)).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    told = "there, but neither as published nor files of that form and size: delete them and run again without"
    with pytest.raises(InputError, match=told):
        load_dataset("MNIST", tmp_path, download=False)
    monkeypatch.setattr("common.datasets.vision._IDX_BYTES", sizes)
    train, test = load_dataset("MNIST", tmp_path, download=False)
    assert (len(train), len(test)) == (30, 20)
    told = f"{raw / 'train-images-idx3-ubyte.gz'} has another checksum than the published file"
    assert capsys.readouterr().out.count(told) == 1
    load_dataset("MNIST", tmp_path, download=False)
    assert "checksum" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found", gzip.compress(b"\0" * 100)[:-9], gzip.compress(b"other")],
    ids=["empty", "page", "cut", "other"],
)
def test_archives_of_something_else_are_to_be_replaced(tmp_path: Path, content: bytes) -> None:
    raw, _ = make_idx_set(tmp_path)
    (raw / "train-images-idx3-ubyte").unlink()
    (raw / "train-images-idx3-ubyte.gz").write_bytes(content)
    told = f"{raw / 'train-images-idx3-ubyte.gz'} is there, but neither as published nor a file of that form and size"
    with pytest.raises(InputError, match=told):
        load_dataset("MNIST", tmp_path, download=False)


def write_pickle(file: Path, content: dict) -> str:
    """Write a batch as CIFAR's are, and return its checksum."""
    file.write_bytes(pickle.dumps(content))
    return hashlib.md5(file.read_bytes()).hexdigest()


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A CIFAR-10 of 60 images in the real format, with torchvision's checksums changed to theirs."""
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (60, 3072), dtype=np.uint8)

    def write_batch(file: str, part: int) -> list[str]:
        return [file, write_pickle(root / file, {"data": rows[10 * part : 10 * part + 10], "labels": list(range(10))})]

    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [write_batch(f"data_batch_{i + 1}", i) for i in range(5)])
    monkeypatch.setattr(kind, "test_list", [write_batch("test_batch", 5)])
    monkeypatch.setattr(
        kind, "meta", {**kind.meta, "md5": write_pickle(root / "batches.meta", {"label_names": CIFAR_NAMES})}
    )
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


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A CIFAR-100 of 300 images in the real format, with torchvision's checksums changed to theirs."""
    root = tmp_path / "cifar-100-python"
    root.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (300, 3072), dtype=np.uint8)

    kind = torchvision.datasets.CIFAR100
    for attribute, file, part in (("train_list", "train", slice(200)), ("test_list", "test", slice(200, 300))):
        fine = [99 - i % 100 for i in range(len(rows[part]))]
        content = {"data": rows[part], "fine_labels": fine, "coarse_labels": [label // 5 for label in fine]}
        monkeypatch.setattr(kind, attribute, [[file, write_pickle(root / file, content)]])
    names = {"fine_label_names": [f"fine {c}" for c in range(100)], "coarse_label_names": ["coarse"] * 20}
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": write_pickle(root / "meta", names)})
    return tmp_path, rows


def test_cifar100_has_its_fine_classes(cifar100: tuple[Path, np.ndarray]) -> None:
    root, rows = cifar100
    train, test = load_dataset("CIFAR100", root, download=False)
    assert np.array_equal(train.images.flatten(1).numpy(), rows[:200])
    assert np.array_equal(test.images.flatten(1).numpy(), rows[200:])
    assert train.labels.tolist() == list(range(99, -1, -1)) * 2
    assert train.class_names == tuple(f"fine {c}" for c in range(100))
    assert (train.mean, train.std) == ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_cifar100_file_with_another_checksum_is_never_unpickled(
    cifar100: tuple[Path, np.ndarray], tmp_path: Path, file: str
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable, tuple]:
            return (Path.touch, (tmp_path / "sprung",))

    damaged = cifar100[0] / "cifar-100-python" / file
    damaged.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match=f"{damaged} is truncated or damaged: delete it and run again"):
        load_dataset("CIFAR100", cifar100[0], download=False)
    assert not (tmp_path / "sprung").exists()


def write_mat(file: Path, **changes: object) -> dict[str, np.ndarray]:
    """A file in SVHN's layout, 12 images with every label."""
    pixels = np.random.default_rng(len(file.name)).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    labels = np.array([10, *range(1, 11), 10], dtype=np.uint8)[:, None]
    content = {"X": pixels, "y": labels, **changes}
    savemat(file, {key: value for key, value in content.items() if value is not None}, do_compression=True)
    return content


def test_svhn_is_read_and_digit_0_is_class_0(tmp_path: Path) -> None:
    contents = [write_mat(tmp_path / f"{split}_32x32.mat") for split in ("train", "test")]
    for data, content in zip(load_dataset("SVHN", tmp_path, download=False), contents, strict=True):
        assert np.array_equal(data.images.numpy(), content["X"].transpose(3, 2, 0, 1))
        assert data.images.is_contiguous()
        assert data.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]
        assert (data.images.dtype, data.labels.dtype) == (torch.uint8, torch.int64)
        assert data.class_names == tuple("0123456789")
        assert (data.mean, data.std) == ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))


def test_svhn_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = torchvision.datasets.SVHN
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        write_mat(file)
        entry = [*kind.split_list[split][:2], hashlib.md5(file.read_bytes()).hexdigest()]
        monkeypatch.setitem(kind.split_list, split, entry)
    for data, split in zip(load_dataset("SVHN", tmp_path, download=False), ("train", "test"), strict=True):
        reference = kind(tmp_path, split)
        assert np.array_equal(data.images.numpy(), reference.data)
        assert np.array_equal(data.labels.numpy(), reference.labels)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("damage", ["cut", "cut early", "empty", "flipped", "text", "hdf5"])
def test_damaged_mat_file_is_named(tmp_path: Path, split: str, damage: str) -> None:
    for each in ("train", "test"):
        write_mat(tmp_path / f"{each}_32x32.mat")
    file = tmp_path / f"{split}_32x32.mat"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    damaged = {
        "cut": content[:-1000],
        "cut early": content[:100],
        "empty": b"",
        "flipped": content,
        "text": b"<html>404</html>" * 40,
        "hdf5": b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(600),
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=f"{file} is truncated or damaged: delete it and run again"):
        load_dataset("SVHN", tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"X": None},
        {"y": None},
        {"X": np.zeros((32, 32, 3, 11), np.uint8)},
        {"X": np.zeros((12, 3, 32, 32), np.uint8)},
        {"X": np.zeros((32, 32, 3, 12))},
        {"X": np.zeros((32, 32, 3, 0), np.uint8), "y": np.zeros((0, 1), np.uint8)},
        {"y": np.full((12, 1), 11, np.uint8)},
        {"y": np.full((12, 1), 1.5)},
        {"y": np.ones((12, 2), np.uint8)},
        {"y": "labels"},
    ],
)
def test_mat_file_with_other_arrays_is_refused(tmp_path: Path, changes: dict) -> None:
    write_mat(tmp_path / "test_32x32.mat")
    write_mat(tmp_path / "train_32x32.mat", **changes)
    with pytest.raises(InputError, match=r"train_32x32.mat is truncated or damaged"):
        load_dataset("SVHN", tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "looked_in", "archive"),
    [
        ("MNIST", "MNIST/raw", "train-images-idx3-ubyte.gz"),
        ("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        ("CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz"),
        ("SVHN", "", "train_32x32.mat"),
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
        ("CIFAR100", "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
        ("SVHN", "http://ufldl.stanford.edu/housenumbers/train_32x32.mat"),
    ],
)
def test_failed_download_names_address_and_folder(tmp_path: Path, name: str, address: str, offline: None) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    for words in (f"{name} could not be downloaded from", address, str(tmp_path), "no network in tests", "put"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_failed_download_says_which_file_was_to_be_replaced(cifar: tuple[Path, np.ndarray], offline: None) -> None:
    root, _ = cifar
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"half")

    with pytest.raises(InputError, match=r"data_batch_2 in .* is damaged"):
        load_dataset("CIFAR10", root)


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
