"""What the README tells people to type must work."""

import re
import runpy
import subprocess

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_snippet_runs_as_it_stands(capsys):
    (snippet,) = code_blocks("python")
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["images"].shape == (40, 1, 8, 8)
    assert not names["images"].requires_grad
    assert names["loss"].isfinite()
    assert "train.batch(" in snippet
    assert "network.embed(" in snippet
    assert "the budget of 1 image per class" in capsys.readouterr().out


def test_files_and_targets_that_it_names_exist():
    text = "\n".join(code_blocks("sh"))
    for script in set(re.findall(r"\b[\w-]+(?:/[\w-]+)*\.(?:py|sh)\b", text)):
        assert (ROOT / script).is_file(), script
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_scripts_that_the_makefile_runs_exist():
    scripts = re.findall(r"/python (\S+\.py)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file(), script


def test_flags_that_it_names_exist():
    from common.config.evaluate_options import EvaluateOptions
    from common.config.options import BufferOptions, ClassMatchingOptions
    from common.pretrained.__main__ import COMMANDS
    from common.robustness.options import RobustnessOptions
    from TM import distill as tm

    tables = runpy.run_path(str(ROOT / "reproduce.py"))["COMMANDS"]
    kinds = (
        ClassMatchingOptions,
        tm.Options,
        EvaluateOptions,
        BufferOptions,
        RobustnessOptions,
        *COMMANDS.values(),
        *tables.values(),
    )
    known = {"help", "nproc_per_node"}.union(*(kind.__dataclass_fields__ for kind in kinds))
    assert set(re.findall(r"--([a-z_]+)", README)) <= known


def test_the_repository_names_no_place_of_a_machine():
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".sh", ".toml", ".json", ".csv", ".txt", "") and path.is_file():
            assert not re.search(r"(?:^|[\s'\"=(:])/(?:work|root|home)/", path.read_text(encoding="utf-8")), name
