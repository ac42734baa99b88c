"""`make demo`, with networks and updates too few to mean anything: the commands, the table and its file."""

import importlib.util
import json
import sys

from common.system import scripts
from tests.command_line import InThisProcess, call
from tests.conftest import ROOT

SMALL = ["--model", "ConvNetD1W16", "--epoch_eval_train", "0"]
QUICK = {"DM/distill.py": [*SMALL, "--Iteration", "2", "--batch_real", "8"], "DM/evaluate.py": SMALL}


def test_the_demo_compares_four_ways_at_one_budget(whole_run, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    monkeypatch.setattr(scripts, "Script", lambda script, words: InThisProcess(script, [*words, *QUICK[script]]))
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    demo.main()
    table = json.loads((tmp_path / "summary.json").read_text())
    assert table.keys() == {"fred", "random", "pixel", "full", "fred_before_optimisation", "bytes"}
    for key in table.keys() - {"bytes"}:
        assert table[key].keys() == {"mean", "std", "n"}
        assert 0 <= table[key]["mean"] <= 1
        assert table[key]["n"] == demo.NETWORKS
    file = tmp_path / "DM" / "digits" / "ipc1" / "fred" / "synset.safetensors"
    assert table["bytes"] == file.stat().st_size < 5000
    shown = capsys.readouterr().out
    assert "random real images, same budget" in shown
    assert str(file) in shown
    assert str(file.with_name("images_000002.png")) in shown
    assert file.with_name("images_000002.png").is_file()


def test_help_starts_nothing():
    result = call("demo.py", "--help")
    assert result.code == 0
    assert "compare the result at equal budget" in result.out
    assert call("demo.py", "--epochs", 3).code == 2
