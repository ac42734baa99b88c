"""In a log file progress is a line now and then; on a terminal it is the bar that tqdm draws."""

import contextlib
import io
import sys

import pytest
from tqdm import tqdm

from common.system import progress
from common.system.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds, to be moved on by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Progress, "_last_line", float("-inf"))
    monkeypatch.delenv(progress.ON_TERMINAL, raising=False)
    return now


@contextlib.contextmanager
def logged():
    """What is written to stderr, as lines, once the block is left."""
    lines = []
    with contextlib.redirect_stderr(io.StringIO()) as log:
        yield lines
    lines += log.getvalue().split("\n")[:-1]


def test_a_log_has_one_line_for_a_phase(clock):
    with logged() as lines, Progress(total=600, desc="  evaluation", unit="batch", leave=False) as bar:
        for loss in range(600):
            bar.update()
            bar.set_postfix(loss=loss)
            tqdm.write("something else", file=io.StringIO())
    (line,) = lines
    assert line.startswith("evaluation: 100%| 600/600 batch [")
    assert "\r" not in line


def test_a_log_has_one_line_a_minute(clock):
    with logged() as lines, Progress(total=200, desc="long", mininterval=0) as bar:
        for _ in range(200):
            clock[0] += 1
            bar.update()
    assert [line.split()[2] for line in lines] == ["60/200", "120/200", "180/200", "200/200"]


def test_bars_share_the_minute(clock):
    with logged() as lines, Progress(total=10, desc="outer") as outer:
        for _ in range(10):
            with Progress(total=29, desc="inner", mininterval=0) as inner:
                for _ in range(29):
                    clock[0] += 1
                    inner.update()
            outer.set_postfix(acc="50%")
    assert [line.split(":")[0] for line in lines] == ["inner"] * 10  # a line of a phase each, and none besides


def test_nothing_done_is_no_phase(clock):
    with logged() as lines:
        for more in ({}, {"initial": 5}, {"disable": True}):
            Progress(total=10, desc="experts", **more).close()
    assert not lines


@pytest.mark.parametrize("how", ["terminal", "pipe to one", "notebook"])
def test_elsewhere_a_bar_is_drawn(monkeypatch, clock, how):
    if how == "pipe to one":
        monkeypatch.setenv(progress.ON_TERMINAL, "1")
    if how == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", progress)
    shown = Terminal() if how == "terminal" else io.StringIO()
    with contextlib.redirect_stderr(shown), Progress(total=3, desc="phase") as bar:
        bar.update(3)
    assert "\rphase: 100%|" in shown.getvalue()
