"""The authors' files are read whatever their layout, and what else they may hold is refused, and never run."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.synset.authors import is_authors, read_authors
from common.system.errors import InputError
from tests.authors_files import synthetic, write_pair, write_results
from tests.bit_flips import assert_noticed


@pytest.fixture(scope="module")
def whole():
    """(images, labels) of two classes, eight images each."""
    return synthetic(k=8).get(need_copy=True)


def assert_read(found, images, labels):
    assert torch.equal(found.images, images)
    assert torch.equal(found.labels, labels)
    assert found.images.dtype == torch.float32
    assert found.labels.dtype == torch.int64
    assert found.images.is_contiguous()
    assert (found.num_classes, found.num_per_class, found.channels, found.im_size) == (2, 8, 1, (8, 8))


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", "best"), ("FreD_ipc1#", "best"), ("", "1000"), ("images#", "best")]
)
@pytest.mark.parametrize("given", ["images", "labels"])
def test_a_pair_is_read_by_either_file(tmp_path, whole, prefix, suffix, given):
    write_pair(tmp_path, *whole, prefix, suffix)
    found = read_authors(tmp_path / f"{prefix}{given}_{suffix}.pt")
    assert_read(found, *whole)
    assert found.kind == "pair"
    assert found.accuracies is None
    assert [file.name for file in found.files] == [f"{prefix}{what}_{suffix}.pt" for what in ("images", "labels")]


@pytest.mark.parametrize("vico", [False, True])
def test_results_of_both_nestings(tmp_path, whole, vico):
    accuracies = {"ConvNetD3": [np.float64(0.5), np.float64(0.25)], "AlexNet": [np.float32(0.125)]}
    path = write_results(tmp_path / "res_DM_CIFAR10_ConvNetD3_2ipc.pt", whole, vico=vico, accuracies=accuracies)
    found = read_authors(path)
    assert_read(found, *whole)
    assert (found.kind, found.files) == ("results", (path,))
    assert found.accuracies == {"ConvNetD3": [0.5, 0.25], "AlexNet": [0.125]}
    assert {type(value) for values in found.accuracies.values() for value in values} == {float}


@pytest.mark.parametrize("vico", [False, True])
def test_the_experiment_can_be_chosen(tmp_path, whole, vico):
    images, labels = whole
    path = write_results(tmp_path / "res.pt", whole, (images + 1, labels), vico=vico, accuracies={"ConvNet": []})
    assert torch.equal(read_authors(path).images, images + 1)
    assert torch.equal(read_authors(path, exp=0).images, images)
    assert read_authors(path).accuracies is None  # as ImageNet-abcde leaves the lists
    with pytest.raises(InputError, match="no experiment 2: there are 2"):
        read_authors(path, exp=2)


def test_tensors_of_a_gpu(tmp_path, whole, monkeypatch):
    # What torch.save writes for a tensor of the first GPU: the same bytes, tagged with its name.
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = write_results(tmp_path / "res_imagenet-a_ConvNet_1ipc.pt", whole, accuracies={"ConvNet": []})
    assert b"cuda:0" in path.read_bytes()
    assert_read(read_authors(path), *whole)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_before_and_since_version_2(tmp_path, whole, module):
    path = tmp_path / "res.pt"
    content = {"data": [[whole]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}
    torch.save(
        content, path, pickle_module=SimpleNamespace(Pickler=_pickler(module), dumps=pickle.dumps, __name__="pickle")
    )
    assert module.encode() in path.read_bytes()
    assert read_authors(path).accuracies == {"ConvNet": [0.5]}


def _pickler(module):
    """A pickler that says this of where the constructor of numpy's numbers is."""

    class Pickler(pickle._Pickler):  # the one in Python, whose parts can be replaced
        def save_global(self, obj, name=None):
            if obj is np.float64(0).__reduce__()[0]:
                self.write(pickle.GLOBAL + f"{module}\nscalar\n".encode())
                self.memoize(obj)
            else:
                super().save_global(obj, name)

    return Pickler


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64])
def test_labels_of_any_width(tmp_path, whole, dtype):
    images, labels = whole
    path = write_pair(tmp_path, images, labels)
    torch.save(labels.to(dtype), tmp_path / "labels_best.pt")
    torch.save(images.double().requires_grad_(), path)
    found = read_authors(path)
    assert_read(found, images, labels)
    assert not found.images.requires_grad


def test_images_that_are_not_grouped_are_grouped_in_their_order(tmp_path, whole):
    images, labels = whole
    mixed = torch.arange(16).view(2, 8).T.flatten()  # 0 8 1 9 ...
    assert_read(read_authors(write_pair(tmp_path, images[mixed], labels[mixed])), images, labels)


# -- what is refused ---------------------------------------------------------------------------------------------


class Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["images", "labels", "inside results", "plain pickle", "old torch"])
def test_code_in_a_file_is_named_and_does_not_run(tmp_path, whole, place):
    path, ran = write_pair(tmp_path, *whole), tmp_path / "ran"
    evil = Evil(str(ran))
    if place in ("images", "labels"):
        torch.save(evil, tmp_path / f"{place}_best.pt")
    elif place == "inside results":
        path = write_results(tmp_path / "res.pt", whole, accuracies={"ConvNet": [np.float64(0.5), evil]})
    elif place == "old torch":
        torch.save([evil], path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(evil))
    with pytest.raises(InputError) as refusal:
        read_authors(path)
    assert not ran.exists()
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert ("mkdir" in str(refusal.value)) == (place != "plain pickle")
    if place == "images":  # what the usual way to read it would have done
        torch.load(path, weights_only=False)
        assert ran.exists()


def nan(images, labels):
    images = images.clone()
    images[3, 0, 2, 2] = float("nan")
    return images, labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "images_best.pt has images that are not finite"),
        (lambda x, y: (x[:-1], y[:-1]), r"classes of unequal size \(8, 7 images\)"),
        (lambda x, y: (x, y * 2), r"classes of unequal size \(8, 0, 8 images\)"),
        (lambda x, y: (x, y + 10**15), "classes of unequal size"),
        (lambda x, y: (x[:-1], y), "15 images, .*labels_best.pt 16 labels: they do not belong together"),
        (lambda x, y: (x, y - 1), "labels that are not numbers of classes"),
        (lambda x, y: (x, y + 0.5), "labels that are not numbers of classes"),
        (lambda x, y: (x, y * float("nan")), "labels that are not numbers of classes"),
        (lambda x, y: (x, torch.eye(16).long()), "labels_best.pt holds no labels"),
        (lambda x, y: (x, list(range(16))), "labels_best.pt holds no labels"),
        (lambda x, y: (x.flatten(1), y), r"images of shape \[16, 64\]"),
        (lambda x, y: (x[:0], y[:0]), r"images of shape \[0, 1, 8, 8\]"),
        (lambda x, y: (x.to(torch.uint8), y), "holds no images: they are a tensor of floating-point numbers"),
        (lambda x, y: ([x], y), "is not a synthetic set of the authors"),
    ],
    ids=lambda value: None if callable(value) else value[:30],
)
def test_pairs_that_are_none(tmp_path, whole, change, message):
    images, labels = change(*whole)
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(labels, tmp_path / "labels_best.pt")
    with pytest.raises(InputError, match=message) as refusal:
        read_authors(tmp_path / "images_best.pt")
    assert "\n" not in str(refusal.value)


def test_a_partner_that_is_missing_or_cannot_be_found(tmp_path, whole):
    path = write_pair(tmp_path, *whole, prefix="FreD_ipc1#")
    path.rename(tmp_path / "mine.pt")
    with pytest.raises(InputError, match="neither 'images' nor 'labels'"):
        read_authors(tmp_path / "mine.pt")
    with pytest.raises(InputError, match=r"has no FreD_ipc1#images_best\.pt beside it"):
        read_authors(tmp_path / "FreD_ipc1#labels_best.pt")
    with pytest.raises(InputError, match="there is no file"):
        read_authors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, "no experiment"),
        ({"data": None}, "no experiment"),
        ({"data": [[]]}, "no pair of images and labels"),
        ({"data": [torch.zeros(2, 1, 4, 4)]}, "no pair of images and labels"),
        ({"model": {}}, "not a synthetic set of the authors"),
        ({"data": [[torch.zeros(2, 1, 4, 4), torch.arange(2)]], "accs_all_exps": [0.5]}, "not lists of numbers"),
        ({"data": [[torch.zeros(2, 1, 4, 4), torch.arange(2)]], "accs_all_exps": {"A": ["x"]}}, "not lists of numbers"),
        ({"data": [[torch.zeros(2, 1, 4, 4), torch.arange(2)]], "accs_all_exps": {"A": [10**400]}}, "not lists of num"),
        ({"data": [[1, 2]]}, "holds no images"),
    ],
)
def test_results_that_are_none(tmp_path, content, message):
    torch.save(content, tmp_path / "res.pt")
    with pytest.raises(InputError, match=message):
        read_authors(tmp_path / "res.pt")


def test_files_that_are_not_whole(tmp_path, whole):
    path = write_pair(tmp_path, *whole)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:10], b"", b"not a file of torch"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"images_best.pt cannot be read \(.*copy it again") as refusal:
            read_authors(path)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damaged", ["images_best.pt", "labels_best.pt", "res.pt"])
def test_no_flipped_bit_changes_what_is_read(tmp_path, whole, damaged):
    path = write_pair(tmp_path, *whole)
    if damaged == "res.pt":
        path = write_results(tmp_path / damaged, whole, accuracies={"ConvNet": [np.float64(0.5)]})

    def read():
        found = read_authors(path)
        return found.images, found.labels, found.accuracies

    assert_noticed(tmp_path / damaged, read, 300)


def test_a_flipped_bit_of_an_image_is_told_of(tmp_path, whole):
    path = write_pair(tmp_path, *whole)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK", content.index(b"data/0")) - 9] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"images_best.pt cannot be read \(Bad CRC-32 .*data/0'\).*copy it again"):
        read_authors(path)


def test_files_of_torch_without_checksums_are_believed(tmp_path, whole):
    images, labels = whole
    for name, tensor in (("images", images), ("labels", labels)):
        torch.save(tensor, tmp_path / f"{name}_best.pt", _use_new_zipfile_serialization=False)
    assert_read(read_authors(tmp_path / "images_best.pt"), images, labels)


def test_names():
    assert is_authors("FreD_ipc1#images_best.pt")
    assert not is_authors("set.safetensors")
