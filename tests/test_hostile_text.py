"""Names of classes, paths and metadata are text: none of them reaches a page, a terminal or a shell as code."""

import io
import json
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image

from common.pretrained.share import card
from common.report.record import read_run
from common.report.run_page import write_run_report
from common.synset.file import load_synset, save_synset
from common.synset.hub import parse_address
from common.system.command import AsText, shown_as_text
from common.system.errors import InputError, printable
from common.system.progress import Progress
from tests.command_line import assert_refused, call
from tests.conftest import ROOT
from tests.synsets import started

TAGS = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\rerror: none\u202e"
SHELL = "$(touch ran)`touch ran`;touch ran'\" \\ &|*"


def test_a_page_shows_names_and_metadata_as_text(tmp_path):
    folder = shutil.copytree(next((ROOT / "tests/old_runs/runs/DM/digits/ipc1").iterdir()), tmp_path / "run")
    synset, metadata = load_synset(folder / "synset.safetensors")
    names = [f"{TAGS}{number}" for number in range(synset.num_classes)]
    told = {"class_names": names, "dataset": TAGS, "network": TAGS, "version": TAGS}
    save_synset(synset, folder / "synset.safetensors", metadata | told)
    config = json.loads((folder / "config.json").read_text())
    for key in ("model", "dsa_strategy", "dataset"):
        config["options"][key] = {"value": TAGS, "source": "flag", "instead_of": TAGS}
    config["hardware"] |= {TAGS: TAGS, "cpu": TAGS}
    (folder / "config.json").write_text(json.dumps(config | {"version": TAGS}))
    page = write_run_report(folder).read_text()
    assert "&lt;script&gt;" in page
    assert not re.search(r"<script|<img src=x", page)
    assert "{{ 7*7 }}" in page


@pytest.mark.parametrize("text", [ESCAPES, "a\ud800b"])
def test_what_is_not_printable_is_written_as_an_escape(text):
    assert printable(text).isprintable()
    assert str(InputError(f"the class {text} is empty")).isprintable()
    out = io.StringIO()
    AsText(out).write(f"{text}\n")
    assert printable(text) + "\n" == out.getvalue()
    assert out.getvalue().encode()
    assert printable("naïve 日本 ± é") == "naïve 日本 ± é"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_command_sends_escape_sequences_of_a_file(tmp_path):
    names = [f"{ESCAPES}{number}" for number in range(4)]
    metadata = {"class_names": names, "dataset": ESCAPES, "network": ESCAPES, "version": ESCAPES}
    file = save_synset(started(), tmp_path / "set.safetensors", metadata)
    results = [
        call("common/report/__main__.py", "show", file),
        call("DM/evaluate.py", "--synset", file),
        call("DM/evaluate.py", "--synset", tmp_path / f"{ESCAPES}.safetensors"),
        call("DM/distill.py", "--dataset", f"folder:{_images(tmp_path / 'images')}", "--ipc", "50", "--device", "cpu"),
    ]
    assert [result.code for result in results] == [0, 2, 2, 2]
    for result in results:
        assert (result.out + result.err).replace("\n", "").replace("\r", "").replace("\t", "").isprintable(), result
    assert "\\x1b]0;title\\x07" in results[0].out


def _images(root):
    for name in (f"a{ESCAPES}", "b"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (8, 8), 20 * number + len(name)).save(root / name / f"{number}{ESCAPES}.png")
    return root


def test_bars_of_progress_still_move():
    err = io.StringIO()
    err.isatty = lambda: True
    with shown_as_text(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", AsText(err))
        with Progress(total=2, desc=f"x{ESCAPES}", mininterval=0) as bar:
            bar.update()
            bar.update()
    assert "2/2" in err.getvalue()
    assert "\\r" not in err.getvalue().replace(printable(ESCAPES), "")
    assert "\x1b]" not in err.getvalue()


def test_the_readme_of_a_set_runs_nothing_that_its_metadata_say(tmp_path):
    with pytest.raises(InputError, match="objective"):
        save_synset(started(), tmp_path / "set.safetensors", {"objective": f"DM {SHELL}"})
    text = card(
        parse_address("hf://owner/name"), load_synset(save_synset(started(), tmp_path / "x.safetensors", {}))[1]
    )
    assert "python DM/evaluate.py --synset hf://owner/name" in text


def test_the_command_of_a_page_is_quoted(tmp_path):
    folder = shutil.copytree(next((ROOT / "tests/old_runs/runs/DM/digits/ipc1").iterdir()), tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["options"]["dataset"] = {"value": f"folder:{SHELL}", "source": "flag"}
    (folder / "config.json").write_text(json.dumps(config))
    command = read_run(folder).command()
    done = subprocess.run(["sh", "-c", f"echo {command}"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"folder:{SHELL}".replace("\\", "\\") in done.stdout.replace("\\\\", "\\")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("script", ["DM/scripts/run_DM_FreD.sh", "TM/scripts/run_buffer.sh"])
def test_scripts_pass_on_what_they_are_given_as_words(tmp_path, script):
    names = ("DATASET", "IPC", "DATA_PATH", "SAVE_PATH", "BUFFER_PATH")
    environment = {key: value for key, value in os.environ.items() if key not in ("NPROC", *names)}
    printer = tmp_path / "printer"
    printer.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    printer.chmod(0o755)
    given = dict.fromkeys(names, SHELL)
    done = subprocess.run(
        ["sh", str(ROOT / script), "--name", SHELL], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**environment, **given, "PYTHON": str(printer)},
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[words.index("--dataset") + 1] == SHELL
    assert words[words.index("--name") + 1] == SHELL
    assert not list(tmp_path.glob("ran"))


def test_a_refusal_of_a_hostile_path_is_one_sentence(tmp_path):
    result = call("common/report/__main__.py", "show", tmp_path / f"{ESCAPES}\n.safetensors")
    assert_refused(result, "no synthetic set at")
