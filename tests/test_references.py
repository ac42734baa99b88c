"""What a set is compared with: trained once, by the same protocol, and kept by the content of the dataset."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch

from common import recipes
from common.config.evaluate_options import EvaluateOptions
from common.datasets import load_dataset
from common.report import scores
from common.synset.file import save_synset
from common.synset.packed import PackedArgs, PackedSet
from common.synset.soft_labels import SoftLabels
from common.synset.synset import SynSet, SynSetArgs
from common.training import references
from common.training.evaluate import evaluate
from tests.command_line import assert_refused, call

EVALUATION = {"epochs": 4, "lr": 0.05, "batch": 256, "strategy": "color_crop"}


def saved(folder, synset=None, **changed):
    train, test = load_dataset("digits")
    if synset is None:
        synset = SynSet(SynSetArgs(1, 10, (8, 8), "cpu", 2, 16, 1.0, 0.5))
        synset.init(train, train.labels, train.class_indices)
    about = {"dataset": "digits", "network": "ConvNetD1W16", "mean": list(test.mean), "std": list(test.std)}
    return save_synset(synset, folder / "set.safetensors", about | {"evaluation": EVALUATION} | changed)


def evaluated(file, *flags, num_eval=2):
    output = file.with_name("result.json")
    result = call(
        "DM/evaluate.py", "--synset", file, "--num_eval", num_eval, "--device", "cpu", "--output", output, *flags
    )
    assert result.code == 0, result.err
    with output.with_suffix(".csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    return SimpleNamespace(out=result.out, err=result.err, rows=rows, **json.loads(output.read_text()))


def test_random_images_are_the_baseline_of_the_same_budget_and_protocol(cache, tmp_path):
    file = saved(tmp_path)
    found = evaluated(file, "--references", "random")
    flags = ["--dataset", "digits", "--ipc", 2, "--model", "ConvNetD1W16", "--epoch_eval_train", 4, "--lr_net", 0.05]
    flags += ["--batch_train", 256, "--dsa_strategy", "color_crop", "--num_eval", 2, "--device", "cpu"]
    assert call("DM/evaluate.py", "--baseline", "random", *flags, "--output", tmp_path / "b.json").code == 0
    random = found.references["random"]["ConvNetD1W16"]
    assert random["accuracies"] == json.loads((tmp_path / "b.json").read_text())["accuracies"]
    gain = 100 * (found.mean - random["mean"])
    assert found.scores == {"ConvNetD1W16": {"gain": pytest.approx(gain)}}
    assert f"(2 random real images per class); gain {gain:+.2f} points; evaluation" in found.out
    assert [float(row["gain"]) for row in found.rows] == [pytest.approx(gain)] * 2
    assert float(found.rows[0]["random"]) == pytest.approx(100 * random["mean"])


def test_what_was_trained_is_kept(cache, tmp_path, monkeypatch):
    file = saved(tmp_path)
    first = evaluated(file, "--references", "random,full", "--full_epochs", 2)
    assert "full: 2 epochs of 1,437 images for 2 x ConvNetD1W16 take about " in first.out
    assert sorted(path.name.partition("-")[0] for path in cache.glob("reference-*")) == ["reference"] * 2
    trained = []
    real = references.evaluate_pool
    monkeypatch.setattr(
        references, "evaluate_pool", lambda *given, **named: trained.append(named["title"]) or real(*given, **named)
    )
    again = evaluated(file, "--references", "random,full", "--full_epochs", 2)
    assert trained == []
    assert "take about" not in again.out
    assert "2 kept from before" in again.out
    for what in ("random", "full"):
        kept = again.references[what]["ConvNetD1W16"]
        assert kept == first.references[what]["ConvNetD1W16"] | {"kept": 2}
    # One more network is one more, and another protocol, seed or budget has others.
    more = evaluated(file, "--references", "random", num_eval=3)
    assert more.references["random"]["ConvNetD1W16"]["accuracies"][:2] == kept_accuracies(first)
    assert more.references["random"]["ConvNetD1W16"]["kept"] == 2
    for flags in (["--epoch_eval_train", 1], ["--seed", 1], ["--augmentation", "mixup"], ["--model", "MLP"]):
        other = evaluated(file, "--references", "random", *flags)
        assert next(iter(other.references["random"].values()))["kept"] == 0


def kept_accuracies(result):
    return result.references["random"]["ConvNetD1W16"]["accuracies"]


def test_a_damaged_cache_is_made_again(cache, tmp_path):
    file = saved(tmp_path)
    first = evaluated(file, "--references", "random")
    (kept,) = cache.glob("reference-*")
    kept.write_bytes(kept.read_bytes()[:-40] + b"x" * 40)
    again = evaluated(file, "--references", "random")
    assert kept_accuracies(again) == kept_accuracies(first)
    assert again.references["random"]["ConvNetD1W16"]["kept"] == 0


def test_all_images_are_trained_on_for_the_epochs_of_an_expert(cache, tmp_path):
    file, (train, test) = saved(tmp_path), load_dataset("digits")
    found = evaluated(file, "--references", "full", num_eval=1)
    full = found.references["full"]["ConvNetD1W16"]
    assert full["epochs"] == recipes.find("TM", "digits", 2).values["train_epochs"] == 13
    alone = evaluate(train, test, model="ConvNetD1W16", networks=1, epochs=12, lr=0.05, dsa_strategy="color_crop",
                     progress=False)  # fmt: skip
    assert full["accuracies"] == alone["accuracies"]
    share = 100 * found.mean / full["mean"]
    assert f"(all real images, 13 epochs); the set has {share:.1f} % of it" in found.out


def test_scores_need_their_references(cache, tmp_path):
    file = saved(tmp_path)
    found = evaluated(
        file, "--references", "random,full,unaugmented", "--full_epochs", 2, "--models", "ConvNetD1W16,MLP"
    )
    for name in ("ConvNetD1W16", "MLP"):
        means = {what: each[name]["mean"] for what, each in found.references.items()}
        assert list(means) == ["random", "full", "random_unaugmented", "unaugmented"]
        syn, told = found.networks[name]["mean"], found.scores[name]
        assert told["lrs"] == scores.label_robust_score(syn, syn, means["random"], means["full"])
        plain = means["unaugmented"], means["random_unaugmented"]
        assert told["ars"] == scores.augmentation_robust_score(syn, means["random"], *plain)
        row = next(row for row in found.rows if row["network"] == name)
        assert (float(row["lrs"]), float(row["ars"])) == (told["lrs"], told["ars"])
        assert f"label-robust score {told['lrs']:.2f} %, augmentation-robust score {told['ars']:.2f} %" in found.out
    train, test = load_dataset("digits")
    images = SynSet(SynSetArgs(1, 10, (8, 8), "cpu", 2, 16, 1.0, 0.5))
    images.init(train, train.labels, train.class_indices)
    alone = evaluate(images, test, model="MLP", networks=2, epochs=4, lr=0.05, augmentation="none", progress=False)
    assert found.references["unaugmented"]["MLP"]["accuracies"] == alone["accuracies"]


def test_soft_labels_have_no_scores(cache, tmp_path):
    train, _ = load_dataset("digits")
    synset = SynSet(SynSetArgs(1, 10, (8, 8), "cpu", 2, 16, 1.0, 0.5))
    synset.init(train, train.labels, train.class_indices)
    synset.soft_labels = SoftLabels(3.0 * torch.nn.functional.one_hot(synset.labels, 10), "logits")
    found = evaluated(saved(tmp_path, synset), "--references", "random,full", "--full_epochs", 1, num_eval=1)
    assert found.scores["ConvNetD1W16"].keys() == {"gain", "share_of_full"}


def test_references_of_a_baseline(cache, tmp_path):
    flags = ["--baseline", "herding", "--coreset_epochs", 1, "--dataset", "digits", "--model", "MLP", "--num_eval", 1]
    flags += ["--epoch_eval_train", 2, "--device", "cpu", "--references", "random", "--output", tmp_path / "b.json"]
    assert call("DM/evaluate.py", *flags).code == 0
    assert "gain" in json.loads((tmp_path / "b.json").read_text())["scores"]["MLP"]


def test_a_reference_that_diverges_is_no_end(cache, tmp_path, monkeypatch):
    real = references.evaluate_pool

    def diverge(*given, on_accuracy, **named):
        real(*given, on_accuracy=lambda name, _: on_accuracy(name, None), **named)
        raise references.InputError("all 2 networks diverged")

    monkeypatch.setattr(references, "evaluate_pool", diverge)
    found = evaluated(saved(tmp_path), "--references", "random")
    assert found.references["random"]["ConvNetD1W16"]["diverged"] == 2
    assert found.scores == {"ConvNetD1W16": {}}
    assert "-, 2 diverged (2 random real images per class); evaluation" in found.out


def test_bits_that_are_no_whole_images_have_no_random_reference(cache, tmp_path):
    train, _ = load_dataset("digits")
    coded = PackedSet(PackedArgs(
        1, 10, (8, 8), "cpu", 0, 0, 0.03, 0.5, bits_per_class=2048 + 512, storage="coded", num_per_class=8,
    ))  # fmt: skip
    coded.init(train, train.labels, train.class_indices)
    file = saved(tmp_path, coded)
    refused = call("DM/evaluate.py", "--synset", file, "--references", "random", "--device", "cpu")
    assert_refused(refused, "2,560 bits per class, which is no whole number of images of 2,048 bits")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--references", "herding"], "--references has no 'herding': give some of random, full, unaugmented"),
        (["--full_epochs", 3], "--full_epochs is for --references full"),
        (["--references", "full", "--full_epochs", 0], "--full_epochs 0 is too small"),
        (["--references", "unaugmented"], "compared with random images: add random"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, told):
    assert_refused(call("DM/evaluate.py", "--baseline", "random", "--device", "cpu", *flags), told)
    assert EvaluateOptions(references="random, full").references_asked == ("random", "full")


def test_what_a_set_took_stands_beside_its_accuracy(cache, tmp_path):
    file = saved(tmp_path)
    plain = evaluated(file)
    assert plain.distillation_seconds is None
    assert plain.evaluation_seconds["ConvNetD1W16"] == pytest.approx(sum(plain.seconds["ConvNetD1W16"]))
    assert "distillation" not in plain.out
    (tmp_path / "summary.json").write_text('{"distillation_seconds": 7200.0}')
    assert "(2 x ConvNetD1W16); evaluation 0." in evaluated(file).out
    assert "s, distillation 2 h\n" in evaluated(file).out
    for text in ("[]", "{", '{"distillation_seconds": null}'):
        (tmp_path / "summary.json").write_text(text)
        assert evaluated(file).distillation_seconds is None


def test_whitened_images_have_references_too(cache, tmp_path):
    flags = ["--baseline", "random", "--dataset", "digits", "--zca", "True", "--model", "MLP", "--num_eval", 1]
    flags += ["--epoch_eval_train", 2, "--device", "cpu", "--references", "random", "--output", tmp_path / "b.json"]
    assert call("DM/evaluate.py", *flags).code == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["references"]["random"]["MLP"]["accuracies"] == found["accuracies"]  # of the same images
    plain = call("DM/evaluate.py", *[each for each in flags if each not in ("--zca", "True")])
    assert plain.code == 0
    assert json.loads((tmp_path / "b.json").read_text())["references"]["random"]["MLP"]["kept"] == 0
