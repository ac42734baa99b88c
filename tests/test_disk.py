"""A disk that refuses: no home folder, folders that cannot be listed, names of any bytes, no locks, no room."""

import ast
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from common.config.command_line import parse, parse_command
from common.config.experiment import read_experiment
from common.config.options import ClassMatchingOptions
from common.datasets import load_dataset
from common.disk import locks
from common.disk.kinds import foreign_kind
from common.disk.listing import entries, entry_kind, files_below, matching
from common.disk.paths import expanded, kind_of, resolved
from common.images.disk_cache import named_file
from common.report.show import ShowOptions
from common.schemas import door
from common.synset.open import open_synset
from common.system.command import exit_code
from common.system.errors import InputError
from common.system.files import check_regular, check_writable, checksum, load_torch, opened_tensors, write_json
from tests.command_line import SHORT, TINY, assert_refused, call, run_folder
from tests.conftest import ROOT
from tests.image_sets import make_folder

ROOMS = ("common", "DM", "DC", "TM", "3D-MNIST", "ImageNet-abcde", "corruption-exp", "reproduction")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
NO_LOCKS = [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP]


def make_images(root, classes=("a", "b"), prefix="image"):
    return make_folder(root, classes, (8, 8), 4, prefix=prefix)


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home folder, as in a container that is started with any number for a user."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "FRED_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


# -- paths ---------------------------------------------------------------------------------------------------------


def test_every_path_of_a_command_line_is_expanded(monkeypatch, tmp_path):
    """Shells leave the ~ of --save_path=~/runs alone. A name of a run is none of a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [*TINY, "--save_path=~/runs", "--data_path", "~", "--name", "~old", "--msz_per_channel=4", "--lr_freq=1"]
    options, _ = parse(ClassMatchingOptions, "DM", given)
    assert (options.save_path, options.data_path, options.name) == (f"{tmp_path}/runs", str(tmp_path), "~old")
    assert (
        parse_command({"show": ShowOptions, "more": ShowOptions}, "x", ["show", "~/a.safetensors"]).file
        == f"{tmp_path}/a.safetensors"
    )
    make_images(tmp_path / "images")
    train, _ = load_dataset("folder:~/images")
    assert train.name == f"folder:{tmp_path}/images"
    with pytest.raises(InputError, match=f"no synthetic set at {tmp_path}/none.safetensors"):
        open_synset("~/none.safetensors")


@pytest.mark.parametrize("flag", ["--save_path=~nosuch/x", "--data_path=~nosuch/x", "--dataset=folder:~nosuch/x"])
def test_a_path_of_nobody_is_refused(flag):
    told = "~nosuch/x is in the home folder of 'nosuch', and there is no such user: give the whole path, or ./~nosuch/x"
    assert_refused(call("DM/distill.py", *SHORT, flag), told)


def test_a_user_without_a_home_folder_is_told_what_to_set(homeless, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"~/x is in the home folder, and this user has none: set the variable HOME"):
        expanded("~/x")
    with pytest.raises(InputError, match="set the variable FRED_CACHE to a folder for them"):
        named_file("kind", ["name"])
    assert_refused(call("DM/distill.py", *SHORT, "--save_path", tmp_path), "set the variable FRED_CACHE")
    monkeypatch.setenv("FRED_CACHE", str(tmp_path / "cache"))
    assert call("DM/distill.py", *SHORT, "--save_path", tmp_path).code == 0


def test_only_one_module_expands_paths_and_one_lists_folders():
    """Elsewhere an error of the system would pass for a bug."""
    expanding, listing = {"expanduser", "home"}, {"scandir", "listdir", "iterdir", "glob", "rglob", "walk"}
    found = {}
    for file in FILES:
        tree = ast.walk(ast.parse(file.read_text()))
        found[file.relative_to(ROOT).as_posix()] = {each.attr for each in tree if isinstance(each, ast.Attribute)}
    assert {file for file, names in found.items() if names & expanding} == {"common/disk/paths.py"}
    assert {file for file, names in found.items() if names & listing} == {"common/disk/listing.py"}


# -- what lies in a folder -------------------------------------------------------------------------------------------


def test_what_is_no_file_is_never_opened(tmp_path, caplog):
    """A pipe named like an image would be waited for, for ever."""
    make_images(tmp_path)
    folder = tmp_path / "train" / "a"
    os.mkfifo(folder / "x.png")
    os.mkfifo(tmp_path / "train" / "y.png")
    (folder / "self").symlink_to("self")
    (folder / "nothing").symlink_to("nowhere")
    kinds = {entry.name: entry_kind(entry) for entry in entries(folder)}
    assert kinds.pop("x.png") == "special"
    assert kinds.pop("self") == kinds.pop("nothing") == "dangling"
    assert set(kinds.values()) == {"file"}
    assert len(matching(folder, "image?.png")) == len(list(files_below(folder))) == 4
    assert len(load_dataset(f"folder:{tmp_path}")[0]) == 8
    assert "2 linked to nothing (nothing, ...), 2 neither file nor folder (x.png, ...)" in caplog.text


@pytest.mark.parametrize("name", ["set.safetensors", "images_best.pt"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_set_is_a_file(tmp_path, make, name):
    make(tmp_path / name)
    told = "no synthetic set at" if name.startswith("set") else "there is no file"
    assert_refused(call("DM/evaluate.py", "--synset", tmp_path / name), f"{told} {tmp_path / name}")


def test_a_link_to_itself_is_nothing(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert kind_of(loop) == "nothing"
    assert resolved(loop) == loop
    with pytest.raises(InputError, match="loop is not a folder: give folder:PATH the folder"):
        load_dataset(f"folder:{loop}")


LONG = "n" * 300


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("DM/distill.py", [*SHORT, "--dataset", f"folder:/tmp/{LONG}"]),
        ("DM/distill.py", [*SHORT, "--save_path", f"/tmp/{LONG}"]),
        ("DM/distill.py", [*SHORT, "--dataset", "MNIST", "--data_path", f"/tmp/{LONG}"]),
        ("DM/distill.py", [*SHORT[:-1], LONG]),
        ("DM/evaluate.py", ["--synset", f"/tmp/{LONG}.safetensors"]),
        ("DM/evaluate.py", ["--synset", f"/tmp/{LONG}.pt"]),
        ("DM/evaluate.py", ["--baseline", "random", "--dataset", "digits", "--output", f"/tmp/{LONG}.json"]),
        ("TM/buffer.py", ["--dataset", "digits", "--buffer_path", f"/tmp/{LONG}"]),
        ("common/report/__main__.py", ["html", f"/tmp/{LONG}"]),
        ("common/pretrained/__main__.py", ["list", "--folder", f"/tmp/{LONG}"]),
    ],
)
def test_a_path_that_is_too_long_is_told(script, words):
    """And before anything is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.training.pool.train_and_test", None)
        assert_refused(call(script, *words), "File name too long")


def test_a_path_is_tried_before_it_is_written_to(tmp_path):
    """And what was made for the trial is gone."""
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    check_writable(tmp_path / "there/a.json", tmp_path / "a/b/c.json", tmp_path / "file")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "there"]
    refused = {
        "file/a.json": "a file is in the place of its folder; choose another folder",
        "there": "which is a directory",
        f"a/{LONG}": "File name too long; give a shorter name",
        f"a/b/{LONG}/c.json": "File name too long; give a shorter name",
    }
    for path, why in refused.items():
        with pytest.raises(InputError, match=rf"{path}.*{why}"):
            check_writable(tmp_path / path)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "file", tmp_path / "there"]


@pytest.mark.parametrize("where", ["train", "train/a"])
def test_a_folder_that_cannot_be_listed_is_told(tmp_path, monkeypatch, where):
    """Root may list everything."""
    make_images(tmp_path)
    scan = os.scandir

    def refuse(path):
        if str(path) == str(tmp_path / where):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    result = call("DM/distill.py", *SHORT, "--dataset", f"folder:{tmp_path}", "--recipe", "CIFAR10")
    assert_refused(result, f"cannot read {tmp_path / where}: Permission denied; change its permissions or give another")


def test_a_folder_that_may_not_be_looked_into_is_told(tmp_path, monkeypatch):
    look = os.stat

    def refuse(path, *rest, **more):
        if str(path).startswith(str(tmp_path / "closed")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path, *rest, **more)

    monkeypatch.setattr(os, "stat", refuse)
    file = tmp_path / "closed" / "set.safetensors"
    with pytest.raises(InputError, match=f"cannot read {file}: Permission denied"):
        open_synset(str(file))


# -- names -----------------------------------------------------------------------------------------------------------


def test_names_may_be_any_bytes(tmp_path, cache):
    """Those of the folder, classes and files: no UTF-8, control characters, letters that the font lacks."""
    classes = [os.fsdecode(b"caf\xe9"), "a\x1b[31m$\nb", "日本"]
    root = tmp_path / os.fsdecode(b"d\xff")
    make_images(root, classes, prefix=os.fsdecode(b"\xfe"))
    words = [*TINY, "--dataset", f"folder:{root}", "--validation_share", "0", "--msz_per_channel", "16"]
    words += ["--lr_freq", "1", "--Iteration", "1", "--num_eval", "1", "--epoch_eval_train", "0", "--name", "run"]
    words += ["--save_path", tmp_path]
    assert call("DM/distill.py", *words).code == 0
    folder = run_folder(tmp_path, dataset=os.fsdecode(b"folder-d\xff"))
    assert json.loads((folder / "config.json").read_text())["content"]["class_names"] == sorted(classes)
    assert open_synset(str(folder / "synset.safetensors"))[1]["class_names"] == sorted(classes)
    assert (folder / "report.html").is_file()
    again = call("DM/distill.py", *words)
    assert again.code == 0
    assert r"folder-d\udcff" in again.out.encode(errors="backslashreplace").decode()


def test_a_name_that_the_terminal_cannot_show_is_escaped():
    code = "from common.system.command import run_command\nrun_command(lambda: print('caf\\xe9 \\udcff \\u65e5'))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "caf\\xe9 \\udcff \\u65e5\n", "")


# -- a disk without locks, and a full one ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_disk_without_locks_is_told_once(tmp_path, monkeypatch, capsys, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    monkeypatch.setattr(locks, "_told", set())
    for name in (".lock", ".other.lock"):
        lock = locks.take_lock(tmp_path / name, "the folder", "--output")
        assert lock is not None
        lock.release()
    told = f"warning: the file system of the folder {tmp_path} has no locks"
    assert capsys.readouterr().err.count(told) == 1


def test_a_run_on_a_disk_without_locks_ends_as_ever(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    monkeypatch.setattr(locks, "_told", set())
    result = call("DM/distill.py", *SHORT, "--save_path", tmp_path)
    assert result.code == 0
    assert "has no locks, so nothing keeps a second process out of it: start only one" in result.err


def test_a_full_disk_is_told_by_the_log(tmp_path):
    folder = run_folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "log.txt").symlink_to("/dev/full")
    result = call("DM/distill.py", *SHORT, "--save_path", tmp_path)
    assert_refused(result, f"cannot write {folder / 'log.txt'}: No space left on device; free space and run again")


@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "config.json", "checkpoint.pt", "summary.json", ".lock"])
def test_a_folder_in_the_place_of_a_runs_file_is_told(tmp_path, name):
    (run_folder(tmp_path) / name).mkdir(parents=True)
    assert_refused(call("DM/distill.py", *SHORT, "--save_path", tmp_path), "")


@pytest.fixture
def no_waiting():
    """A test that opens a pipe would wait for ever."""

    def late(*_):
        raise AssertionError("something waits for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("no_waiting")
def test_a_pipe_in_the_place_of_a_file_is_never_opened(tmp_path):
    pipe = tmp_path / "x"
    os.mkfifo(pipe)
    told = "it is a pipe, a socket or a device, and no file"
    for read in (checksum, load_torch, lambda path: opened_tensors(path).__enter__()):
        with pytest.raises(OSError, match=told):
            read(pipe)
    for read in (lambda path: door.read_text(path, "restore it"), read_experiment):
        with pytest.raises(InputError, match=told):
            read(pipe)
    assert foreign_kind(pipe) is None
    check_regular(Path(os.devnull), device=True)
    with pytest.raises(OSError, match=told):
        check_regular(Path(os.devnull))


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("name", ["log.txt", "config.json"])
def test_a_pipe_in_the_place_of_a_runs_file_is_told(tmp_path, name):
    run_folder(tmp_path).mkdir(parents=True)
    os.mkfifo(run_folder(tmp_path) / name)
    result = call("DM/distill.py", *SHORT, "--save_path", tmp_path)
    assert_refused(result, f"{run_folder(tmp_path) / name}", "it is a pipe, a socket or a device, and no file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_disk_may_fail_at_any_call(capsys, number):
    def fail():
        raise OSError(number, os.strerror(number), "/there/file")

    assert exit_code(fail) == 2
    assert capsys.readouterr().err == (
        f"error: the file system refuses: {os.strerror(number)} for '/there/file'; put that right, and run the same "
        "command again\n"
    )


def test_an_error_that_is_not_the_disks_is_a_bug():
    def fail():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    with pytest.raises(ConnectionRefusedError):
        exit_code(fail)


@pytest.mark.parametrize(("to", "code", "told"), [("/dev/full", 2, "No space left on device"), ("closed", 141, "")])
def test_a_command_whose_output_cannot_be_written_says_so(to, code, told):
    program = "from common.system.command import run_command\nrun_command(lambda: print('text ' * 100000))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reader, writer = os.pipe()
    os.close(reader)
    with Path(to if to != "closed" else os.devnull).open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program], env=environment, check=False, text=True, stderr=subprocess.PIPE,
            stdout=writer if to == "closed" else full,
        )  # fmt: skip
    os.close(writer)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert told in ended.stderr
    assert ended.stderr.count("error: ") == (code == 2)


def test_json_keeps_names_of_any_bytes(tmp_path):
    write_json(tmp_path / "x.json", {"name": "\udcff é"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "name": "\\udcff é"\n}\n'
    assert json.loads((tmp_path / "x.json").read_text()) == {"name": "\udcff é"}
