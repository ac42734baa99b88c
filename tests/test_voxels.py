"""3D-MNIST: its file is read as it is or refused with a sentence, and everything works on volumes as on images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft

from common.datasets import load_dataset, statistics
from common.matching import dc_augment
from common.synset.file import load_synset
from common.synset.selection import RULES
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from tests.command_line import assert_refused, call, run_folder
from tests.voxel_sets import SIDE, make_voxels, write_voxels

NAME, FILE = "3D-MNIST", "full_dataset_vectors.h5"
ADDRESS = "https://www.kaggle.com/datasets/daavoo/3d-mnist"
ARRAYS = make_voxels()


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_voxels(path / NAME / FILE, ARRAYS)
    return path


def changed(key: str, index: Any, value: object) -> dict[str, Any]:
    """`ARRAYS` with one value, or several, of one array replaced."""
    array = ARRAYS[key].copy()
    array[index] = value
    return ARRAYS | {key: array}


# -- reading -------------------------------------------------------------------------------------------------------


def test_volumes_keep_values_axes_and_order(data_path: Path) -> None:
    splits = load_dataset(NAME, data_path)
    for split, data in zip(("train", "test"), splits, strict=True):
        vectors = ARRAYS[f"X_{split}"]
        assert data.images.shape == (len(vectors), 1, SIDE, SIDE, SIDE)
        assert data.images.dtype == torch.float32
        assert data.images.is_contiguous()
        assert (data.channels, data.im_size, data.name) == (1, (SIDE, SIDE, SIDE), NAME)
        assert data.class_names == tuple("0123456789")
        np.testing.assert_array_equal(data.labels.numpy(), ARRAYS[f"y_{split}"])
        assert data.labels.dtype == torch.int64
        np.testing.assert_array_equal(data.images.flatten(1).numpy(), vectors.astype(np.float32))
        # The vector runs along the last axis first.
        assert data.images[0, 0, 5, 2, 9] == np.float32(vectors[0, (5 * SIDE + 2) * SIDE + 9])
        assert torch.equal(data.batch(torch.arange(4)), data.images[:4])  # nothing is normalised
    assert statistics(NAME) == ((0.0,), (1.0,))


def test_the_file_may_lie_in_the_data_folder_itself(tmp_path: Path) -> None:
    write_voxels(tmp_path / FILE, ARRAYS)
    assert len(load_dataset(NAME, tmp_path)[0]) == len(ARRAYS["y_train"])
    # That in the dataset's own folder goes first.
    write_voxels(tmp_path / NAME / FILE, make_voxels({"train": 1, "test": 1}))
    assert len(load_dataset(NAME, tmp_path)[0]) == 10


@pytest.mark.parametrize("kind", ["f2", "f4", "u1"])
def test_any_type_of_numbers_will_do(tmp_path: Path, kind: str) -> None:
    arrays = {key: np.round(array).astype(kind) for key, array in ARRAYS.items()}
    write_voxels(tmp_path / FILE, arrays)
    train, _ = load_dataset(NAME, tmp_path)
    assert (train.images.dtype, train.labels.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(train.images.flatten(1).numpy(), arrays["X_train"])


@pytest.mark.usefixtures("offline")
def test_a_missing_file_is_said_where_to_get_and_to_put(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(NAME, tmp_path)
    assert all(part in str(caught.value) for part in (ADDRESS, str(tmp_path / NAME / FILE), "--data_path"))


WRONG = {
    "no key": ({key: ARRAYS[key] for key in ("X_train", "y_train", "X_test")}, "it has no y_test"),
    "a group": (ARRAYS | {"X_train": None}, "X_train is a group"),
    "length of a vector": (ARRAYS | {"X_train": ARRAYS["X_train"][:, :4095]}, r"X_train has shape \(30, 4095\)"),
    "volumes": (ARRAYS | {"X_test": ARRAYS["X_test"].reshape(-1, 16, 256)}, r"X_test has shape \(10, 16, 256\)"),
    "nothing": (ARRAYS | {"X_train": np.zeros((0, 4096))}, r"X_train has shape \(0, 4096\)"),
    "no array": (ARRAYS | {"X_train": h5py.Empty("f4")}, "X_train has shape None"),
    "numbers of labels": (ARRAYS | {"y_train": ARRAYS["y_train"][1:]}, r"y_train has shape \(29,\), not \(30,\)"),
    "one-hot": (ARRAYS | {"y_test": np.eye(10)}, r"y_test has shape \(10, 10\)"),
    "words": (ARRAYS | {"y_test": [b"zero"] * 10}, "y_test holds .*, not numbers"),
    "text": (ARRAYS | {"X_train": np.full((30, 4096), "1", dtype=object)}, "X_train holds object, not numbers"),
    "complex": (ARRAYS | {"X_train": ARRAYS["X_train"] + 0j}, "X_train holds complex128, not numbers"),
    "NaN": (changed("X_train", (7, 99), np.nan), "X_train has NaN"),
    "infinite": (changed("X_test", (3, 5), -np.inf), "X_test has values from -inf"),
    "beyond float32": (changed("X_test", (3, 5), 1e300), "X_test has values from .* to inf"),
    "negative": (changed("X_test", (3, 5), -0.5), "X_test has values from -0.5"),
    "bytes": (ARRAYS | {"X_train": ARRAYS["X_train"] * 255}, "X_train has values from .* to 2"),
    "label 10": (changed("y_train", 4, 10), "y_train has the label 10"),
    "label -1": (changed("y_test", 0, -1), "y_test has the label -1"),
    "half a label": (ARRAYS | {"y_train": ARRAYS["y_train"] + 0.5}, r"y_train has the label \d\.5"),
    "class missing": (changed("y_train", ARRAYS["y_train"] == 6, 5), "y_train has no image of the digit 6"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(tmp_path: Path, case: str) -> None:
    arrays, words = WRONG[case]
    file = write_voxels(tmp_path / NAME / FILE, {key: array for key, array in arrays.items() if array is not None})
    with h5py.File(file, "a") as content:
        for key, array in arrays.items():
            if array is None:
                content.create_group(key)
    with pytest.raises(InputError, match=words) as caught:
        load_dataset(NAME, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(file))
    assert message.endswith(f"put the {FILE} of {ADDRESS} in its place")


def compressed(file: Path) -> bytes:
    with h5py.File(file, "w") as content:
        for key, array in ARRAYS.items():
            content.create_dataset(key, data=array, compression="gzip")
    return file.read_bytes()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda whole: b"", "cannot be read as HDF5"),
        (lambda whole: b"<html>Sign in to download</html>" * 99, "signature not found"),
        (lambda whole: whole[: len(whole) // 2], "truncated file"),
        (lambda whole: whole[:4000] + bytes(3000) + whole[7000:], "cannot be read as HDF5"),
    ],
    ids=["empty", "a web page", "truncated", "zeros"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    file = tmp_path / FILE
    file.write_bytes(damage(compressed(file)))
    with pytest.raises(InputError, match=words) as caught:
        load_dataset(NAME, tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"fetch it anew from {ADDRESS}")


# -- what works on images works on volumes -------------------------------------------------------------------------

SIZE, CLASSES, COUNT = (4, 6, 5), 2, 7  # d = 120


@pytest.fixture
def volumes(draws: torch.Generator) -> torch.Tensor:
    """[C, 7, 1, D, H, W]."""
    return torch.rand(CLASSES, COUNT, 1, *SIZE, generator=draws)


def synset_of(volumes: torch.Tensor, k: int, selection: str) -> SynSet:
    synset = SynSet(SynSetArgs(1, CLASSES, SIZE, "cpu", 1, k, 1.0, 0.5, selection=selection, selection_images="class"))
    labels = torch.arange(CLASSES).repeat_interleave(COUNT)
    synset.init(volumes.flatten(0, 1), labels, torch.arange(CLASSES * COUNT).view(CLASSES, COUNT))
    return synset


@pytest.mark.parametrize("selection", RULES)
def test_a_set_of_volumes_is_decoded_from_the_kept_coefficients(volumes: torch.Tensor, selection: str) -> None:
    synset = synset_of(volumes, 40, selection)
    assert synset.num_per_class == 3
    assert synset.mask.shape == (CLASSES, *SIZE)
    assert synset.mask.flatten(1).sum(dim=1).tolist() == [40] * CLASSES
    decoded, labels = synset.get(need_copy=True)
    assert labels.tolist() == [0] * 3 + [1] * 3
    originals = volumes.flatten(0, 1)
    for volume, label in zip(decoded, labels, strict=True):
        # Some volume of the class, low-pass filtered by the class's mask.
        spectra = fft.dctn(originals.double().numpy(), axes=(-3, -2, -1)) * synset.mask[label].numpy()
        filtered = fft.idctn(spectra, axes=(-3, -2, -1)).reshape(CLASSES, COUNT, -1)[label]
        assert np.abs(filtered - volume.flatten().numpy()).max(axis=1).min() < 1e-5


def test_the_rules_choose_among_all_three_axes(volumes: torch.Tensor) -> None:
    spectra = fft.dctn(volumes[:, :, 0].double().numpy(), axes=(-3, -2, -1))  # [C, 7, D, H, W]
    energy = fft.dctn(volumes[:, :, 0].double().numpy(), axes=(-3, -2, -1), norm="ortho")
    rank = sum(np.ix_(*[np.arange(side) / side for side in SIZE]))
    for selection, score in {
        "variance": spectra.var(axis=1, ddof=1),
        "energy": np.square(energy).mean(axis=1),
        "low": np.broadcast_to(-rank, (CLASSES, *SIZE)),
    }.items():
        mask = synset_of(volumes, 40, selection).mask.numpy()
        for kept, values in zip(mask, score, strict=True):
            assert values[kept].min() >= values[~kept].max()


def test_no_augmentation_is_due_to_volumes() -> None:
    assert dc_augment.strategy_for(NAME, "Conv3DNet") == ""
    assert dc_augment.strategy_for(NAME, "MLP") == ""


# -- the commands --------------------------------------------------------------------------------------------------

SHORT = [
    "--dataset", NAME, "--msz_per_channel", "2048", "--batch_real", "2", "--chunk", "20", "--Iteration", "2",
    "--eval_it", "0", "--num_eval", "1", "--epoch_eval_train", "0", "--device", "cpu", "--name", "run",
]  # fmt: skip


def test_volumes_are_distilled_drawn_and_evaluated(data_path: Path, tmp_path: Path, whole_run: None) -> None:
    result = call("DM/distill.py", *SHORT, "--data_path", data_path, "--save_path", tmp_path, "--export")
    assert result.code == 0, result.err
    folder = run_folder(tmp_path, NAME)
    options = json.loads((folder / "config.json").read_text())["options"]
    for key, value in {"model": "Conv3DNet", "dsa": False, "lr_freq": 1e6, "epoch_eval_train": 0}.items():
        assert options[key]["value"] == value
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["last"]["iteration"] == 2
    for key in ("strategy", "dc_strategy"):
        assert not summary["evaluation"].get(key)  # nothing is augmented
    assert Path(summary["picture"]) == folder / "images_000002.png"
    for name in ("images_000000.png", "images_000002.png", "masks.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 200

    synset, metadata = load_synset(folder / "synset_best.safetensors")
    assert (synset.im_size, synset.num_per_class) == ((SIDE,) * 3, 2)
    assert (metadata["mean"], metadata["std"]) == ([0.0], [1.0])
    images = torch.load(folder / "images_best.pt", weights_only=True)
    assert torch.equal(images, synset.get(need_copy=True)[0])
    assert images.shape == (20, 1, SIDE, SIDE, SIDE)
    labels = torch.load(folder / "labels_best.pt", weights_only=True)
    assert torch.equal(labels, torch.arange(10).repeat_interleave(2))

    evaluated = call(
        "DM/evaluate.py", "--synset", folder / "synset.safetensors", "--data_path", data_path, "--num_eval", 1,
        "--device", "cpu",
    )  # fmt: skip
    assert evaluated.code == 0, evaluated.err
    assert "% (1 x Conv3DNet)" in evaluated.out
    assert "is stored in the file" in evaluated.out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "ConvNetD3"], ["ConvNet takes two-dimensional images", "(16, 16, 16)"]),
        (["--eval_mode", "W"], ["--eval_mode W tests ConvNetW32", "two-dimensional"]),
        (["--dsa", "--model", "MLP"], ["two-dimensional"]),
        (["--zca"], ["2-D images", "16 x 16 x 16"]),
        (["--image_size", "32"], ["16 x 16 x 16", "--image_size"]),
        (["--data_path", "nowhere"], [ADDRESS, f"nowhere/{NAME}/{FILE}"]),
    ],
)
def test_what_volumes_cannot_have_is_refused(
    data_path: Path, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    result = call("DM/distill.py", *SHORT, "--data_path", data_path, "--save_path", tmp_path, *words)
    assert_refused(result, *parts)
