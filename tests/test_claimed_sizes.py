"""Sizes that a file only claims are bounded before memory is taken for them."""

import io
import resource
import warnings
import zipfile
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.config.checks import check
from common.config.command_line import parse
from common.datasets import load_dataset
from common.datasets.hub import PREFIX
from common.experts.replay import replayed_experts
from common.images.encoded import Unreadable, read_image
from common.images.pixels import Resize
from common.pretrained.found import read_tensors
from common.synset.authors import read_authors
from common.synset.synset import SynSet, SynSetArgs
from common.system.command import exit_code
from common.system.errors import InputError
from common.system.files import load_torch
from DM.distill import Options
from tests.command_line import TINY, assert_refused, call
from tests.expert_buffers import made_for

ROW = torch.zeros(3, 1, 2, 2)
HOSTILE = {
    "repeats a few stored numbers": lambda: torch.zeros(1).expand(9_000, 1, 1_000, 1_000),  # 36 GB
    "a meta tensor": lambda: torch.empty(9_000, 1, 1_000, 1_000, device="meta"),
    "a sparse tensor": lambda: torch.sparse_coo_tensor([[0], [0], [0], [0]], [1.0], (9_000, 1, 1_000, 1_000)),
    "a quantised tensor": lambda: torch.quantize_per_tensor(ROW, 0.1, 0, torch.qint8),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]),
}


def hostile(what):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of features in beta
        return HOSTILE[what]()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", HOSTILE)
def test_tensors_that_are_not_what_a_file_holds(tmp_path, what):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images, pair, import_, replay = (
        tmp_path / name for name in ("images_x.pt", "labels_x.pt", "x.pt", "replay_buffer_0.pt")
    )
    torch.save(hostile(what), images)
    torch.save(torch.zeros(9_000, dtype=torch.int64), pair)
    torch.save({"images": hostile(what), "labels": torch.zeros(9_000, dtype=torch.int64)}, import_)
    torch.save([[[hostile(what)]]], replay)
    for read in (
        lambda: read_authors(images), lambda: read_tensors(import_, None),
        lambda: replayed_experts(tmp_path / "x_NO_ZCA" / "y", [replay], made_for()),
    ):  # fmt: skip
        with pytest.raises(InputError, match=what):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_tensors_of_any_layout_are_read(tmp_path):
    file = tmp_path / "x.pt"
    told = {"a": ROW.to(memory_format=torch.channels_last), "b": torch.zeros(1).expand(1000), "c": ROW[:, :, 0]}
    torch.save(told, file)
    assert all(torch.equal(each, told[key]) for key, each in load_torch(file).items())


def test_a_file_that_unpacks_to_zeros(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1_000_000)}, file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in source.infolist():
            packed.writestr(info.filename, source.read(info))
    with pytest.raises(ValueError, match=r"is packed, which torch\.save does not do"):
        load_torch(tmp_path / "y.pt")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(100_000_000, 1), (2, 300_000)])
def test_a_long_and_thin_picture(tmp_path, size):
    file = tmp_path / "x.png"
    Image.new("1", size).save(file)
    with pytest.raises(Unreadable, match=r"x\.png is .* pixels, too long and thin to be scaled"):
        read_image(str(file), Resize(128), "shown")
    with pytest.raises(Unreadable, match=r"at most 4,096 each way are taken as they are: give --image_size"):
        read_image(str(file), None, "shown")


def test_sizes_of_images_that_nothing_could_hold(tmp_path):
    for number in range(10):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    with pytest.raises(InputError, match="--image_size must be from 1 to 4,096 pixels, not 20,000"):
        load_dataset(f"folder:{tmp_path / 'images'}", image_size=20_000)
    words = ["--image_size", "20000", "--save_path", tmp_path]
    assert_refused(call("DM/distill.py", *TINY, *words), "--image_size must be from 1 to 4,096 pixels, not 20,000")
    options, _ = parse(Options, "DM", TINY)
    check(options, "DM")


@pytest.mark.parametrize("folder", ["~", "/"])
def test_a_folder_that_holds_everything(folder, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="give the folder of the parquet files"):
        load_dataset(f"{PREFIX}{folder}")


def test_a_folder_of_too_many_files(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("common.datasets.hub.files_below", lambda folder: repeat(folder / "x", 100_001))
    with pytest.raises(InputError, match="has more than 100,000 files"):
        load_dataset(f"{PREFIX}{Path(tmp_path)}")


@pytest.mark.parametrize("words", [("--ipc", 10**9), ("--storage", "int8", "--bits_per_class", 10**12)])
def test_a_budget_that_nothing_could_hold(words):
    given = [*TINY, "--msz_per_channel", "16", "--lr_freq", "1", "--dry_run"]
    assert_refused(call("DM/distill.py", *given, *words), "a set has at most 8,589,934,592: lower the budget (ipc, n")


def test_a_set_beyond_the_memory_of_its_device(monkeypatch):
    """Told before memory is taken; one value fits in 4 bytes. The device meta, of estimates, holds any."""
    most = SynSetArgs(1, 10, (8, 8), "meta", ipc=3_000_000, msz_per_channel=16, lr_freq=1.0, mom_freq=0.5)
    assert len(SynSet(most).labels) == 120_000_000
    args = SynSetArgs(1, 10, (8, 8), "cpu", ipc=1, msz_per_channel=16, lr_freq=1.0, mom_freq=0.5)
    monkeypatch.setattr("common.synset.base.total_memory", lambda device: 4 * 10 * 4 * 64)
    assert len(SynSet(args).labels) == 40
    monkeypatch.setattr("common.synset.base.total_memory", lambda device: 4 * 10 * 4 * 64 - 1)
    with pytest.raises(InputError, match="4 images per class, for 10 classes, are 2,560 values, and the memory of cpu"):
        SynSet(args)


# -- memory that does not suffice -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("take", "told"),
    [
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "you tried to allocate 1152921504606846976 bytes"),
        (lambda: np.empty(1 << 60, np.uint8), "Unable to allocate 1.00 EiB"),
        (lambda: bytearray(1 << 60), "the memory does not suffice: --dry_run tells"),
    ],
)
def test_memory_that_does_not_suffice_is_told(capsys, take, told):
    assert exit_code(take) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("error: the memory does not suffice")
    assert err.count("\n") == 1


def test_another_error_of_torch_is_a_bug():
    with pytest.raises(RuntimeError, match="must match"):
        exit_code(lambda: torch.zeros(2) + torch.zeros(3))


def npz(file, **contents):
    """An .npz of these bytes for each array, packed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(f"{name}.npy", content)
    return file


def array(shape, content=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def test_arrays_of_an_archive_that_are_not_there(tmp_path):
    labels = array((2,), bytes(2))
    assert (
        len(read_tensors(npz(tmp_path / "a.npz", images=array((2, 1, 4, 4), bytes(32)), labels=labels), None).images)
        == 2
    )
    claimed = npz(tmp_path / "b.npz", images=array((1 << 50, 1, 4, 4)), labels=labels)
    with pytest.raises(InputError, match=r"b\.npz cannot be read \(Unable to allocate .*\): it is damaged"):
        read_tensors(claimed, None)
    zeros = npz(tmp_path / "c.npz", images=array((300, 1, 1024, 1024), bytes(300 << 20)), labels=labels)
    with pytest.raises(InputError, match=r"c\.npz cannot be read \(it unpacks to 314,[\d,]+ bytes, which fills"):
        read_tensors(zeros, None)
