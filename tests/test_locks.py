"""Locks on files: one process at a time, among processes of this version and of those before, which call flock."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from common.disk.locks import take_lock, wait_for_lock
from common.system.errors import InputError
from common.system.files import write_json
from tests.conftest import ROOT

fcntl = pytest.importorskip("fcntl")

HOLDERS = {
    "this version": """
        from pathlib import Path
        from common.disk.locks import take_lock, wait_for_lock
        lock = take_lock(Path(path), "the folder", "--output")
        assert lock is not None
    """,
    "the version before": """
        import fcntl
        lock = open(path, "w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    """,
}


def take(path):
    return take_lock(path, "the folder", "--output")


@pytest.fixture
def start(tmp_path):
    """Start a process that takes the lock and holds it until it is ended."""
    started = []

    def holder(kind):
        code = "\n".join(line.strip() for line in HOLDERS[kind].splitlines())
        words = [sys.executable, "-c", f"import sys; path = sys.argv[1]\n{code}\nprint('held', flush=True); input()"]
        process = subprocess.Popen(
            [*words, tmp_path / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield holder
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", HOLDERS)
def test_another_process_is_excluded_until_it_is_killed(tmp_path, start, kind):
    process = start(kind)
    assert take(tmp_path / ".lock") is None
    with (tmp_path / ".lock").open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = take(tmp_path / ".lock")
    assert lock is not None
    lock.release()


def test_a_process_of_the_version_before_is_excluded(tmp_path):
    """Within one process, too: locks are of the file as it was opened."""
    held = take(tmp_path / "made" / ".lock")
    assert held is not None
    assert take(tmp_path / "made" / ".lock") is None
    with (tmp_path / "made" / ".lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.release()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert take(tmp_path / "made" / ".lock") is None
    assert (tmp_path / "made" / ".lock").exists()  # removed, it would let in who made a new one beside who has this


def test_another_thread_may_let_go(tmp_path):
    held = take(tmp_path / ".lock")
    thread = threading.Thread(target=held.release)
    thread.start()
    thread.join()
    take(tmp_path / ".lock").release()


def test_waiting_is_told_once_it_takes_long(tmp_path, monkeypatch, capsys):
    held, seconds = take(tmp_path / ".lock"), []

    def sleep(duration):
        seconds.append(duration)
        if len(seconds) == 9:
            held.release()

    monkeypatch.setattr("common.disk.locks.time.sleep", sleep)
    monkeypatch.setattr("common.disk.locks.time.monotonic", lambda: float(len(seconds)))
    lock = wait_for_lock(tmp_path / ".lock", "the folder", "--output")
    assert lock is not None
    assert take(tmp_path / ".lock") is None
    lock.release()
    assert capsys.readouterr().err == f"waiting for another process, which is at work in the folder {tmp_path}\n"
    assert len(seconds) == 9
    wait_for_lock(tmp_path / ".lock", "the folder", "--output").release()
    assert wait_for_lock(tmp_path / ".lock", "the folder", "--output", needed=lambda: False) is None
    assert not capsys.readouterr().err


def test_what_cannot_be_written_is_told_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write to the folder .*file: .+; choose another --output"):
        take(tmp_path / "file" / ".lock")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(FileLock, "_acquire", refuse)  # root may write everywhere
    with pytest.raises(InputError, match=f"cannot write to the folder {tmp_path}: Permission denied"):
        take(tmp_path / ".lock")


def test_a_directory_in_place_of_a_file_is_to_be_removed(tmp_path):
    for name in ("results.json", ".lock"):
        (tmp_path / name).mkdir()
    told = "cannot write {}, which is a directory: remove that directory"
    with pytest.raises(InputError) as refused:
        write_json(tmp_path / "results.json", {})
    assert str(refused.value) == told.format(tmp_path / "results.json")
    with pytest.raises(InputError) as refused:
        take(tmp_path / ".lock")
    assert str(refused.value) == told.format(tmp_path / ".lock")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "results.json"]
    (tmp_path / "link.json").symlink_to(tmp_path / "results.json")
    write_json(tmp_path / "link.json", {})  # over the link, not into what it leads to
    assert (tmp_path / "link.json").read_text() == "{}\n"
    assert not any((tmp_path / "results.json").iterdir())


def test_windows_opens_no_folder(tmp_path, monkeypatch):
    """A written file is on the disk there without its folder being flushed."""

    def refuse(path, *rest):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", refuse)
    write_json(tmp_path / "file.json", {})
    assert (tmp_path / "file.json").read_text() == "{}\n"
