"""The datasets that torchvision fetches and reads: whole arrays are taken over, no image is decoded one by one."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.datasets.files import damaged, downloading, missing, not_published, read_variables
from common.disk.paths import is_file
from common.images.image_data import ImageData, Loader, Request, Statistics
from common.system.errors import InputError
from common.system.files import write_atomically

_IDX_BYTES = {  # of MNIST's files, and of those in its form
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}
# The values that the published recipes normalise with; their learning rates depend on them.
STATISTICS: dict[str, Statistics] = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2861,), (0.3530,)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_mnist(request: Request) -> tuple[ImageData, ImageData]:
    """60000 training and 10000 test images, uint8 `[N, 1, 28, 28]`, of ten digits."""
    from torchvision.datasets import MNIST

    return _load_idx(MNIST, request)


def load_fashion_mnist(request: Request) -> tuple[ImageData, ImageData]:
    """60000 training and 10000 test images, uint8 `[N, 1, 28, 28]`, of ten kinds of clothing."""
    from torchvision.datasets import FashionMNIST

    return _load_idx(FashionMNIST, request)


def load_cifar10(request: Request) -> tuple[ImageData, ImageData]:
    """50000 training and 10000 test images, uint8 `[N, 3, 32, 32]`, of ten classes."""
    from torchvision.datasets import CIFAR10

    return _load_cifar(CIFAR10, request)


def load_cifar100(request: Request) -> tuple[ImageData, ImageData]:
    """50000 training and 10000 test images, uint8 `[N, 3, 32, 32]`, of a hundred classes (the fine labels)."""
    from torchvision.datasets import CIFAR100

    return _load_cifar(CIFAR100, request)


def load_svhn(request: Request) -> tuple[ImageData, ImageData]:
    """73257 training and 26032 test images, uint8 `[N, 3, 32, 32]`, of ten digits; class c is digit c."""
    # Not through torchvision's class, which reads no file with another checksum, such as one that was saved again. A
    # checksum is not needed for safety either: these files hold arrays, and reading them runs no code.
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import download_url

    sources = [SVHN.split_list[split] for split in ("train", "test")]
    wanted = {request.data_path / file: (url, md5) for url, file, md5 in sources}
    lacking = [file for file in wanted if not is_file(file)]
    if lacking and not request.download:
        raise missing("SVHN", lacking, lacking)
    for file in lacking:
        url, md5 = wanted[file]
        with downloading("SVHN", [url], [file]):
            download_url(url, str(file.parent), file.name, md5)
    splits = []
    for file in wanted:
        images, labels = _read_mat(file)
        splits.append(_image_data(images, labels, tuple("0123456789"), "SVHN"))
    return splits[0], splits[1]


LOADERS: dict[str, Loader] = {
    "MNIST": load_mnist,
    "FashionMNIST": load_fashion_mnist,
    "SVHN": load_svhn,
    "CIFAR10": load_cifar10,
    "CIFAR100": load_cifar100,
}


def _read_mat(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 `[N, 3, 32, 32]` and labels int64 `[N]` of one of SVHN's files; `InputError` if it is damaged."""
    content = read_variables(file, "X", "y")
    if content is None:
        raise damaged([file])
    pixels, labels = content["X"], content["y"]  # [32, 32, 3, N] and [N, 1]
    count = pixels.shape[-1] if pixels.ndim == 4 else 0
    fits = pixels.shape == (32, 32, 3, count) and pixels.dtype == np.uint8 and labels.shape == (count, 1)
    if not (fits and count and labels.dtype.kind in "iuf" and np.isin(labels, np.arange(11)).all()):
        raise damaged([file])
    # Digit 0 has label 10, as MATLAB counts from 1; copies that others have saved give it 0.
    if np.isin([0, 10], labels).all():
        raise InputError(f"{file} has labels 0 and 10, which both mean the digit 0: fetch the published file")
    if (labels == 0).any():
        tqdm.write(f"{file} has labels 0 to 9, where the published file has 1 to 10: label 0 is taken for the digit 0")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return images, torch.from_numpy(labels[:, 0].astype(np.int64) % 10)


def _load_idx(kind: Any, request: Request) -> tuple[ImageData, ImageData]:
    """Read MNIST or a set in its format; `kind` is torchvision's class."""
    from torchvision.datasets.utils import check_integrity

    name = kind.__name__
    raw = request.data_path / name / "raw"
    archives = {raw / file: md5 for file, md5 in kind.resources}
    files = [archive.with_suffix("") for archive in archives]
    for archive, file in zip(archives, files, strict=True):
        if is_file(archive) and not is_file(file) and not check_integrity(archive, archives[archive]):
            _unpack_another(archive, file)
    lacking = [file for file in files if not is_file(file)]
    if lacking:
        # Archives that somebody has put there are unpacked whether or not downloads are allowed.
        unusable = [archive for archive, md5 in archives.items() if not check_integrity(archive, md5)]
        if not request.download and unusable:
            if there := [archive for archive in unusable if is_file(archive) and archive.with_suffix("") in lacking]:
                raise not_published(there)
            raise missing(name, lacking, archives)
        with downloading(name, kind.mirrors, list(archives)):
            kind(request.data_path, download=True)
    for file in files:
        _check_idx(file)

    splits = []
    for train in (True, False):
        part = kind(request.data_path, train=train)
        prefix = "train" if train else "t10k"
        if len(part.data) != len(part.targets) or int(part.targets.max()) >= len(part.classes):
            raise damaged([raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"])
        splits.append(_image_data(part.data[:, None], part.targets, part.classes, name))
    return splits[0], splits[1]


def _unpack_another(archive: Path, file: Path) -> None:
    """Unpack an archive that is not the published one, such as one that was compressed anew.

    One that does not hold such a file is left alone, and counts as missing.
    """
    try:
        with gzip.open(archive) as packed:
            content = packed.read(_IDX_BYTES[file.name] + 1)
    except (OSError, EOFError, zlib.error):
        return
    if len(content) == _IDX_BYTES[file.name] and _is_idx(file, content[:16], len(content)):
        tqdm.write(f"{archive} has another checksum than the published file, but holds one of its form: it is used")
        write_atomically(file, lambda temporary: temporary.write_bytes(content))


def _check_idx(file: Path) -> None:
    """Raise `InputError` unless an idx file is as long as its header says; torchvision does not look."""
    with file.open("rb") as stream:
        header = stream.read(16)
    if not _is_idx(file, header, file.stat().st_size):
        raise damaged([file])


def _is_idx(file: Path, header: bytes, size: int) -> bool:
    """Whether the first 16 bytes of an idx file with this name say that it has `size` bytes, and some content."""
    dimensions = 3 if "idx3" in file.name else 1
    sizes = [int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(1, dimensions + 1)]
    # The magic number: two zeros, 8 for unsigned bytes, the number of dimensions.
    whole = header[:4] == bytes([0, 0, 8, dimensions]) and size == 4 + 4 * dimensions + prod(sizes)
    return whole and prod(sizes) > 0


def _load_cifar(kind: Any, request: Request) -> tuple[ImageData, ImageData]:
    """Read CIFAR-10 or a set in its format; `kind` is torchvision's class."""
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    name = kind.__name__
    folder = request.data_path / kind.base_folder
    archives = {request.data_path / kind.filename: kind.tgz_md5}
    checksums = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]

    # These files are pickles, which run code when they are read: no file is opened before its checksum is right.
    def faulty() -> list[Path]:
        return [folder / file for file, md5 in checksums if not check_integrity(folder / file, md5)]

    if bad := faulty():
        if not request.download and not all(check_integrity(archive, md5) for archive, md5 in archives.items()):
            if there := [file for file in bad if is_file(file)]:
                raise damaged(there)
            raise missing(name, bad, archives)
        with downloading(name, [kind.url], list(archives), damaged=[file for file in bad if is_file(file)]):
            # What torchvision's own `download` does, except that it overlooks a missing or damaged file of names.
            download_and_extract_archive(kind.url, str(request.data_path), filename=kind.filename, md5=kind.tgz_md5)
        if bad := faulty():
            raise damaged(bad)

    splits = []
    for train in (True, False):
        part = kind(request.data_path, train=train)
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # from [N, H, W, ch]
        splits.append(_image_data(images, part.targets, part.classes, name))
    return splits[0], splits[1]


def _image_data(images: torch.Tensor, labels: Any, class_names: Sequence[str], name: str) -> ImageData:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return ImageData(images, labels, *STATISTICS[name], tuple(class_names), name)
