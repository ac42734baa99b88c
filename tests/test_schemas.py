"""Whatever the metadata of a file are, they are used or refused in one sentence that names the file."""

import ast
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from common.report.record import read_run
from common.runs.finished import how_far
from common.synset.file import load_synset, save_synset
from common.system.errors import InputError
from tests.command_line import SHORT, assert_refused, call, run_folder
from tests.conftest import ROOT
from tests.mutations import answered
from tests.readers import lighten, opened, with_metadata
from tests.subjects import SUBJECTS
from tests.synsets import started

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
    lighten(monkeypatch)
    return run_folder(shutil.copytree(finished, tmp_path / "copy"))


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_key_with_every_kind_of_value(finished, tmp_path, monkeypatch, capsys, name):
    """Each change is used or refused by every reader; at least some share of them is refused by the first one."""
    lighten(monkeypatch)
    subject = SUBJECTS[name](finished, tmp_path)
    refused = total = 0
    for what, text in subject.changes():
        try:
            refused += subject.answer(text)[0]
        except Exception as error:
            raise AssertionError(what) from error
        total += 1
    assert total
    assert refused >= subject.least * total


# -- synthetic sets ----------------------------------------------------------------------------------------------


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


# -- runs --------------------------------------------------------------------------------------------------------


def test_lines_of_metrics_that_are_no_tables(copy):
    for text in ("3", "[]", "null", "true", '"x"'):
        (copy / "metrics.jsonl").write_text(f"{text}\n")
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
