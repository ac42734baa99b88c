"""Cached images are checked: files in memory when they are read, mapped ones part by part when first used."""

import json

import numpy as np
import pytest
import torch

from common.datasets import load_dataset
from common.images import mapped
from common.images.image_data import content_of
from common.images.mapped import PartCheck, PartChecksums
from common.system.errors import InputError
from tests.image_sets import make_folder

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def small_parts(monkeypatch):
    """Two images of 12 x 12 pixels in each part."""
    monkeypatch.setattr(mapped, "PART_BYTES", 2 * 3 * 12 * 12)


@pytest.mark.parametrize("cuts", [[7], [1, 6], [2, 2, 3], [1] * 7])
def test_checksums_do_not_depend_on_the_pieces(small_parts, cuts):
    images = torch.randint(0, 256, (7, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    checksums = PartChecksums()
    for piece in images.split(cuts):
        checksums.update(piece.numpy())
    rows = checksums.as_rows()
    assert rows.shape == (4, 4)
    PartCheck(images, torch.from_numpy(rows), "file").check(slice(None))


def test_a_part_is_checked_when_it_is_first_used(small_parts, tmp_path):
    images = torch.zeros(7, 3, 12, 12, dtype=torch.uint8)
    checksums = PartChecksums()
    checksums.update(images.numpy())
    check = PartCheck(images, torch.from_numpy(checksums.as_rows()), tmp_path / "cache")
    images[4, 0, 3, 3] = 1
    check.check(torch.tensor([[0, 1], [6, -1]]))
    with pytest.raises(InputError, match=r"cache is damaged \(images 4 and following\): remove it"):
        check.check(torch.tensor([5]))
    images[0] = 9
    check.check(slice(0, 2))  # it has been checked
    with pytest.raises(ValueError, match="3 checksums for 7 images"):
        PartCheck(images, torch.zeros(3, 4, dtype=torch.uint8), tmp_path)


def read(folder, map_above):
    """Everything that training would see of a dataset; "" where it is refused."""
    try:
        train, test = load_dataset(f"folder:{folder}", map_above=map_above, progress=False)
        batches = [data.batch(slice(None)).numpy().tobytes() for data in (train, test)]
    except InputError:
        return ""
    return batches, [data.labels.tolist() for data in (train, test)], train.mean, train.std, content_of(train, test)


@pytest.mark.parametrize("map_above", [None, 0], ids=["in memory", "mapped"])
def test_no_flipped_bit_of_the_cache_goes_unnoticed(cache, tmp_path, small_parts, map_above):
    """The images are decoded again, or refused, or nothing that is read has changed."""
    folder = make_folder(tmp_path / "images")
    before = read(folder, map_above)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    draws = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    bits = [*draws.integers(0, 8 * len(content), 80), *draws.integers(0, 8 * min(header, 900), 120)]
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        assert read(folder, map_above) in ("", before), bit
        file.unlink(missing_ok=True)
        for left in cache.iterdir():
            left.unlink()
        file.write_bytes(content)


@pytest.mark.parametrize("change", [lambda data: data.to("meta"), lambda data: data.check_all()])
def test_images_that_are_copied_elsewhere_are_checked_before(cache, tmp_path, small_parts, change):
    folder = make_folder(tmp_path / "images")
    load_dataset(f"folder:{folder}", map_above=0, progress=False)
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    train_begins = 4096 + 6 * 3 * 12 * 12  # behind the six test images
    content[train_begins + 5] ^= 4
    file.write_bytes(content)
    train, _ = load_dataset(f"folder:{folder}", map_above=0, progress=False)
    with pytest.raises(InputError, match="is damaged"):
        change(train)


def test_a_cache_of_a_version_without_seals_is_made_again(cache, tmp_path, caplog):
    folder = make_folder(tmp_path / "images")
    before = read(folder, None)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]["seal"]
    shorter = json.dumps(header).encode().ljust(length)
    file.write_bytes(content[:8] + shorter + content[8 + length :])
    assert read(folder, None) == before
    assert not caplog.records  # it is not damaged
    assert b'"seal"' in file.read_bytes()
