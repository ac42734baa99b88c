"""The page of results tells every cell, and is as closed as a run's."""

import html
import re

import pytest
from PIL import Image

from reproduction.page import STATES, write_results_page
from tests.html_pages import BROWSER, HOSTILE, Tags, assert_shown, page, words


def rows(picture):
    nothing = dict.fromkeys(
        ("ours", "n", "difference", "time", "memory", "bytes", "hardware", "version", "reduced", "note", "command"), ""
    )
    plain = {"scale": "full", "published": "unknown", "picture": None, "report": None, **nothing}
    full = {
        "table": "Trajectories", "cell": "CIFAR10, ipc 1", "state": "finished", "ours": "60.12 ± 0.40", "n": 5,
        "published": "60.6 ± 0.8", "difference": "-0.48 (0.5 s.d., within 2)",
        "time": "1 h 20 min (distillation 1 h, evaluation 20 min)", "memory": "1.2 GB",
        "bytes": "125,440 (122,880)", "hardware": "a GPU", "version": "0.1.0-abc",
        "command": "python TM/distill.py --dataset CIFAR10 --ipc 1", "picture": picture,
        "report": "TM/CIFAR10/ipc1/run/report.html",
    }  # fmt: skip
    others = [
        {"table": "Trajectories" if state == "running" else "ImageNet", "cell": f"cell of {state}", "state": state}
        for state in STATES[1:]
    ]
    reduced = {"reduced": "40 of 15,000 updates, 3 of 5 networks per evaluation", "note": "interrupted once"}
    short = {**full, "scale": "short", **reduced, "report": "javascript:alert(1)"}
    hostile = dict.fromkeys(("table", "cell", "note", "command", "hardware"), HOSTILE) | {"state": "failed"}
    return [plain | row for row in (full, *others, short, hostile)]


@pytest.fixture
def results(tmp_path):
    Image.new("RGB", (2000, 1000), (200, 30, 30)).save(tmp_path / "images.png")
    path = tmp_path / "results.html"
    write_results_page(path, rows(tmp_path / "images.png"), "All <tables>", ["Read & beware.", HOSTILE])
    return path


def test_the_page_of_results_has_every_cell(results):
    text = page(results)
    read = words(text)
    assert read.startswith("All <tables> All <tables> Read & beware.")
    counts = {"finished": 2, "running": 1, "interrupted": 1, "failed": 2, "not started": 1}
    for state, count in counts.items():
        assert f"{count} {state}" in read
        # its label on the cells, and the one that counts them and filters by it
        assert text.count(f'<span class="label {state}">') == count + 1
    assert [html.unescape(each) for each in re.findall("<h2>(.*?)</h2>", text)] == ["Trajectories", "ImageNet", HOSTILE]
    for part in (
        "60.12 ± 0.40 5 networks",
        "60.6 ± 0.8",
        "-0.48 0.5 s.d. within 2",
        "1 h 20 min distillation 1 h evaluation 20 min 1.2 GB",
        "125,440 (122,880)",
        "a GPU",
        "0.1.0-abc",
        "--ipc 1",
    ):
        assert part in read
    assert read.count("scale: short") == 1
    assert text.count('href="TM/CIFAR10/ipc1/run/report.html"') == 1
    assert "javascript" not in text
    assert text.count("<img") == 2
    assert len(text) < 50_000  # the picture was made small


def test_remarks_are_folded_to_one_line(results):
    text = results.read_text(encoding="utf-8")
    assert "<summary>reduced: 40 of 15,000 updates, ...</summary>" in text
    assert "<p>reduced: 40 of 15,000 updates, 3 of 5 networks per evaluation</p><p>interrupted once</p>" in text
    assert text.count("<summary>command, origin</summary>") == 1  # of a row without remarks
    assert "<details open" not in text


def test_rows_are_filtered_by_rules_alone(results):
    """Each row has its state and its scale, and there is a rule and a button for each that occurs; order is kept."""
    text = page(results)
    tags = Tags(text).found
    shown = [(row["data-state"], row["data-scale"]) for tag, row in tags if tag == "tr" and "data-state" in row]
    states = ["finished", "running", "finished", "queued", "interrupted", "failed", "not started", "failed"]
    assert shown == [(state, "short" if n == 2 else "full") for n, state in enumerate(states)]
    buttons = {each["id"] for tag, each in tags if tag == "input"}
    assert buttons == {"state-all", *(f"state-{each.replace(' ', '-')}" for each in states)} | {
        "scale-all", "scale-short", "scale-full",
    }  # fmt: skip
    for state in STATES:
        chosen = f"main:has(#state-{state.replace(' ', '-')}:checked):has(#scale-full:checked)"
        assert f'{chosen} :is(tbody tr:not([data-state="{state}"][data-scale="full"])' in text


def test_a_picture_is_a_link_to_itself_and_back(results):
    tags = Tags(results.read_text(encoding="utf-8")).found
    named = {each["id"] for _, each in tags if "id" in each}
    links = [each["href"] for tag, each in tags if tag == "a" and each["href"].startswith("#")]
    assert len(links) == 4
    assert {link.removeprefix("#") for link in links} <= named


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_all_of_it_at_any_width(results, tmp_path):
    assert_shown(results.read_text(encoding="utf-8"), tmp_path, images=2)
