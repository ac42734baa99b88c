"""`make test-faults` in short: one case of every kind, and that the counting itself notices what it is for."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.faults.__main__ import chosen, parsed
from tests.faults.events import counted, disturbed
from tests.faults.kind import REFUSED, RIGHT, Different, Fault, Kind, assert_same, judged
from tests.faults.run import run_kind, tell
from tests.forks import CRASHED, Child, forked

KINDS = ("kill", "signal", "two", "lock", "disk", "bit", "option", "file")


def test_a_case_of_every_kind_that_takes_a_second():
    words = ["--seed", "4", "--share", "0.0001", "--jobs", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["seed", "4"]
    assert [(row[0], row[1], row[4:6]) for row in rows[2:]] == [
        *((name, "1", ["0", "0"]) for name in KINDS), ("all", str(len(KINDS)), ["0", "0"]),
    ]  # fmt: skip


# -- what is a fault ----------------------------------------------------------------------------------------------


def ended(code, err="", out=""):
    return SimpleNamespace(code=code, err=err, out=out)


def test_one_sentence_and_exit_code_2_or_success():
    assert judged(ended(0)) == RIGHT
    assert judged(ended(2, "warning: x\nerror: this is wrong: do that")) == REFUSED
    for result in (
        ended(2), ended(2, "error: a\nerror: b"), ended(1, "error: a"), ended(-9), ended(CRASHED, "KeyError: 'x'"),
        ended(0, "Traceback (most recent call last)\nKeyError: 'x'"), ended(2, out="error: not on stderr"),
    ):  # fmt: skip
        with pytest.raises(Fault):
            judged(result)


def test_other_results_are_different(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"loss": 1, "seconds": 2}\n')
    (tmp_path / "set.safetensors").write_bytes(b"x")
    before = {"metrics.jsonl": [{"loss": 1}], "set.safetensors": b"x"}
    assert_same(before, tmp_path, "nothing")
    with pytest.raises(Different, match=r"after a kill these are not as without it: set\.safetensors"):
        assert_same({**before, "set.safetensors": b"y"}, tmp_path, "a kill")
    with pytest.raises(Different, match="lost"):
        assert_same({**before, "lost": b""}, tmp_path, "a kill")


# -- how cases are run --------------------------------------------------------------------------------------------

CASES = {
    0: (lambda: RIGHT, None),
    1: (lambda: REFUSED, None),
    2: (lambda: {}["a"], "KeyError: 'a' (test_faults.py:"),
    3: (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process of the case ended by SIGKILL"),
    4: (lambda: time.sleep(60), "the process of the case takes longer than 1 s"),
    5: (lambda: (_ for _ in ()).throw(Different("a set")), "a set"),
    6: (lambda: RIGHT, None),
}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("jobs", [1, 3])
def test_every_case_is_counted_whatever_it_does(tmp_path, capsys, monkeypatch, jobs):
    monkeypatch.chdir(tmp_path)
    kind = Kind("x", len(CASES), lambda folder, numbers: None, lambda prepared, number, draws: CASES[number][0](), 1)
    tally = run_kind("x", kind, range(len(CASES)), 3, tmp_path, jobs)
    assert tally.outcomes == {RIGHT: 2, REFUSED: 1, "fault": 3, "different": 1}
    told, shown = dict(tally.faults), capsys.readouterr().out
    assert told.keys() == {number for number, (_, fault) in CASES.items() if fault}
    for number, fault in told.items():
        assert fault.startswith(CASES[number][1])
        assert f"\n    {tell(3, 'x', number)}\n" in shown


def test_a_repeated_case_is_the_case():
    options = parsed(tell(5, "kill", 17).split()[3:])
    assert (options.seed, options.only, options.number) == (5, ["kill"], 17)
    with pytest.raises(SystemExit) as refused:
        parsed(["--number", "3"])
    assert refused.value.code == 2


def test_a_share_is_drawn_by_the_seed():
    kind = Kind("x", 1000, None, None)
    assert chosen(kind, 1, 0) == list(range(1000))
    assert len(chosen(kind, 0.01, 0)) == 10
    assert chosen(kind, 0.01, 0) == chosen(kind, 0.01, 0) != chosen(kind, 0.01, 1)
    assert len(chosen(kind, 1e-9, 0)) == 1


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_events_are_the_changes_of_files_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def work():
        (tmp_path / "a").write_text("x")
        (tmp_path / "a").read_text()
        (tmp_path / "a").rename("b")
        (tmp_path / "b").unlink()

    assert forked(lambda: counted(work)) == 3
    stopped = Child(lambda: disturbed(work, 2, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    assert stopped.until_stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    stopped.send(signal.SIGCONT)
    stopped.wait()
    assert not list(tmp_path.iterdir())
    assert forked(lambda: disturbed(work, 3, lambda: os.kill(os.getpid(), signal.SIGKILL))).code == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
