"""The datasets that torchvision fetches and reads: whole arrays are taken over, no image is decoded one by one."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch

from common.datasets.image_data import ImageData, Loader, Request, Statistics
from common.errors import InputError

# The values that the published recipes normalise with; their learning rates depend on them.
STATISTICS: dict[str, Statistics] = {
    "MNIST": ((0.1307,), (0.3081,)),
    "FashionMNIST": ((0.2861,), (0.3530,)),
    "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}

NETWORK_TIMEOUT = 30.0  # seconds without a byte; torchvision itself would wait for ever


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


LOADERS: dict[str, Loader] = {"MNIST": load_mnist, "FashionMNIST": load_fashion_mnist, "CIFAR10": load_cifar10}


def _load_idx(kind: Any, request: Request) -> tuple[ImageData, ImageData]:
    """Read MNIST or a set in its format; `kind` is torchvision's class."""
    from torchvision.datasets.utils import check_integrity

    name = kind.__name__
    raw = request.data_path / name / "raw"
    archives = {raw / file: md5 for file, md5 in kind.resources}
    files = [archive.with_suffix("") for archive in archives]
    missing = [file for file in files if not file.is_file()]
    if missing:
        # Archives that somebody has put there are unpacked whether or not downloads are allowed.
        if not request.download and not all(check_integrity(archive, md5) for archive, md5 in archives.items()):
            raise _missing(name, missing, archives)
        with _downloading(name, kind.mirrors, archives):
            kind(request.data_path, download=True)
    for file in files:
        _check_idx(file)

    splits = []
    for train in (True, False):
        part = kind(request.data_path, train=train)
        prefix = "train" if train else "t10k"
        if len(part.data) != len(part.targets) or int(part.targets.max()) >= len(part.classes):
            raise _damaged([raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"])
        splits.append(_image_data(part.data[:, None], part.targets, part.classes, name))
    return splits[0], splits[1]


def _check_idx(file: Path) -> None:
    """Raise `InputError` unless an idx file is as long as its header says; torchvision does not look."""
    with file.open("rb") as stream:
        header = stream.read(16)
    dimensions = 3 if "idx3" in file.name else 1
    sizes = [int.from_bytes(header[4 * i : 4 * i + 4], "big") for i in range(1, dimensions + 1)]
    # The magic number: two zeros, 8 for unsigned bytes, the number of dimensions.
    if header[:4] != bytes([0, 0, 8, dimensions]) or file.stat().st_size != 4 + 4 * dimensions + prod(sizes):
        raise _damaged([file])
    if prod(sizes) == 0:
        raise _damaged([file])


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
            if there := [file for file in bad if file.is_file()]:
                raise _damaged(there)
            raise _missing(name, bad, archives)
        with _downloading(name, [kind.url], archives, damaged=[file for file in bad if file.is_file()]):
            # What torchvision's own `download` does, except that it overlooks a missing or damaged file of names.
            download_and_extract_archive(kind.url, str(request.data_path), filename=kind.filename, md5=kind.tgz_md5)
        if bad := faulty():
            raise _damaged(bad)

    splits = []
    for train in (True, False):
        part = kind(request.data_path, train=train)
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # from [N, H, W, ch]
        splits.append(_image_data(images, part.targets, part.classes, name))
    return splits[0], splits[1]


def _image_data(images: torch.Tensor, labels: Any, class_names: Sequence[str], name: str) -> ImageData:
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return ImageData(images, labels, *STATISTICS[name], tuple(class_names), name)


def _missing(name: str, files: Sequence[Path], archives: dict[Path, str]) -> InputError:
    folder = next(iter(archives)).parent
    return InputError(
        f"{name} is not in {files[0].parent} ({_names(files)} not found): run once without --no_download, "
        f"put {_names(archives)} into {folder}, or give another --data_path"
    )


def _damaged(files: Sequence[Path]) -> InputError:
    them = "it" if len(files) == 1 else "them"
    return InputError(
        f"{' and '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} truncated or damaged: "
        f"delete {them} and run again without --no_download to fetch {them} anew"
    )


def _names(files: Sequence[Path] | dict[Path, str]) -> str:
    return ", ".join(file.name for file in files)


@contextmanager
def _downloading(
    name: str, addresses: Sequence[str], archives: dict[Path, str], damaged: Sequence[Path] = ()
) -> Iterator[None]:
    """Around a download: gives up on a silent network, and says in one sentence what failed and what to do instead."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    # URLError is an OSError; torchvision raises RuntimeError for a wrong checksum and when all mirrors have failed.
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # Of several lines, one for each address tried, the last says what the network said.
        reason = [type(error).__name__, *str(error).splitlines()][-1]
        because = f" ({_names(damaged)} in {damaged[0].parent} is damaged)" if damaged else ""
        folder = next(iter(archives)).parent
        raise InputError(
            f"{name} could not be downloaded{because} from {', '.join(addresses)}: {reason}; "
            f"fetch {_names(archives)} by other means and put {'it' if len(archives) == 1 else 'them'} into {folder}, "
            "or give another --data_path"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
