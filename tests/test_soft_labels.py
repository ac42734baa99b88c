"""Soft labels: kept in files, checked when they are read, and what networks are trained with."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.datasets import load_dataset
from common.pretrained.convert import Provenance, from_authors
from common.report.description import describe_set
from common.synset.authors import read_authors
from common.synset.file import export_pair, load_synset, save_synset, set_checksum
from common.synset.open import open_synset
from common.synset.soft_labels import SoftLabels
from common.synset.synset import SynSet, SynSetArgs
from common.system.errors import InputError
from common.system.files import opened_tensors
from common.training.evaluate import evaluate
from common.training.train import Batches, targets
from tests.authors_files import write_pair
from tests.command_line import assert_refused, call
from tests.synsets import started

META = {"dataset": "digits"}


def logits_of(labels, classes, sharp=2.0):
    noise = torch.randn(len(labels), classes, generator=torch.Generator().manual_seed(0))
    return noise + sharp * torch.nn.functional.one_hot(labels, classes)


def digits_set():
    train, test = load_dataset("digits")
    synset = SynSet(SynSetArgs(1, 10, (8, 8), "cpu", 1, 16, 1.0, 0.5))
    synset.init(train, train.labels, train.class_indices)
    return synset, test


@pytest.mark.parametrize("kind", ["probabilities", "logits"])
def test_a_file_keeps_them_and_says_so(tmp_path, kind):
    synset = started()
    logits = logits_of(synset.labels, 4)
    synset.soft_labels = SoftLabels(logits if kind == "logits" else logits.softmax(dim=1), kind)
    path = save_synset(synset, tmp_path / "set.safetensors", META)
    read, metadata = load_synset(path)
    assert torch.equal(read.soft_labels.values, synset.soft_labels.values)
    assert (read.soft_labels.kind, metadata["soft_labels"], metadata["format_version"]) == (kind, kind, 4)
    assert torch.allclose(read.soft_labels.probabilities(), logits.softmax(dim=1), atol=1e-6)
    assert describe_set(metadata)["labels"] == f"soft, {kind} of every class"
    assert f"soft, {kind}" in call("common/report/__main__.py", "show", path, "--output", tmp_path / "pictures").out
    assert save_synset(read, tmp_path / "again.safetensors", metadata).read_bytes() == path.read_bytes()


def test_files_without_them_are_as_before(tmp_path):
    path = save_synset(started(), tmp_path / "set.safetensors", META | {"soft_labels": "logits"})
    synset, metadata = load_synset(path)
    assert synset.soft_labels is None
    assert "soft_labels" not in metadata
    assert metadata["format_version"] == 2
    assert "labels" not in describe_set(metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:-1], r"soft labels of the shape \[15, 4\], and \[16, 4\] is needed"),
        (lambda p: p[:, :3], r"soft labels of the shape \[16, 3\], and \[16, 4\] is needed"),
        (lambda p: p.flatten(), r"soft labels of the shape \[64\]"),
        (lambda p: p / 0, "soft labels that are not finite"),
        (lambda p: p * 1.01, r"rows that do not add up to 1 \(off by up to 0.01\)"),
        (lambda p: p + torch.tensor([2.0, -2.0, 0, 0]), "with negative numbers"),
        (lambda p: p.long(), "no floating-point tensor"),
    ],
)
def test_damaged_ones_are_refused(tmp_path, change, message):
    synset = started()
    good = logits_of(synset.labels, 4).softmax(dim=1)
    synset.soft_labels = SoftLabels(change(good), "probabilities")
    with pytest.raises(InputError, match=message):
        save_synset(synset, tmp_path / "set.safetensors", META)
    # What another program wrote is looked at when it is read.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.synset.soft_labels._SLACK", 1e9)
        patch.setattr("common.synset.file.checked", lambda values, kind, *_: SoftLabels(values.contiguous(), kind))
        path = save_synset(synset, tmp_path / "set.safetensors", META)
    with pytest.raises(InputError, match=message):
        load_synset(path)


def test_half_precision_is_near_enough(tmp_path):
    synset = started()
    synset.soft_labels = SoftLabels(logits_of(synset.labels, 4).softmax(dim=1).half(), "probabilities")
    read = load_synset(save_synset(synset, tmp_path / "set.safetensors", META))[0]
    assert torch.allclose(read.soft_labels.probabilities().sum(dim=1), torch.ones(16), atol=1e-6)


def test_labels_that_their_version_or_metadata_deny_are_refused(tmp_path):
    synset = started()
    synset.soft_labels = SoftLabels(logits_of(synset.labels, 4), "logits")
    path = save_synset(synset, tmp_path / "set.safetensors", META)
    with opened_tensors(path) as file:
        told = json.loads(file.metadata()["fred"])
    tensors = load_file(path)
    del told["checksum"]
    for changed, kept in (
        (told | {"format_version": 2}, tensors),
        ({key: value for key, value in told.items() if key != "soft_labels"}, tensors),
        (told, {key: value for key, value in tensors.items() if key != "soft_labels"}),
    ):
        text = json.dumps(changed | {"checksum": set_checksum(changed, kept)})
        save_file(kept, path, {"fred": text})
        with pytest.raises(InputError, match="soft labels, or none, against its format version"):
            load_synset(path)
    changed = told | {"soft_labels": "guesses"}
    save_file(tensors, path, {"fred": json.dumps(changed | {"checksum": set_checksum(changed, tensors)})})
    with pytest.raises(InputError, match="has \"guesses\" for 'soft_labels', and 'probabilities' or"):
        load_synset(path)


# -- the authors' files -------------------------------------------------------------------------------------------


def soft_pair(folder, labels, images=None):
    """A pair whose labels file holds this tensor [N, C]."""
    images = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(1)) if images is None else images
    path = write_pair(folder, images, torch.arange(len(labels)))
    torch.save(labels, folder / "labels_best.pt")
    return path, images


def test_the_authors_labels_may_be_soft(tmp_path):
    classes = torch.tensor([2, 0, 1, 1, 0, 2])
    soft = (3 * logits_of(classes, 3, sharp=9.0)).softmax(dim=1)
    path, images = soft_pair(tmp_path, soft.double())
    found = read_authors(path)
    order = classes.argsort(stable=True)
    assert torch.equal(found.labels, classes[order])
    assert torch.equal(found.images, images[order])
    assert torch.allclose(found.soft_labels.values, soft[order])
    synset, metadata = open_synset(str(path))
    assert metadata["soft_labels"] == "probabilities"
    assert torch.allclose(synset.soft_labels.probabilities(), soft[order])
    results = tmp_path / "res_x.pt"
    torch.save({"data": [[(images, soft)]], "accs_all_exps": {}}, results)
    assert torch.allclose(read_authors(results).soft_labels.values, soft[order])


def test_a_teacher_may_err(tmp_path):
    """The most likely classes are unequal in number: the file's order tells the class, as the authors have it."""
    soft = torch.full((6, 3), 0.1) + 0.7 * torch.eye(3)[[0, 0, 0, 1, 2, 2]]
    path, images = soft_pair(tmp_path, soft)
    found = read_authors(path)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(found.images, images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.eye(3)[[0, 1, 2, 0, 1]], "5 images of 3 classes, which is not as many of each"),
        (torch.eye(3)[[0, 1, 2]] * 4, "if they are logits, give --soft_labels logits"),
        (torch.eye(3)[[0, 1, 2]] / 0, "not finite"),
        (torch.eye(3, dtype=torch.long), "holds no labels"),
    ],
)
def test_the_authors_soft_labels_are_checked(tmp_path, labels, message):
    path, _ = soft_pair(tmp_path, labels)
    with pytest.raises(InputError, match=message):
        read_authors(path)


def test_logits_are_said_by_a_flag(tmp_path):
    logits = logits_of(torch.arange(3), 3, sharp=9.0)
    path, images = soft_pair(tmp_path, logits)
    found = read_authors(path, soft_labels="logits")
    assert torch.equal(found.soft_labels.values, logits)
    assert torch.allclose(found.soft_labels.probabilities(), logits.softmax(dim=1))
    write_pair(tmp_path / "hard", images, torch.arange(3))
    with pytest.raises(InputError, match="numbers of classes and no soft labels: leave out --soft_labels logits"):
        read_authors(tmp_path / "hard" / "images_best.pt", soft_labels="logits")


def test_conversion_and_export_keep_them(tmp_path):
    logits = logits_of(torch.arange(3), 3, sharp=9.0)
    path, images = soft_pair(tmp_path / "theirs", logits)
    authors = read_authors(path, soft_labels="logits")
    synset, metadata = from_authors(authors, Provenance(soft_labels="logits"), as_pixels=True)
    ours = save_synset(synset, tmp_path / "set.safetensors", metadata)
    assert load_synset(ours)[1]["soft_labels"] == "logits"
    back = read_authors(export_pair(load_synset(ours)[0], tmp_path)[0])
    assert torch.allclose(back.images, images)
    assert torch.allclose(back.soft_labels.values, logits.softmax(dim=1))


# -- training -----------------------------------------------------------------------------------------------------


def test_networks_are_trained_with_them(tmp_path):
    synset, test = digits_set()
    quick = {"model": "ConvNetD1W16", "networks": 2, "epochs": 3, "lr": 0.05, "progress": False}
    images, labels = synset.get(need_copy=True)
    hard = evaluate(synset, test, **quick)
    synset.soft_labels = SoftLabels(logits_of(labels, 10), "logits")
    soft = evaluate(synset, test, **quick)
    assert soft["accuracies"] != hard["accuracies"]
    assert evaluate((images, synset.soft_labels.probabilities()), test, **quick) == soft
    # Certainty is the number of a class.
    certain = torch.nn.functional.one_hot(labels, 10).float()
    assert evaluate((images, certain), test, **quick)["mean"] == pytest.approx(hard["mean"], abs=0.01)
    assert torch.equal(targets(Batches(images, labels, certain), torch.tensor([3])), certain[3:4])
    with pytest.raises(InputError, match="take the softmax if they are logits"):
        evaluate((images, certain * 3), test, **quick)
    # The file, by the command.
    about = {"dataset": "digits", "network": "ConvNetD1W16", "mean": list(test.mean), "std": list(test.std)}
    about["evaluation"] = {"epochs": 3, "lr": 0.05, "batch": 256, "strategy": "color_crop_cutout_flip_scale_rotate"}
    file = save_synset(synset, tmp_path / "set.safetensors", about)
    before = hashlib.blake2b(file.read_bytes()).digest()
    output = tmp_path / "result.json"
    for more in ([], ["--networks_at_once", 2], ["--augmentation", "mixup"]):
        result = call("DM/evaluate.py", "--synset", file, "--num_eval", 2, "--device", "cpu", "--output", output, *more)
        assert result.code == 0, result.err
        assert "2 x ConvNetD1W16" in result.out
        assert "soft labels)" in result.out
        written = json.loads(output.read_text())
        assert written["soft_labels"] == "logits"
        if not more:
            assert written["accuracies"] == soft["accuracies"]
    assert hashlib.blake2b(file.read_bytes()).digest() == before
    refused = call("DM/evaluate.py", "--synset", file, "--soft_labels", "logits", "--device", "cpu")
    assert_refused(refused, "--soft_labels says what the authors' files hold", "leave it out")
