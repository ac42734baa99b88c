"""The authors' sets become ours and back, what is unknown stays unknown, and sets are fetched, checked and shared."""

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common import frequency
from common.datasets import load_dataset, statistics
from common.datasets.imagenet_classes import SUBSETS
from common.pretrained import drive, share
from common.pretrained.__main__ import _made_from
from common.pretrained.convert import Provenance, from_authors, likely_objective
from common.synset.authors import read_authors
from common.synset.file import export_pair, load_synset, save_synset
from common.synset.hub import fetch
from common.synset.open import open_synset
from common.synset.recover import recover
from common.system.errors import InputError
from tests.authors_files import started_from_digits, synthetic, write_pair, write_results
from tests.command_line import assert_refused, call
from tests.conftest import ROOT

SIZES = [
    {"channels": 1, "im_size": (28, 28), "k": 49, "num_classes": 10},
    {"channels": 3, "im_size": (32, 32), "k": 64, "num_classes": 10},
    {"channels": 3, "im_size": (32, 32), "k": 32, "num_classes": 3, "ipc": 2},
    {"channels": 3, "im_size": (32, 32), "k": 100, "num_classes": 3},  # 24 numbers of the budget are left over
    {"channels": 3, "im_size": (128, 128), "k": 2048, "num_classes": 2},
    {"channels": 1, "im_size": (16, 16, 16), "k": 512, "num_classes": 3},
]


# The largest residual in float32 by side, measured on MNIST, CIFAR-10 and Imagenette with all selection rules.
ROUNDING = {32: 4e-6, 128: 2e-5}


def names(values):
    return f"{values['channels']}x{'x'.join(map(str, values['im_size']))}-k{values['k']}"


def converted(path, **provenance):
    return from_authors(read_authors(path), Provenance(**provenance))


# -- from images to coefficients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", SIZES, ids=names)
def test_our_file_their_pair_our_file(tmp_path, values):
    synset = synthetic(**values)
    ours = save_synset(synset, tmp_path / "set.safetensors", {})
    images_file, _ = export_pair(load_synset(ours)[0], tmp_path)
    back, metadata = converted(images_file)
    save_synset(back, tmp_path / "back.safetensors", metadata)
    back, _ = load_synset(tmp_path / "back.safetensors")
    assert torch.equal(back.positions, synset.positions)
    assert (back.ipc, back.msz_per_channel, back.num_per_class) == (synset.ipc, values["k"], synset.num_per_class)
    assert (back.decode() - synset.decode()).abs().max() < 1e-5
    assert metadata["source"]["residual"] < 1e-4
    if len(values["im_size"]) == 2:
        assert metadata["source"]["residual"] < ROUNDING[128 if values["im_size"][0] > 32 else 32]


def test_the_rounding_is_said_in_one_way():
    """Two modules and docs/design.md each said something else, and none what is measured on real images."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("## The authors' files")[2]
    for text in (sys.modules["common.synset.recover"].__doc__, design):
        for figure in ROUNDING.values():
            assert f"{figure:.0e}".replace("e-0", "e-") in text
    assert not re.search(r"\de-\d", sys.modules["common.pretrained.convert"].__doc__)


@pytest.mark.parametrize("results", [False, True])
def test_every_form_of_file_gives_the_same_set(tmp_path, results):
    synset = synthetic(num_classes=3, channels=3, im_size=(16, 16), k=32)
    images, labels = synset.get(need_copy=True)
    if results:
        path = write_results(tmp_path / "res_DM_CIFAR10_ConvNetD3_1ipc.pt", (images, labels))
    else:
        path = write_pair(tmp_path, images, labels, "FreD_ipc1#")
    assert torch.equal(converted(path)[0].positions, synset.positions)


def with_zeros(synset, *where):
    """The set with these coefficients, (class, number among the kept), zero in every image."""
    with torch.no_grad():
        for c, number in where:
            synset.coefficients[c, :, :, number] = 0
    return synset


def test_coefficients_that_are_zero_in_a_whole_class(tmp_path):
    synset = with_zeros(synthetic(num_classes=3, im_size=(16, 16), k=32), (0, 5), (2, 0), (2, 31))
    back, _ = converted(export_pair(synset, tmp_path)[0])
    assert back.positions.shape == synset.positions.shape
    for c, zeros in enumerate(({5}, set(), {0, 31})):
        seen = [int(position) for number, position in enumerate(synset.positions[c]) if number not in zeros]
        assert set(seen) <= set(back.positions[c].tolist())
    assert (back.decode() - synset.decode()).abs().max() < 1e-5


def test_coefficients_that_are_zero_in_every_class(tmp_path):
    """They are not missed where one fewer leaves n as it is, and come back where it would not."""
    synset = with_zeros(synthetic(im_size=(16, 16), k=32, ipc=2), (0, 3), (1, 9))
    back, _ = converted(export_pair(synset, tmp_path)[0])
    assert (back.ipc, back.msz_per_channel, back.num_per_class) == (2, 31, 16)
    synset = with_zeros(synthetic(im_size=(16, 16), k=8, ipc=2), (0, 3), (1, 7))
    back, _ = converted(export_pair(synset, tmp_path)[0])
    assert (back.ipc, back.msz_per_channel, back.num_per_class) == (2, 8, 64)  # seven would make 73 images
    assert (back.decode() - synset.decode()).abs().max() < 1e-5


def test_a_class_of_zeros(tmp_path):
    synset = with_zeros(synthetic(num_classes=3, im_size=(8, 8), k=4), *((1, number) for number in range(4)))
    back, _ = converted(export_pair(synset, tmp_path)[0])
    assert torch.equal(back.positions[0], synset.positions[0])
    assert torch.equal(back.decode(), back.decode().nan_to_num())
    assert (back.decode() - synset.decode()).abs().max() < 1e-5


def tf32(x):
    """Rounded to the ten bits of mantissa that a GPU's TF32 products see."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("side", [32, 64])
def test_sets_decoded_in_tf32(tmp_path, side):
    """Smooth images, whose coefficients span orders of magnitude, and the coarsest rounding they may have met."""
    synset = synthetic(channels=3, im_size=(side, side), k=side * side // 16)
    noise = torch.randn(2 * 16, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    smooth = frequency.idct(noise / (1 + side * frequency.frequencies((side, side))), 2).float()
    synset.init(smooth, synset.labels, [torch.where(synset.labels == c)[0] for c in range(2)])
    dense = frequency.dct(synset.get(need_copy=True)[0], 2)
    decode = frequency.idct(torch.eye(side, dtype=torch.float64), 1).T.float()
    rows = (tf32(dense) @ tf32(decode).T).mT
    images = (tf32(rows) @ tf32(decode).T).mT
    found = recover(read_authors(write_pair(tmp_path, images, synset.labels)))
    assert found.residual > 1e-3
    assert torch.equal(found.positions, synset.positions)


def smooth(side, slope):
    """Images [8, 1, side, side] whose coefficients fall with the frequency without a step."""
    noise = torch.randn(8, 1, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return frequency.idct(noise * (slope * frequency.frequencies((side, side))).exp(), 2).float()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)), "256 of 256 magnitudes"),
        (torch.zeros(8, 1, 16, 16), "nothing but zeros"),
        (load_dataset("digits")[0].batch(torch.arange(8)), "is not a set of FreD"),
        (smooth(32, -12), r"the largest is \d.*e-\d+ of it"),
    ],
    ids=["noise", "zeros", "digits", "slope"],
)
def test_plain_images_are_refused_and_kept_as_pixels(tmp_path, images, message):
    path = write_pair(tmp_path, images, torch.tensor([0] * 4 + [1] * 4))
    with pytest.raises(InputError, match=message) as refusal:
        converted(path)
    assert "--as_pixels" in str(refusal.value)
    back, metadata = from_authors(read_authors(path), as_pixels=True)
    assert torch.equal(back.decode(), images)
    assert (back.transform, back.ipc, back.msz_per_channel) == ("identity", 4, images[0, 0].numel())
    save_synset(back, tmp_path / "pixels.safetensors", metadata)
    assert torch.equal(load_synset(tmp_path / "pixels.safetensors")[0].decode(), images)


def test_the_budget(tmp_path):
    path, _ = export_pair(synthetic(im_size=(16, 16), k=32), tmp_path)
    assert converted(path, ipc=1)[0].ipc == 1
    with pytest.raises(InputError, match=r"--ipc 2 does not fit .*8 images per class of 32 .* give 1"):
        converted(path, ipc=2)


# -- what is known of them ---------------------------------------------------------------------------------------


def test_nothing_is_made_up(tmp_path):
    path, _ = export_pair(synthetic(), tmp_path)
    synset, metadata = converted(path)
    unknown = ("dataset", "mean", "std", "class_names", "image_size", "objective", "network", "evaluation", "accuracy")
    assert {key: metadata[key] for key in unknown} == dict.fromkeys(unknown)
    assert metadata["source"]["files"] == ["images_best.pt", "labels_best.pt"]
    _, stored = load_synset(save_synset(synset, tmp_path / "set.safetensors", metadata))
    assert stored["lr_freq"] is None


def test_a_recipe_fills_in(tmp_path):
    path, _ = export_pair(synthetic(10, 3, (32, 32), 64), tmp_path)
    synset, metadata = converted(path, dataset="CIFAR10", lr_net=0.02)
    assert (metadata["objective"], metadata["network"], metadata["class_names"]) == ("TM", "ConvNetD3", None)
    assert (tuple(metadata["mean"]), tuple(metadata["std"])) == statistics("CIFAR10")
    assert metadata["evaluation"].items() >= {"epochs": 1000, "lr": 0.02, "batch": 256}.items()
    assert "cutout" in metadata["evaluation"]["strategy"]
    assert synset.args.lr_freq == 1e8
    _, metadata = converted(path, dataset="CIFAR10")
    assert "lr" not in metadata["evaluation"]  # it was learned
    _, metadata = converted(path, dataset="CIFAR10", objective="DC", model="AlexNet", epochs=7, dsa_strategy="flip")
    assert (metadata["network"], metadata["evaluation"]) == (
        "AlexNet",
        {"epochs": 7, "lr": 0.01, "batch": 256, "strategy": "flip"},
    )


def test_subsets_of_imagenet(tmp_path):
    path, _ = export_pair(synthetic(10, 3, (16, 16), 128), tmp_path)
    _, metadata = converted(path, dataset="ImageNet", subset="imagefruit")
    assert (metadata["dataset"], metadata["objective"], metadata["resize"]) == ("imagenet-fruits", "TM", "squash")
    assert metadata["class_names"] == list(SUBSETS["fruits"].values())
    assert (metadata["image_size"], metadata["antialias"]) == (16, False)
    _, metadata = converted(path, dataset="imagenet-a")
    assert (metadata["objective"], metadata["resize"], metadata["network"]) == (
        "ImageNet-abcde/TM",
        "crop",
        "ConvNetD5",
    )
    assert (metadata["evaluation"]["kind"], metadata["evaluation"]["lr"]) == ("glad", None)


def test_cifar100_as_trajectory_matching_normalises_it(tmp_path):
    path, _ = export_pair(synthetic(2, 3, (32, 32), 64), tmp_path)
    for objective, lender in (("TM", "CIFAR10"), ("DM", "CIFAR100")):
        _, metadata = converted(path, dataset="CIFAR100", objective=objective)
        assert (tuple(metadata["mean"]), tuple(metadata["std"])) == statistics(lender)


@pytest.mark.parametrize(
    ("dataset", "ipc", "objective"),
    [("CIFAR10", 1, "TM"), ("imagenet-b", 1, "ImageNet-abcde/TM"), ("3D-MNIST", 1, "DM"), ("digits", 3, "TM")],
)
def test_the_likely_objective(dataset, ipc, objective):
    assert likely_objective(dataset, ipc) == objective


def test_provenance_that_does_not_fit(tmp_path):
    path, _ = export_pair(synthetic(), tmp_path)
    with pytest.raises(InputError, match=r"1 channel.*, those of CIFAR10 3"):
        converted(path, dataset="CIFAR10")
    with pytest.raises(InputError, match="no objective 'MTT'"):
        Provenance(objective="MTT")
    with pytest.raises(InputError, match="no dataset 'CIFAR1O'"):
        Provenance(dataset="CIFAR1O")


def test_accuracies_of_the_file_are_kept(tmp_path):
    images, labels = synthetic().get(need_copy=True)
    accuracies = {"ConvNetD3": [np.float64(0.25), np.float64(0.75)]}
    _, metadata = converted(write_results(tmp_path / "res.pt", (images, labels), accuracies=accuracies))
    assert (metadata["network"], metadata["accuracy"]["mean"], metadata["accuracy"]["n"]) == ("ConvNetD3", 0.5, 2)


# -- evaluating --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """A set started from digits: 4 images of 16 coefficients in each of 10 classes."""
    return started_from_digits()


@pytest.fixture
def drive_folder(tmp_path, digits):
    """A folder as that on the Drive, with the set of digits."""
    write_pair(tmp_path / "FreD" / "digits", *digits.get(need_copy=True), "FreD_ipc1#")
    return tmp_path


KNOWN = ["--dataset", "digits", "--model", "ConvNetD1W32"]
PROTOCOL = ["--epoch_eval_train", 0, "--lr_net", 0.01, "--batch_train", 256, "--dsa_strategy", "none"]
QUICK = ["--num_eval", 1, "--device", "cpu"]


def pretrained(*words):
    return call("common/pretrained/__main__.py", *words)


def accuracy(result):
    assert result.code == 0, result.err
    return next(line for line in result.out.splitlines() if "+-" in line).partition(" %")[0].split("ours ")[-1]


def test_an_authors_file_is_evaluated_as_it_is(drive_folder, tmp_path):
    file = drive_folder / "FreD/digits/FreD_ipc1#images_best.pt"
    direct = call("DM/evaluate.py", "--synset", file, *KNOWN, *PROTOCOL, *QUICK)
    output = tmp_path / "set.safetensors"
    assert pretrained("convert", file, "--output", output).code == 0
    assert accuracy(direct) == accuracy(call("DM/evaluate.py", "--synset", output, *KNOWN, *PROTOCOL, *QUICK))


def test_what_is_unknown_is_asked_for_in_a_sentence(drive_folder, tmp_path):
    file = drive_folder / "FreD/digits/FreD_ipc1#images_best.pt"
    every = "--dataset, --model, --epoch_eval_train, --lr_net, --batch_train and --dsa_strategy"
    assert_refused(call("DM/evaluate.py", "--synset", file, *QUICK), f"give {every}")
    assert_refused(call("DM/evaluate.py", "--synset", file, *KNOWN, *PROTOCOL[:6], *QUICK), "give --dsa_strategy (")
    glad = [*KNOWN, "--eval_protocol", "glad", *PROTOCOL[:2], *PROTOCOL[4:]]
    assert call("DM/evaluate.py", "--synset", file, *glad, *QUICK).code == 0  # its step sizes follow from the network
    output = tmp_path / "set.safetensors"
    assert pretrained("convert", file, "--output", output, "--dataset", "digits").code == 0
    assert_refused(call("DM/evaluate.py", "--synset", output, *QUICK), "give --lr_net")
    imagenet = ["--dataset", "imagenet-a", *KNOWN[2:], *PROTOCOL]
    assert_refused(call("DM/evaluate.py", "--synset", file, *imagenet, *QUICK), "give --resize and --antialias")


def test_a_set_of_other_classes(tmp_path):
    file = write_pair(tmp_path, *synthetic(3).get(need_copy=True))
    assert_refused(
        call("DM/evaluate.py", "--synset", file, *KNOWN, *PROTOCOL, *QUICK), "was made for ", "and those of d"
    )


def test_check_says_what_was_less_than_published(drive_folder, tmp_path):
    output = tmp_path / "result.json"
    result = pretrained(
        "check", drive_folder, "--model", "ConvNetD1W32", "--epoch_eval_train", 2, *QUICK, "--output", output
    )
    assert result.code == 0, result.err
    assert "TM digits ipc 1: ours" in result.out
    assert "nothing is published" in result.out
    assert "step size 0.01, that of the authors' corruption script" in result.out
    assert "shortened: 2 of 300 epochs, 1 of 3 networks" in result.out
    (stored,) = json.loads(output.read_text())
    assert stored["evaluation"]["lr"] == 0.01


def test_check_compares_with_the_published_accuracy(drive_folder, monkeypatch):
    from common import recipes

    published = {"accuracy": 50.0, "std": 0.5, "source": "a test"}
    found = recipes.find
    monkeypatch.setattr(
        recipes, "find", lambda *cell, **flags: dataclasses.replace(found(*cell, **flags), published=published)
    )
    file = next(drive_folder.rglob("*labels_best.pt"))
    result = pretrained("check", file, *KNOWN[2:], "--epoch_eval_train", 0, "--lr_net", 0.02, *QUICK)
    assert result.code == 0, result.err
    ours = float(accuracy(result).split()[0])
    assert f"published 50.0 +- 0.5 %, difference {ours - 50:+.2f} points" in result.out
    assert "corruption script" not in result.out


@pytest.mark.parametrize(
    ("asked", "stated", "meant"),
    [
        (None, "CIFAR10", "CIFAR10"),
        ("folder:cifar", "CIFAR10", "CIFAR10"),
        ("folder:cifar", None, "folder:cifar"),
        ("SVHN", "CIFAR10", "SVHN"),
        (None, None, None),
    ],
)
def test_a_folder_says_where_the_test_images_are(asked, stated, meant):
    assert _made_from(asked, stated) == meant


def test_check_needs_a_dataset_and_a_set(tmp_path):
    path = write_pair(tmp_path / "some", *synthetic().get(need_copy=True))
    assert_refused(pretrained("check", path), "give --dataset")
    write_pair(tmp_path / "some", *synthetic().get(need_copy=True), suffix="1000")
    assert_refused(pretrained("check", tmp_path), "2 of 2 sets", "could not be checked")
    (tmp_path / "empty").mkdir()
    assert_refused(pretrained("check", tmp_path / "empty"), "no synthetic set in")


def test_convert_as_a_user(drive_folder, tmp_path):
    file, output = drive_folder / "FreD/digits/FreD_ipc1#images_best.pt", tmp_path / "set.safetensors"
    result = pretrained("convert", file, "--output", output)
    assert result.code == 0, result.err
    assert "10 classes x 4 images of 16 DCT coefficients" in result.out
    assert "unknown in it: dataset, network, evaluation" in result.out
    result = pretrained("convert", file, "--output", output, "--dataset", "digits", "--epochs", 3)
    assert "unknown in it: step size of the networks (--lr_net)" in result.out
    assert load_synset(output)[1]["evaluation"]["epochs"] == 3
    assert_refused(pretrained("convert", file, "--output", tmp_path / "set.pt"), ".safetensors")
    for name in ("set.pt", "a.csv"):
        assert_refused(pretrained("check", file, "--output", tmp_path / name), "is to be a JSON file")
    assert_refused(pretrained("convert", tmp_path / "none.pt", "--output", output), "no file")
    assert_refused(pretrained("convert", file, "--output", output, "--exp", 0), "leave out the experiment")


# -- the authors' folder -----------------------------------------------------------------------------------------


def test_names_say_what_a_set_is():
    cases = {
        "FreD/CIFAR10/FreD_ipc10#images_best.pt": ("CIFAR10", 10, None, None),
        "FreD/ImageNet/imagemeow/FreD_ipc1#labels_best.pt": ("imagenet-cats", 1, None, None),
        "x/res_DM_CIFAR10_ConvNetD3_2ipc.pt": ("CIFAR10", 2, "DM", "ConvNetD3"),
        "x/res_DSA_FashionMNIST_ConvNet_BN_1ipc.pt": ("FashionMNIST", 1, "DC", "ConvNet_BN"),
        "x/res_imagenet-a_ConvNet_1ipc.pt": ("imagenet-a", 1, None, None),
        "x/res_DM_3D-MNIST_Conv3DNet_1ipc.pt": ("3D-MNIST", 1, "DM", "Conv3DNet"),
        "x/images_best.pt": (None, None, None, None),
    }
    for name, expected in cases.items():
        provenance = drive.provenance_of(Path(name))
        assert (provenance.dataset, provenance.ipc, provenance.objective, provenance.model) == expected, name
    for name in drive.expected_files():
        provenance = drive.provenance_of(Path(name))
        assert (provenance.dataset, provenance.ipc) in {cell[1:3] for cell in drive.published_cells()}


def test_the_list(drive_folder):
    write_pair(drive_folder / "FreD/CIFAR10", torch.zeros(1, 1, 4, 4), torch.zeros(1), "FreD_ipc1#")
    result = pretrained("list", "--folder", drive_folder)
    assert result.code == 0, result.err
    lines = {" ".join(line.split()) for line in result.out.splitlines()}
    assert {"TM CIFAR10 1 60.6 % yes", "TM CIFAR10 10 70.3 % -", "ImageNet-abcde/DC imagenet-e 1 41.0 % -"} <= lines
    assert "FreD/ImageNet/imagesquawk/FreD_ipc10#images_best.pt + labels_best.pt" in lines
    assert drive.URL in result.out


def fake_gdown(monkeypatch, files, fails=None):
    asked = []

    def download_folder(**flags):
        asked.append(flags)
        for name, content in files.items():
            path = Path(flags["output"]) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if fails:
            raise fails
        return list(files)

    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download_folder=download_folder))
    return asked


def test_a_download_is_recorded_and_a_change_told(tmp_path, monkeypatch):
    name = "FreD/CIFAR10/FreD_ipc1#images_best.pt"
    asked = fake_gdown(monkeypatch, {name: b"one", "FreD/CIFAR10/FreD_ipc1#labels_best.pt": b"two", "note.txt": b""})
    result = pretrained("download", "--folder", tmp_path / "sets")
    assert result.code == 0, result.err
    assert result.err == ""
    assert "2 files" in result.out
    (flags,) = asked
    assert flags == {"id": drive.FOLDER_ID, "output": str(tmp_path / "sets"), "resume": True}
    recorded = json.loads((tmp_path / "sets" / drive.RECORD).read_text())
    assert recorded["source"] == drive.URL
    assert recorded["sha256"][name] == hashlib.sha256(b"one").hexdigest()
    fake_gdown(monkeypatch, {name: b"other"})
    result = pretrained("download", "--folder", tmp_path / "sets")
    assert f"{name} differs from what arrived before" in result.err
    assert hashlib.sha256(b"one").hexdigest() in result.err


@pytest.mark.parametrize("files", [{}, {"FreD/MNIST/FreD_ipc1#images_best.pt": b"one"}])
def test_a_download_that_fails_says_how_to_do_it_by_hand(tmp_path, monkeypatch, files):
    fake_gdown(monkeypatch, files, RuntimeError("no route to host\nand more"))
    result = pretrained("download", "--folder", tmp_path)
    assert_refused(
        result, "no route to host", f"{len(files)} files are there", drive.URL, "FreD/DATASET/FreD_ipcN#images"
    )
    assert (tmp_path / drive.RECORD).exists() == bool(files)


def test_an_empty_folder_and_a_missing_package(tmp_path, monkeypatch):
    fake_gdown(monkeypatch, {})
    assert_refused(pretrained("download", "--folder", tmp_path), "nothing came")
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert_refused(pretrained("download", "--folder", tmp_path), "pip install 'gdown")


# -- the Hugging Face hub ----------------------------------------------------------------------------------------


class Hub:
    """A hub in a folder: repositories by name, with the calls that are made of the real one."""

    def __init__(self, root):
        self.root, self.private, self.fails = root, {}, None

    def __call__(self):  # HfApi()
        return self

    def _repository(self, name, repo_type):
        assert repo_type == "dataset"
        if self.fails:
            raise self.fails
        return self.root / name

    def create_repo(self, name, *, repo_type, private, exist_ok):
        assert exist_ok
        self.private[name] = private
        self._repository(name, repo_type).mkdir(parents=True, exist_ok=True)

    def list_repo_files(self, name, *, repo_type):
        folder = self._repository(name, repo_type)
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def create_commit(self, name, operations, *, commit_message, repo_type):
        for operation in operations:
            content = operation.path_or_fileobj
            path = self._repository(name, repo_type) / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())

    def hf_hub_download(self, name, file, *, repo_type):
        path = self._repository(name, repo_type) / file
        if not path.is_file():
            raise FileNotFoundError(f"404: {file}")
        return str(path)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    made = Hub(tmp_path_factory.mktemp("hub"))
    library = SimpleNamespace(
        HfApi=made, hf_hub_download=made.hf_hub_download, CommitOperationAdd=lambda **of: SimpleNamespace(**of)
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    return made


@pytest.fixture
def ours(tmp_path, digits):
    _, metadata = from_authors(
        read_authors(write_pair(tmp_path, *digits.get(need_copy=True))), Provenance("digits", lr_net=0.01, epochs=0)
    )
    metadata["accuracy"] = {"mean": 0.5, "std": 0.01, "n": 5}
    return save_synset(digits, tmp_path / "synset.safetensors", metadata)


def test_a_set_goes_to_the_hub_and_back(hub, ours, tmp_path, monkeypatch):
    result = pretrained("push", ours, "hf://me/digits-ipc1")
    assert result.code == 0, result.err
    assert "https://huggingface.co/datasets/me/digits-ipc1" in result.out
    assert sorted(hub.list_repo_files("me/digits-ipc1", repo_type="dataset")) == ["README.md", "synset.safetensors"]
    assert hub.private == {"me/digits-ipc1": False}
    card = (hub.root / "me/digits-ipc1/README.md").read_text()
    parts = (
        "| dataset | digits |",
        "1 image per class",
        "| coefficients | 16 of 64 DCT coefficients per channel",
        "50.00 +- 1.00 %",
        "| network | ConvNetD3 |",
        "python TM/evaluate.py --synset hf://me/digits-ipc1/synset.safetensors",
    )
    for part in parts:
        assert part in card
    result = pretrained("pull", "hf://me/digits-ipc1", "--output", tmp_path / "pulled.safetensors")
    assert result.code == 0, result.err
    assert (tmp_path / "pulled.safetensors").read_bytes() == ours.read_bytes()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):  # the second time over the same file
        assert pretrained("pull", "hf://me/digits-ipc1").code == 0
    Path("synset.safetensors").write_bytes(b"another set")
    assert_refused(pretrained("pull", "hf://me/digits-ipc1"), "another synset.safetensors here", "--output FILE")
    assert Path("synset.safetensors").read_bytes() == b"another set"
    assert torch.equal(open_synset("hf://datasets/me/digits-ipc1")[0].positions, load_synset(ours)[0].positions)
    model = ["--model", "ConvNetD1W32", *QUICK]
    there = call("DM/evaluate.py", "--synset", "hf://me/digits-ipc1", *model)
    assert accuracy(there) == accuracy(call("DM/evaluate.py", "--synset", ours, *model))


def test_a_readme_that_is_there_is_left_alone(hub, ours):
    share.push(ours, "hf://me/sets/first.safetensors")
    (hub.root / "me/sets/README.md").write_text("mine")
    result = pretrained("push", ours, "hf://me/sets/second.safetensors", "--private", "True")
    assert "README.md is as it was" in result.out
    assert (hub.root / "me/sets/README.md").read_text() == "mine"
    assert hub.private["me/sets"]
    with pytest.raises(InputError, match=r"several: give hf://me/sets/FILE with one of first\..*, second\."):
        fetch("hf://me/sets")
    assert fetch("hf://me/sets/second.safetensors").name == "second.safetensors"


def test_what_the_hub_does_not_have_or_do(hub, ours, tmp_path):
    (hub.root / "me/empty").mkdir(parents=True)
    assert_refused(pretrained("pull", "hf://me/empty"), "has no .safetensors file")
    assert_refused(pretrained("pull", "hf://me/empty/set.safetensors"), "cannot be fetched (404")
    (hub.root / "me/empty/set.safetensors").write_bytes(b"no set")
    output = tmp_path / "out.safetensors"
    assert_refused(pretrained("pull", "hf://me/empty", "--output", output), "not a readable synthetic set")
    assert not output.exists()
    hub.fails = OSError("no network\nat all")
    assert_refused(
        pretrained("push", ours, "hf://me/x"), "cannot be uploaded to hf://me/x/synset", "no network", "login"
    )
    assert_refused(call("DM/evaluate.py", "--synset", "hf://me/x"), "cannot be fetched (no network)")


@pytest.mark.parametrize("address", ["hf://me", "hf://me/", "me/x", "hf://me/x/set.pt", "hf://me/../x", "hf:///x/y"])
def test_addresses_that_are_none(address, ours):
    with pytest.raises(InputError, match="no place on the Hugging Face hub"):
        share.push(ours, address)


def test_only_our_files_are_shared(hub, ours, tmp_path):
    pair = write_pair(tmp_path, *synthetic().get(need_copy=True))
    assert_refused(pretrained("push", pair, "hf://me/x"), "only .safetensors files are shared", "convert")
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    assert_refused(pretrained("push", tmp_path / "bad.safetensors", "hf://me/x"), "not a readable synthetic set")
    assert not list(hub.root.iterdir())


def test_without_the_library(ours, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="pip install 'huggingface_hub"):
        fetch("hf://me/x")


def test_help_and_no_command():
    result = pretrained("--help")
    assert result.code == 0
    for command in ("list", "download", "convert", "check", "push", "pull"):
        assert f"• {command} " in result.out
    assert pretrained().code == 2
    assert (ROOT / "common/pretrained/__main__.py").is_file()
