"""Whatever the metadata of a file are, they are used or refused in one sentence that names the file."""

import ast
import json
import shutil
from functools import lru_cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.datasets import load_dataset
from common.experts.curve import suggest_max_start_epoch
from common.experts.folder import read_manifest, read_snapshots
from common.pretrained.drive import record
from common.pretrained.export import Export
from common.report.evaluated import read_result
from common.report.record import read_run
from common.report.seeds import named_runs
from common.robustness.conditions import Condition, Part, Target
from common.robustness.figures import baseline_errors
from common.runs.finished import how_far
from common.synset.file import load_synset, save_synset
from common.system.errors import InputError
from common.system.files import json_checksum
from reproduction.jobs import read_record, record_file
from reproduction.plan import Plan
from reproduction.results import row_of
from reproduction.tables import Cell
from tests.command_line import SHORT, assert_refused, call, run_folder
from tests.conftest import ROOT
from tests.mutations import answered, mutations
from tests.readers import content, opened, shown_on_a_page, used, with_metadata
from tests.synsets import started

OLD = ROOT / "tests/old_runs"
FIGURES = {"mean": 0.5, "std": 0.0, "n": 1, "accuracies": [0.5]}
HARDWARE = {"device": "cpu", "cpu": "a CPU", "threads": 1, "torch": "2.6"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    path = tmp_path_factory.mktemp("finished")
    result = call("DM/distill.py", *SHORT, "--save_path", path)
    assert result.code == 0, result.err
    return path


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """The same; to open it asks nothing of the hardware, and waits for no disk."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr("common.report.run_page.svg_uri", lambda draw: "")
    monkeypatch.setattr("common.runs.folder.describe_hardware", lambda device: HARDWARE)
    monkeypatch.setattr("common.runs.folder.code_version", lambda: "1")
    return run_folder(shutil.copytree(finished, tmp_path / "copy"))


def assert_answered(content, file, write, readers, skip=(), least=0.5):
    """Every change is used or refused by every reader; at least this share of them is refused by the first one."""
    refused = total = 0
    for what, text in mutations(content, skip):
        write(text)
        for number, read in enumerate(readers):
            try:
                is_refused = answered(read, file.parent)
            except Exception as error:
                raise AssertionError(f"{what}: {read}") from error
            refused += is_refused and number == 0
        total += 1
    assert refused >= least * total


# -- synthetic sets ----------------------------------------------------------------------------------------------


def _hashable(given):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


@pytest.mark.parametrize("old", [False, True])
def test_metadata_of_a_set(finished, tmp_path, capsys, monkeypatch, old):
    monkeypatch.setattr("common.training.evaluation_setup.content_of", lambda *data: content())
    load = lru_cache(load_dataset)
    monkeypatch.setattr("common.training.evaluation_setup.load_dataset", lambda *a, **b: load(*a, **_hashable(b)))
    source = OLD / "finished/TM.safetensors" if old else run_folder(finished) / "synset.safetensors"
    tensors, metadata = load_file(source), load_synset(source)[1]
    metadata.pop("step_size", None)
    metadata |= {"source": {"residual": 0.1}, "tried_n": {"1": 0.5}, "zca": {"eps": 0.1, "fingerprint": None}}
    metadata |= {"files": {"kind": "png", "name": "x", "bytes": 3, "bits_per_class": 9}, "validation": {"share": 0.1}}
    file = tmp_path / "set.safetensors"

    def write(text):
        with_metadata(file, tensors, text)

    assert_answered(metadata, file, write, [lambda: used(file)], skip=("content",) if old else ())


def test_every_required_key_is_missed(tmp_path):
    file = save_synset(started(), tmp_path / "set.safetensors", {})
    tensors, metadata = load_file(file), load_synset(file)[1]
    for key in sorted(metadata.keys() - {"format", "architecture"}):
        with_metadata(file, tensors, json.dumps({name: value for name, value in metadata.items() if name != key}))
        with pytest.raises(InputError, match=r"lacks 'ipc'|" + f"lacks '{key}'|format version None"):
            load_synset(file)


def test_a_sentence_names_file_key_value_and_what_is_expected(tmp_path):
    file = save_synset(started(), tmp_path / "set.safetensors", {"evaluation": {"epochs": 3}})
    tensors, metadata = load_file(file), load_synset(file)[1]
    cases = {
        "'-1' is no number": ("ipc", -1, "has -1 for 'ipc', and a number of at least 0 is expected"),
        "a type": ("ipc", "1", "has \"1\" for 'ipc', and a whole number is expected"),
        "within": ("evaluation", {"epochs": 1.5}, "has 1.5 for 'evaluation.epochs', and a whole number is expected"),
        "later": ("evaluation", {"swa": 1}, "has 'evaluation.swa', which this version does not know"),
        "a choice": ("resize", "fit", "has \"fit\" for 'resize', and 'crop' or 'squash' is expected"),
        "names": ("class_names", ["a"], "has a list of 1 for 'class_names', and a list of 4 is expected"),
        "escapes": ("dataset", {"\x1b[2J": 1}, "has a table of 1 for 'dataset', and text is expected"),
    }
    for key, value, message in cases.values():
        with_metadata(file, tensors, json.dumps(metadata | {key: value}))
        with pytest.raises(InputError) as error:
            load_synset(file)
        assert str(error.value).startswith(f"{file} {message}"), error.value
        assert "copy it again" in str(error.value)
    with_metadata(file, tensors, json.dumps(metadata | {"of a later version": {"x": [1]}}))
    assert load_synset(file)[1]["of a later version"] == {"x": [1]}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mean": torch.zeros(3)}, "has a Tensor for 'mean'"),
        ({"mean": torch.zeros(3).numpy()}, "has a ndarray for 'mean'"),
        ({"accuracy": {"mean": float("nan")}}, "has nan for 'accuracy.mean'"),
        ({"evaluation": {"lr": float("inf")}}, "has inf for 'evaluation.lr'"),
        ({"x": {(1, 2): 3}}, "has a key that is a list of 2 for 'x'"),
        ({"mean": 0.5}, "has 0.5 for 'mean', and a list is expected"),
        ({"seed": 10**30}, "a whole number of more than 18 digits for 'seed'"),
    ],
)
def test_what_cannot_be_read_is_not_written(tmp_path, metadata, message):
    with pytest.raises(InputError, match=r"what .*set\.safetensors is to say of its set") as error:
        save_synset(started(), tmp_path / "set.safetensors", metadata)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_metadata_that_contain_themselves(tmp_path):
    metadata = {"x": {}}
    metadata["x"]["x"] = metadata
    with pytest.raises(InputError, match="more than 100"):
        save_synset(started(), tmp_path / "set.safetensors", metadata)


def test_export_uses_what_has_passed(finished, tmp_path, capsys):
    """By structure, but of the keys that it uses alone: each export takes 10 ms."""
    source = run_folder(finished) / "synset.safetensors"
    tensors, metadata = load_file(source), load_synset(source)[1]
    kept = ("mean", "std", "class_names", "dataset", "zca", "evaluation", "objective")
    file = tmp_path / "set.safetensors"

    def write(text):
        with_metadata(file, tensors, json.dumps(metadata | json.loads(text)) if "[[[" not in text else text)

    def export():
        Export(str(file), to=f"pt:{tmp_path / 'out.pt'}", check=False, device="cpu").run()

    assert_answered({key: metadata[key] for key in kept}, file, write, [export])


# -- runs --------------------------------------------------------------------------------------------------------


def test_config_and_summary(copy):
    (copy / "synset.safetensors").unlink()
    for name in ("config.json", "summary.json"):
        content = json.loads((copy / name).read_text())
        options = content.get("options", {})
        for key in options.keys() - {"dataset", "ipc", "name", "Iteration", "msz_per_channel"}:  # all are alike
            del options[key]
        if "identity" in content:
            content["identity"] = {"ipc": 1}
        assert_answered(content, copy / name, (copy / name).write_text, [lambda: shown_on_a_page(copy)], least=0.4)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "checksums.json"])
def test_a_run_goes_on_or_says_why_not(copy, capsys, name):
    for kept in ("summary.json", "checksums.json"):
        shutil.copy(copy / kept, copy.parent / kept)
    content = json.loads((copy / name).read_text())
    some = {key: content[key] for key in ("content", "budget") if key in content}
    if "identity" in content:
        some["identity"] = {key: content["identity"][key] for key in ("ipc", "dataset")}
    for what, text in mutations(some):
        (copy / name).write_text(json.dumps({**content, **json.loads(text)}) if "[[[" not in text else text)
        try:
            answered(opened, copy, copy.parents[3])
        except Exception as error:
            raise AssertionError(what) from error
        for kept in ("summary.json", "checksums.json"):
            shutil.copy(copy.parent / kept, copy / kept)


def test_metrics(copy):
    (copy / "synset.safetensors").unlink()
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    loss, evaluation = (next(line for line in lines if key in line) for key in ("loss", "evaluation"))

    def write(text):
        (copy / "metrics.jsonl").write_text(f"{json.dumps(evaluation)}\n{text}\n{json.dumps(loss)}\n")

    for line in (loss, evaluation):
        assert_answered(line, copy / "metrics.jsonl", write, [lambda: shown_on_a_page(copy)], least=0.3)
    for text in ("3", "[]", "null", "true", '"x"'):
        write(text)
        assert answered(read_run, copy, copy)


def test_checkpoints(copy, capsys):
    """Their numbers have a checksum, which does not hold what was saved so."""
    path = copy / "checkpoint.pt"
    (copy / "checkpoint_previous.pt").unlink()
    (copy / "summary.json").unlink()
    (copy / "checksums.json").unlink()
    whole = torch.load(path, weights_only=True)

    def walk(content, loc=()):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content[:1]):
            yield (*loc, key)
            if isinstance(value, dict | list) and key not in ("identity", "content"):
                yield from walk(value, (*loc, key))

    for loc in list(walk(whole)):
        if loc[:4] == ("state", "synset", "optimizer", "param_groups"):
            continue  # which torch compares
        for value in (None, "x", -1, 10**30, torch.zeros(2), {}, ...):
            content = (
                torch.load(path.with_suffix(".kept"), weights_only=True)
                if path.with_suffix(".kept").exists()
                else whole
            )
            parent = content = _copied(content)
            for key in loc[:-1]:
                parent = parent[key]
            if value is ...:
                del parent[loc[-1]]
            else:
                parent[loc[-1]] = value
            torch.save(content, path)
            try:
                answered(opened, copy, copy.parents[3])
                how_far(copy, 2)
            except Exception as error:
                raise AssertionError(f"{loc} {value}") from error


def _copied(content):
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    return list(map(_copied, content)) if isinstance(content, list) else content


def test_a_checkpoint_of_more_iterations_than_the_run_has(copy):
    """The loop would not end."""
    path = copy / "checkpoint.pt"
    for name in ("checkpoint_previous.pt", "summary.json", "checksums.json"):
        (copy / name).unlink()
    content = torch.load(path, weights_only=True)
    content["state"]["iteration"] = 1_000_000
    torch.save(content, path)
    with pytest.raises(InputError, match="no readable checkpoint"):
        opened(copy.parents[3])


# -- experts -----------------------------------------------------------------------------------------------------


def test_a_manifest(tmp_path):
    (source,) = (OLD / "buffers").glob("*/*/manifest.json")
    content = json.loads(source.read_text())
    file = tmp_path / "manifest.json"
    content["parameters"] = {"x": [1]}

    def write(text):
        if content["format_version"] == 2 and "[[[" not in text:
            text = json.dumps({**json.loads(text), "checksum": json_checksum(json.loads(text))})
        file.write_text(text)

    assert_answered(content, file, write, [lambda: read_manifest(tmp_path)])
    content["format_version"] = 2
    assert_answered({"format_version": 2, "mean": [0.5], "zca": None}, file, write, [lambda: read_manifest(tmp_path)])


def test_an_expert(tmp_path):
    content = {
        "format": "fred-experts",
        "format_version": 2,
        "accuracies": {"1": 0.5, "2": None},
        "checksums": ["a"] * 3,
    }
    file = tmp_path / "expert_0000.safetensors"

    def write(text):
        save_file({"trajectory": torch.zeros(3, 2)}, file, metadata={"fred": text})

    readers = [lambda: list(read_snapshots(file, [0])), lambda: suggest_max_start_epoch(tmp_path, 1)]
    assert_answered(content, file, write, readers)


# -- results -----------------------------------------------------------------------------------------------------


def test_results(tmp_path):
    file = tmp_path / "x.json"
    target = Target("CIFAR10-C", {Condition("fog", 1): Part(10, lambda: None)})
    tested = {
        "target": "CIFAR10-C", "target_stats": "own", "images": {"fog 1": 10},
        "conditions": [{"kind": "fog", "level": 1, "mean": 0.5}],
    }  # fmt: skip
    baseline_errors(_written(file, tested), target, "own")
    assert_answered(tested, file, file.write_text, [lambda: baseline_errors(file, target, "own")], least=0.7)
    (tmp_path / "seeds.json").write_text("{}")
    seeds = tmp_path / "seeds.json"
    assert_answered({"runs": {"0": "a"}}, seeds, seeds.write_text, [lambda: named_runs(tmp_path)])
    result = {
        **FIGURES, "network": "ConvNet", "evaluation": {"epochs": 1, "lr": 0.1, "batch": 2, "strategy": ""},
        "seconds": {"ConvNet": [1.0]}, "version": "1", "hardware": HARDWARE,
    }  # fmt: skip
    assert_answered(result, file, file.write_text, [lambda: read_result(file)])
    (tmp_path / "images_best.pt").write_text("x")
    sums = tmp_path / "sha256.json"
    assert_answered({"sha256": {"images_best.pt": "a"}}, sums, sums.write_text, [lambda: record(tmp_path)])


def _written(file, content):
    file.write_text(json.dumps(content))
    return file


def test_records(tmp_path):
    cell, plan = Cell("dm-lowres", "DM", "MNIST", 1), Plan(scale="smoke", output=str(tmp_path))
    file = record_file(cell, plan)
    file.parent.mkdir(parents=True)
    content = {
        "state": "failed", "seconds": 3.0, "interruptions": 1, "commands": ["a"], "reason": "x", "script": None,
        "images": "", "begun_by": "1", "seeds": None,
    }  # fmt: skip
    readers = [lambda: read_record(cell, plan), lambda: row_of(cell, plan)]
    assert_answered(content, file, file.write_text, readers)


# -- nothing is handled elsewhere ----------------------------------------------------------------------------------

# Where one of these errors is of something else than metadata: files of images and tensors, text that was given, and
# what other libraries raise. A new line here says what it is of.
HANDLED = {
    "common/codec/coder.py": "the entropy coder",
    "common/images/disk_cache.py": "the cache, which is made again",
    "common/costs/meter.py": "arguments of operations that have no hash",
    "common/datasets/hub.py": "the query of a name",
    "common/disk/paths.py": "a path with a null byte",
    "common/datasets/imagenet_devkit.py": "a MATLAB file",
    "common/experts/folder.py": "the tensors of a file",
    "common/pretrained/found.py": "arrays of others",
    "common/robustness/arrays.py": "a NumPy file",
    "common/runs/track.py": "wandb",
    "common/schemas/door.py": "the door itself",
    "common/synset/authors.py": "the authors' files",
    "common/synset/base.py": "an argument that is no whole number",
    "common/synset/file.py": "the tensors of a file",
    "common/system/devices.py": "the C library",
}


def test_after_the_door_nothing_handles_errors_of_metadata():
    names = {"KeyError", "TypeError", "ValueError", "LookupError", "AttributeError", "RecursionError"}
    found = set()
    files = [*ROOT.glob("*.py"), *(ROOT / "common").rglob("*.py"), *(ROOT / "reproduction").rglob("*.py")]
    for path in [*files, *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                caught = {each.id for each in ast.walk(node.type) if isinstance(each, ast.Name)}
                found |= {path.relative_to(ROOT).as_posix()} if caught & names else set()
    assert found == HANDLED.keys()


def test_a_damaged_file_ends_a_command_with_one_sentence(copy):
    (copy / "config.json").write_text('{"objective": "DM", "options": {"dataset": 3}}')
    result = call("common/report/__main__.py", "html", copy)
    assert_refused(result, "config.json has 3 for 'options.dataset', and a table is expected")
