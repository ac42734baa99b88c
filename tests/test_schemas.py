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

# Where one of these errors, or any, is of something else than metadata: files of images and tensors, text that was
# given, and what other libraries raise. A new line here says what it is of.
HANDLED = {
    "benchmarks/standin.py StandIn._by_shape": "arguments of operations that have no hash",
    "common/codec/coder.py Reader.fill": "the entropy coder",
    "common/config/experiment.py read_experiment": "the door of experiments, which are TOML",
    "common/costs/forecast.py needs_of": "a network or an objective of one's own",
    "common/costs/meter.py _key": "arguments of operations that have no hash",
    "common/datasets/hub.py _fetch": "the library datasets",
    "common/datasets/hub.py parse": "the query of a name",
    "common/datasets/imagenet_devkit.py _of_devkit": "a MATLAB file",
    "common/datasets/imagenet_devkit.py _of_table": "a CSV file of others",
    "common/datasets/imagenet_devkit.py _read": "an archive",
    "common/datasets/stored_names.py _names": "the library datasets",
    "common/disk/paths.py kind_of": "a path with a null byte",
    "common/experts/folder.py _opened": "the tensors of a file",
    "common/experts/replay.py _read_replay": "a pickle of others",
    "common/images/disk_cache.py read": "the cache, which is made again",
    "common/pretrained/drive.py download": "the library gdown",
    "common/pretrained/found.py _numbers": "arrays of others",
    "common/pretrained/found.py read_tensors": "arrays of others",
    "common/robustness/arrays.py _mapped": "a NumPy file",
    "common/runs/finished.py read_checkpoint": "the pickle, which is then compared with its schema",
    "common/runs/folder.py Run.__init__": "whatever it is, it is raised again",
    "common/runs/track.py _Wandb.__init__": "wandb",
    "common/schemas/door.py _if_given": "the door itself",
    "common/schemas/door.py check": "the door itself",
    "common/schemas/door.py parse": "the door itself",
    "common/schemas/door.py read_text": "the door itself",
    "common/synset/authors.py _accuracies": "the authors' files",
    "common/synset/authors.py _load": "the authors' files",
    "common/synset/base.py _whole": "an argument that is no whole number",
    "common/synset/file.py _read": "the tensors of a file",
    "common/synset/hub.py hub_errors": "the library huggingface_hub",
    "common/system/files.py check_regular": "a path with a null byte",
    "kit/stages.py Kit._run": "whatever it is, it is raised again",
    "common/system/command.py _run_as_one_of_several": "a bug, whose traceback is printed",
    "common/system/devices.py can_compile": "the compiler",
    "common/system/devices.py lacks": "a device without float64",
    "common/system/devices.py total_memory": "the C library",
    "common/system/scripts.py run_script": "whatever it is, it is raised again",
    "reproduction/jobs.py CellJob.__call__": "whatever it is, it is raised again",
    "reproduction/jobs.py CellJob._run": "whatever it is, it is raised again",
    "reproduction/sweep.py run_here": "a bug, whose traceback is printed",
}
OF_METADATA = frozenset({
    "KeyError", "TypeError", "ValueError", "LookupError", "IndexError", "AttributeError", "RecursionError",
    "OverflowError", "ArithmeticError", "UnicodeError", "UnicodeDecodeError", "JSONDecodeError", "ValidationError",
    "UNREADABLE", "Exception", "BaseException", "everything",
})  # fmt: skip


def handled(node, where=""):
    """The functions that handle an error of metadata, by `except` or `suppress`."""
    for each in ast.iter_child_nodes(node):
        named = isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if errors_of(each) & OF_METADATA:
            yield where
        yield from handled(each, f"{where}.{each.name}".strip(".") if named else where)


def errors_of(node):
    """The names of the errors that a node handles; "everything" if it does not say which."""
    if isinstance(node, ast.ExceptHandler):
        kinds = [node.type or ast.Name("everything")]
    elif isinstance(node, ast.Call) and "suppress" in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
        kinds = node.args
    else:
        return set()
    return {getattr(each, "id", getattr(each, "attr", "")) for kind in kinds for each in ast.walk(kind)}


def test_after_the_door_nothing_handles_errors_of_metadata():
    places = (
        "*.py",
        "common",
        "reproduction",
        "kit",
        "benchmarks",
        "DM",
        "DC",
        "TM",
        "ImageNet-abcde",
        "3D-MNIST",
        "corruption-exp",
    )
    files = {path for each in places for path in (ROOT.glob(each) if "*" in each else (ROOT / each).rglob("*.py"))}
    found = {
        f"{path.relative_to(ROOT).as_posix()} {where}".strip()
        for path in files
        for where in handled(ast.parse(path.read_text()))
    }
    assert found == HANDLED.keys()


@pytest.mark.parametrize(
    "line",
    [
        "except KeyError: pass", "except (OSError, TypeError): pass", "except json.JSONDecodeError: pass",
        "except Exception: pass", "except: pass", "except (*UNREADABLE, OSError): pass",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line):
    assert list(handled(ast.parse(f"class A:\n def f():\n  try: g()\n  {line}"))) == ["A.f"]
    assert list(handled(ast.parse("def f():\n with contextlib.suppress(OSError, ValueError): g()"))) == ["f"]
    assert not list(handled(ast.parse("def f():\n try: g()\n except (OSError, InputError): pass")))


def test_a_damaged_file_ends_a_command_with_one_sentence(copy):
    (copy / "config.json").write_text('{"objective": "DM", "options": {"dataset": 3}}')
    result = call("common/report/__main__.py", "html", copy)
    assert_refused(result, "config.json has 3 for 'options.dataset', and a table is expected")
