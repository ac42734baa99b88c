"""A finished run believes nothing that lies in its folder: what is lost is made again, or the run is refused."""

import json
import os
import shutil

import pytest

from tests.command_line import SHORT, assert_refused, call, run_folder

WORDS = ["--Iteration", "4", "--eval_it", "2", "--num_eval", "1", "--epoch_eval_train", "1"]
SETS = ("synset.safetensors", "synset_best.safetensors")

pytestmark = pytest.mark.usefixtures("one_thread")


def distil(path, *flags):
    return call("DM/distill.py", *SHORT, *WORDS, *flags, "--save_path", path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs of different seeds."""
    path = tmp_path_factory.mktemp("finished")
    for seed in (0, 1):
        result = distil(path / str(seed), "--seed", seed)
        assert result.code == 0, result.err
    return path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished / "0", tmp_path / "copy")


def left(folder):
    """What programs read of a run: sets and metrics byte for byte, the summary but for time and place."""
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("seconds", "distillation_seconds", "evaluation_seconds", "peak_memory_bytes", "file", "picture"):
        summary.pop(key)
    return summary, *((folder / name).read_bytes() for name in (*SETS, "metrics.jsonl"))


def best_is_last(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return summary["best_on_test"]["iteration"] == summary["last"]["iteration"]


DAMAGE = {
    "deleted": lambda path, other: path.unlink(),
    "emptied": lambda path, other: path.write_bytes(b""),
    "halved": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path, other: path.write_bytes(os.urandom(300)),
    "one bit": lambda path, other: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "of another run": lambda path, other: shutil.copy(other / path.name, path),
    "a table": lambda path, other: path.write_bytes(b"{}"),
    "deeply nested": lambda path, other: path.write_bytes(b"[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*SETS, "summary.json", "metrics.jsonl"])
def test_a_file_that_is_not_the_runs_is_made_again_or_refused(finished, copy, name, damage):
    folder = run_folder(copy)
    before = left(folder)
    DAMAGE[damage](folder / name, run_folder(finished / "1"))
    result = distil(copy)
    if name == "metrics.jsonl":
        assert_refused(result, "metrics.jsonl is missing, or not what the run wrote", "--resume never")
    elif name == SETS[1] and not best_is_last(run_folder(finished / "0")):
        assert_refused(result, "synset_best.safetensors is missing, damaged or of another run", "--resume never")
    else:
        assert result.code == 0, result.err
        if (name, damage) != ("summary.json", "deleted"):  # then it is a run that has not finished
            assert f"{name} in {folder}: missing, damaged or of another run; made again" in result.out
        assert left(folder) == before
        assert "is finished" in distil(copy).out


@pytest.mark.parametrize("checkpoints", [False, True])
def test_all_results_of_another_run_are_no_result(finished, copy, checkpoints):
    """Each is whole by itself, and its checksums beside it fit."""
    there, here = run_folder(finished / "1"), run_folder(copy)
    names = [*SETS, "summary.json", "metrics.jsonl", "checksums.json"]
    for name in names + (["checkpoint.pt", "checkpoint_previous.pt"] if checkpoints else []):
        shutil.copy(there / name, here / name)
    assert_refused(distil(copy), "has the results of another run than its config.json says")
    (here / "summary.json").unlink()
    if checkpoints:
        assert_refused(distil(copy), "no readable checkpoint")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"identity": 3}', '{"content": 3, "identity": {}}', None])
def test_a_configuration_that_is_none_is_refused(copy, content):
    file = run_folder(copy) / "config.json"
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    assert_refused(distil(copy), "config.json", "restore the file, give another --name")


def test_a_configuration_with_a_flipped_bit_is_written_again(copy):
    """One in what does not tell runs apart, such as a source."""
    folder = run_folder(copy)
    file = folder / "config.json"
    text = file.read_text()
    file.write_text(text.replace('"flag"', '"fmag"', 1))
    assert file.read_text() != text
    result = distil(copy)
    assert result.code == 0, result.err
    assert "config.json" in result.out
    assert "damaged" in result.out
    assert "fmag" not in file.read_text()
    assert "is finished" in distil(copy).out


def test_the_best_set_is_made_again_where_the_checkpoint_has_it(finished, copy):
    """Here with a single evaluation, which is the last and the best."""
    words = ["--Iteration", "0", "--save_path", copy, "--name", "one"]
    assert call("DM/distill.py", *SHORT, *words).code == 0
    folder = run_folder(copy, name="one")
    before = left(folder)
    (folder / SETS[1]).unlink()
    assert call("DM/distill.py", *SHORT, *words).code == 0
    assert left(folder) == before


def test_without_a_checkpoint_nothing_is_made_again(copy):
    folder = run_folder(copy)
    for name in ("checkpoint.pt", "checkpoint_previous.pt", "synset.safetensors"):
        (folder / name).unlink()
    assert_refused(distil(copy), "synset.safetensors", "for there is no checkpoint", "--resume never")


def test_pictures_and_page_are_no_reason_to_refuse(copy):
    folder = run_folder(copy)
    for path in (*folder.glob("*.png"), *folder.glob("report.html"), folder / "log.txt"):
        path.unlink(missing_ok=True)
    result = distil(copy)
    assert result.code == 0
    assert "is finished" in result.out


def test_a_run_that_was_killed_before_its_checksums_finishes(copy):
    folder = run_folder(copy)
    before = left(folder)
    (folder / "checksums.json").unlink()
    assert distil(copy).code == 0
    assert left(folder) == before
    assert (folder / "checksums.json").exists()


def older(folder):
    """Make a finished run look as versions without checksums left it."""
    (folder / "checksums.json").unlink()
    for name in ("summary.json", "config.json"):
        content = json.loads((folder / name).read_text())
        content.pop("content")
        (folder / name).write_text(json.dumps(content))


def test_a_run_of_an_older_version_is_believed_with_a_line(copy):
    folder = run_folder(copy)
    older(folder)
    result = distil(copy)
    assert result.code == 0
    assert "finished by a version that kept no checksums: its files are believed" in result.out
    assert "it is taken to be of the 1437 + 360 images" in result.out
    again = distil(copy)
    assert "taken to be of" not in again.out  # it has gained the fingerprint


@pytest.mark.parametrize("damage", ["deleted", "emptied", "halved", "garbage", "a table"])
@pytest.mark.parametrize("name", ["synset.safetensors", "summary.json"])
def test_what_cannot_be_read_is_not_believed_of_an_older_version_either(finished, copy, name, damage):
    folder = run_folder(copy)
    before = left(folder)
    older(folder)
    if (name, damage) == ("summary.json", "deleted"):
        return  # an unfinished run
    DAMAGE[damage](folder / name, run_folder(finished / "1"))
    assert distil(copy).code == 0
    assert left(folder) == before


def test_the_set_that_was_best_so_far_is_checked_when_a_run_goes_on(finished, copy):
    """Otherwise it would be given a checksum in the end."""
    folder = run_folder(copy)
    for name in ("summary.json", "checksums.json"):
        (folder / name).unlink()
    shutil.copy(run_folder(finished / "1") / SETS[1], folder / SETS[1])
    result = distil(copy)
    if best_is_last(run_folder(finished / "0")):
        assert result.code == 0
    else:
        assert_refused(result, "synset_best.safetensors is missing, damaged or of another run")


@pytest.mark.usefixtures("copy")
def test_a_page_that_is_missing_is_written(copy, monkeypatch):
    written = []
    monkeypatch.setattr("common.runs.output.write_run_report", written.append)
    folder = run_folder(copy)
    (folder / "report.html").unlink(missing_ok=True)
    assert distil(copy).code == 0
    assert written == [folder]
