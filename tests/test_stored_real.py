"""Real images in a budget of bytes: what fits, what is trained on, what is reported, what is refused."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.datasets import ImageData
from common.images.zca import whiten, whitening_of
from common.recipes import nearest
from common.synset.packed import PackedArgs, PackedSet
from common.system.errors import InputError
from common.training.image_codecs import File, codec_of
from common.training.stored_real import (
    Budget,
    default_n,
    describe_storage,
    largest_that_fits,
    storage_columns,
    store_real,
)
from tests.command_line import assert_refused, call

pytestmark = pytest.mark.usefixtures("one_thread")

CIFAR10 = Path(os.environ.get("FRED_DATA", "none")) / "cifar10-lossless-first4000.npz"
LOSSY = ["jpeg", "webp", "avif"]
BITS = 8 * 6000


def data_of(channels=3, side=16, of_class=20):
    """Two classes of smooth images with noise, the second class coarser."""
    draws = np.random.default_rng(0)
    images = np.concatenate(
        [
            np.kron(
                draws.integers(40, 216, (of_class, channels, cells, cells)), np.ones((side // cells, side // cells))
            )
            for cells in (2, 4)
        ]
    )
    images = (images + draws.normal(0, 6, images.shape)).clip(0, 255).astype(np.uint8)
    labels = torch.arange(2).repeat_interleave(of_class)
    mean, std = (0.5,) * channels, (0.25,) * channels
    return ImageData(torch.from_numpy(images), labels, mean, std, ("smooth", "coarse"), "made")


def first(data):
    """The first n images of each class."""
    return lambda n: torch.stack([indices[:n] for indices in data.class_indices])


def counted(storage):
    return storage["bytes" if storage["count_headers"] else "bytes_without_headers"]


@pytest.mark.parametrize("headers", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LOSSY)
def test_each_class_has_the_best_quality_that_fits(name, channels, headers):
    data, n = data_of(channels), 12
    budget = Budget(BITS, headers)
    batches, storage = store_real(data, first(data), name, budget, n)
    assert storage["n"] == [n, n]
    assert batches.labels.tolist() == [0] * n + [1] * n
    codec = codec_of(name, channels)
    for label, quality in enumerate(storage["quality"]):
        images = data.images[data.class_indices[label][:n]].numpy()

        def files(at, images=images):
            return [codec.encode(image, at, headers) for image in images]

        at_best = files(quality)
        assert storage["bytes"][label] == sum(len(file.content) for file in at_best)
        assert storage["bytes_without_headers"][label] == sum(file.own for file in at_best)
        assert 8 * counted(storage)[label] <= BITS
        assert quality == codec.qualities[-1] or not budget.holds(files(quality + 1))
        decoded = np.stack([codec.decode(file, channels) for file in at_best])
        assert torch.equal(batches.images[batches.labels == label], data.normalise(torch.from_numpy(decoded)))
    assert storage["psnr"] is None or storage["psnr"] > 20  # AVIF of one channel is exact in quality 100


@pytest.mark.parametrize("headers", [True, False])
def test_png_keeps_the_images_as_they_are_until_the_budget_is_full(headers):
    data = data_of()
    batches, storage = store_real(data, first(data), "png", Budget(BITS, headers), None)
    assert storage["quality"] is None
    assert storage["psnr"] is None
    codec = codec_of("png", 3)
    for label, n in enumerate(storage["n"]):
        indices = data.class_indices[label]
        files = [codec.encode(image, None, headers) for image in data.images[indices[: n + 1]].numpy()]
        assert torch.equal(batches.images[batches.labels == label], data.batch(indices[:n]))
        assert 8 * counted(storage)[label] <= BITS < 8 * sum(file.counted(headers) for file in files)


def test_png_takes_more_images_than_it_tries_first_and_no_more_than_there_are():
    data = data_of(of_class=40)
    _, some = store_real(data, first(data), "png", Budget(8 * 20_000), None)
    assert all(16 < n < 40 for n in some["n"])
    _, every = store_real(data, first(data), "png", Budget(10**9), None)
    assert every["n"] == [40, 40]


def test_the_default_number_of_images_follows_its_rule():
    data = data_of(of_class=100)
    codec = codec_of("webp", 3)
    firsts = data.images[[0, 100]].numpy()
    least = np.mean([len(codec.encode(image, 0, True).content) for image in firsts])
    n = int(BITS / (8 * least + 0.25 * 768))
    assert default_n(codec, firsts, Budget(BITS)) == n
    _, storage = store_real(data, first(data), "webp", Budget(BITS), None)
    assert storage["n"] == [n, n]
    _, storage = store_real(data, first(data), "webp", Budget(10 * BITS), None)
    assert storage["n"] == [100, 100]  # all there are
    assert default_n(codec, firsts, Budget(1)) == 1


def test_what_was_whitened_is_stored_as_it_was_and_whitened_again():
    data = data_of(side=8)
    whitened = whiten(data, whitening_of(data, 0.1, False), False)
    plain, there = store_real(data, first(data), "jpeg", Budget(BITS), 5)
    batches, storage = store_real(whitened, first(whitened), "jpeg", Budget(BITS), 5)
    assert storage == there
    pixels = data.denormalise(plain.images)
    assert torch.allclose(whitened.denormalise(batches.images), pixels, atol=1e-4)


@pytest.mark.parametrize("guess", [1, 50, 99])
def test_the_search_ends_where_the_next_does_not_fit(guess):
    for best in range(1, 100):
        tried = []

        def fits(quality, best=best, tried=tried):
            assert quality not in tried
            tried.append(quality)
            return quality <= best

        assert largest_that_fits(range(1, 100), fits, guess) == best
        assert 1 not in tried
        assert len(tried) <= 11
    assert largest_that_fits(range(1, 100), lambda quality: quality == 7, 7) == 7


def test_the_first_files_that_fit_end_at_one_that_does_not():
    files = [File(bytes(size), size // 2) for size in (4, 6, 100, 1)]
    assert [Budget(bits).first(files) for bits in (31, 32, 80, 879, 10**6)] == [0, 1, 2, 2, 4]
    assert Budget(40, headers=False).first(files) == 2


@pytest.mark.parametrize(
    ("name", "bits", "n", "parts"),
    [
        (
            "jpeg",
            800,
            3,
            r"3 images of class 'smooth' in quality 1 take [\d,]+ bytes as jpeg.* lower --n, or raise --ipc",
        ),
        ("jpeg", 800, None, "1 image of class 'smooth' in quality 1 takes .* raise --ipc or --bits_per_class"),
        ("png", 8, None, "the first image of class 'smooth' takes .* the budget is 1 bytes per class: raise"),
        ("jpeg", BITS, 21, "--n 21 is more than the 20 images of the smallest class"),
    ],
)
def test_what_does_not_fit_is_refused(name, bits, n, parts):
    data = data_of()
    with pytest.raises(InputError, match=parts):
        store_real(data, first(data), name, Budget(bits), n)


def test_volumes_are_refused():
    data = data_of()
    volumes = replace(data, images=data.images[:, :, None])
    with pytest.raises(InputError, match="is for pictures with one or three channels"):
        store_real(volumes, first(volumes), "jpeg", Budget(BITS), None)


def test_a_line_and_a_row_say_what_is_stored():
    storage = {
        "codec": "jpeg", "count_headers": True, "budget_bits": 8000, "n": [4, 4], "quality": [10, 30],
        "bytes": [900, 1000], "bytes_without_headers": [300, 400], "psnr": 30.0,
    }  # fmt: skip
    assert describe_storage(storage) == (
        "4 real images per class as JPEG of quality 10 to 30: 900 to 1,000 bytes per class, without headers "
        "300 to 400; PSNR 30.00 dB; the budget is 1,000 bytes per class"
    )
    assert storage_columns(storage) == {
        "stored_as": "jpeg", "count_headers": True, "budget_bytes": 1000, "n": 4, "quality": 20, "bytes": 950,
        "bytes_without_headers": 350, "psnr": 30.0,
    }  # fmt: skip
    exact = describe_storage(storage | {"codec": "png", "quality": None, "psnr": None, "count_headers": False})
    assert "as PNG: 900" in exact
    assert exact.endswith("equal to the originals; the budget is 1,000 bytes per class without headers")
    assert storage_columns(None) == {}


def test_the_nearest_recipe_is_nearest_by_ratio():
    assert nearest("DM", "CIFAR10", 4) == 2
    assert nearest("DM", "CIFAR10", 1000) == 51
    assert nearest("DM", "CIFAR10", 5) == 10
    assert nearest("DM", "none", 2.6) == 3
    assert nearest("DM", "none", 0.1) == 1


@pytest.mark.data
@pytest.mark.skipif(not CIFAR10.is_file(), reason="FRED_DATA has no cifar10-lossless-first4000.npz")
def test_on_cifar10_the_newer_codec_is_better_at_as_many_bytes():
    with np.load(CIFAR10) as arrays:
        images, labels = arrays["x"], arrays["y"]
    some = np.flatnonzero(labels < 2)[:200]
    pixels = torch.from_numpy(images[some].transpose(0, 3, 1, 2).copy())
    data = ImageData(pixels, torch.from_numpy(labels[some]).long(), (0.5,) * 3, (0.25,) * 3, ("a", "b"), "CIFAR10")
    decibels = []
    for name in LOSSY:
        _, storage = store_real(data, first(data), name, Budget(98_304), 20)
        assert all(0.9 * 98_304 < 8 * each <= 98_304 for each in storage["bytes"])
        decibels.append(storage["psnr"])
    assert decibels[0] < min(decibels[1:])


# -- the command ----------------------------------------------------------------------------------------------------

QUICK = ["--model", "ConvNetD1W16", "--num_eval", 1, "--epoch_eval_train", 1, "--device", "cpu", "--coreset_epochs", 0]


@pytest.mark.parametrize("baseline", ["random", "herding", "kcenter"])
def test_the_command_stores_what_the_rule_chooses(tmp_path, baseline):
    output = tmp_path / "result.json"
    flags = ["--baseline", baseline, "--stored_as", "png", "--ipc", 4, *QUICK, "--output", output]
    result = call("DM/evaluate.py", *flags)
    assert result.code == 0, result.err
    told = json.loads(output.read_text())
    storage = told["storage"]
    assert list(storage) == [
        "codec", "count_headers", "budget_bits", "n", "quality", "bytes", "bytes_without_headers", "psnr",
    ]  # fmt: skip
    assert storage["budget_bits"] == 4 * 64 * 32
    assert len(storage["n"]) == 10
    assert all(
        small < each <= 4 * 64 * 4
        for small, each in zip(storage["bytes_without_headers"], storage["bytes"], strict=True)
    )
    assert describe_storage(storage) in result.out
    with (tmp_path / "result.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["stored_as"] == "png"
    assert float(row["n"]) == pytest.approx(np.mean(storage["n"]))
    assert float(row["budget_bytes"]) == 1024


def test_a_budget_in_bits_without_headers(tmp_path):
    output = tmp_path / "result.json"
    flags = ["--baseline", "random", "--stored_as", "webp", *QUICK, "--output", output]
    result = call("DM/evaluate.py", *flags, "--bits_per_class", 9000, "--n", 20, "--no_count_headers")
    assert result.code == 0, result.err
    storage = json.loads(output.read_text())["storage"]
    assert (storage["budget_bits"], storage["count_headers"], storage["n"]) == (9000, False, [20] * 10)
    assert all(8 * each <= 9000 for each in storage["bytes_without_headers"])
    assert re.search(r"the budget is 1,125 bytes per class without headers", result.out)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--baseline", "random", "--n", 3], "give --stored_as, too"),
        (["--baseline", "random", "--bits_per_class", 99], "give --stored_as, too"),
        (["--baseline", "random", "--count_headers", "False"], "give --stored_as, too"),
        (["--baseline", "full", "--stored_as", "png"], "with --baseline random|herding|kcenter"),
        (["--synset", "x.safetensors", "--stored_as", "png"], "with --baseline random|herding|kcenter"),
        (["--baseline", "random", "--stored_as", "jpeg", "--ipc", 1, "--bits_per_class", 99], "leave out one of them"),
        (["--baseline", "random", "--stored_as", "coded", "--count_headers", "True"], "where everything counts"),
        (["--baseline", "random", "--stored_as", "png", "--n", 3], "--n has no use with --stored_as png"),
        (["--baseline", "random", "--stored_as", "jpeg", "--n", 0], "--n 0 is too small"),
        (["--baseline", "random", "--stored_as", "jpeg", "--bits_per_class", 0], "--bits_per_class 0 is too small"),
        (
            ["--baseline", "random", "--stored_as", "jpeg", "--bits_per_class", 800],
            "as jpeg, and the budget is 100 bytes per class",
        ),
    ],
    ids=str,
)
def test_flags_that_do_not_go_together_are_refused(flags, part):
    assert_refused(call("DM/evaluate.py", *flags, *QUICK), part)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_coded_set_of_real_images_is_the_start_of_a_distillation(channels):
    data = data_of(channels)
    stored, told = store_real(data, first(data), "coded", Budget(8 * 900), 6)
    assert told["n"] == [6, 6]
    assert 800 < told["bytes"][0] <= 900
    assert told["quality"] is None
    arguments = PackedArgs(
        channel=channels, num_classes=2, im_size=(16, 16), device="cpu", ipc=1, msz_per_channel=0, lr_freq=0.1,
        mom_freq=0.0, bits_per_class=8 * 900, colour="opponent" if channels == 3 else "rgb", num_per_class=6,
    )  # fmt: skip
    start = PackedSet(arguments)
    start.init(data, data.labels, [indices[:6] for indices in data.class_indices])
    (images, labels), expected = start.stored().get(need_copy=True), stored.batch(torch.arange(12))
    assert torch.equal(labels, stored.labels)
    nearest_of = torch.cdist(images.flatten(1), expected.flatten(1)).min(dim=1)  # a set is in an order of its own
    assert nearest_of.indices.unique().numel() == 12
    originals = data.batch(first(data)(6).flatten())
    assert (expected - originals).square().mean() < 0.1 * originals.square().mean()


def test_a_coded_set_that_cannot_fit_is_refused():
    data = data_of()
    with pytest.raises(InputError, match="lower --n"):
        store_real(data, first(data), "coded", Budget(8 * 10), 6)
    with pytest.raises(InputError, match=r"1 image per class, .*: raise --ipc"):
        store_real(data, first(data), "coded", Budget(8 * 10), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.training.stored_real.coded_images", lambda *_: 6)
        with pytest.raises(InputError, match=r"6 images per class, .*: give an --n below 6, or raise --ipc"):
            store_real(data, first(data), "coded", Budget(8 * 10), None)
    with pytest.raises(InputError, match="--n 21 is more than the 20 images"):
        store_real(data, first(data), "coded", Budget(8 * 4000), 21)
