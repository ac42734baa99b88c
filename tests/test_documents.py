"""README and docs keep their word: commands parse or run, links lead somewhere, quotations and figures are right."""

import ast
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
import urllib.error
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import StringIO

import pytest
import torch
import tyro

from common import recipes
from common.config import command_line
from common.datasets import DATASETS, PREFIXES
from DC import distill as dc
from DM import distill as dm
from tests import documents
from tests.command_line import call
from tests.conftest import ROOT
from tests.documents import FILES, anchors, blocks, commands, links, prose, read
from TM import distill as tm

PROJECT = recipes.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMANDS = [command for file in FILES for command in commands(file)]
# The scripts that docs/extending.md consists of, by the names that their first lines give them.
EXAMPLES = {re.match(r'"""(\w+\.py): ', block)[1]: block for block in blocks("docs/extending.md", "py")}


# -- commands --------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """A command line has been read; what would follow is left out."""


@pytest.fixture
def only_parsed(monkeypatch):
    """Scripts end with `Parsed` once their own parser has accepted the command line."""
    cli, parse = tyro.cli, command_line.parse

    def read_and_stop(*given, **named):
        found = cli(*given, **named)
        if named.get("console_outputs", True):  # else these are the options that decide how the others are read
            raise Parsed
        return found

    def parse_and_stop(*given, **named):  # of a distillation, which also checks the values
        with monkeypatch.context() as patch:
            patch.setattr(tyro, "cli", cli)
            parse(*given, **named)
            raise Parsed

    monkeypatch.setattr(tyro, "cli", read_and_stop)
    for module in (command_line, dm, dc, tm):
        monkeypatch.setattr(module, "parse", parse_and_stop)


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The folder of the scripts in docs/extending.md; what they register is forgotten."""
    for name, text in EXAMPLES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr("common.datasets.DATASETS", DATASETS)
    monkeypatch.delitem(DATASETS, "stripes", raising=False)
    networks = importlib.import_module("common.networks")
    monkeypatch.setattr(networks, "FAMILIES", networks.FAMILIES)
    yield tmp_path
    DATASETS.pop("stripes", None)


def program(command):
    """What a command starts: the words after python, a make target with `make`, or what is installed with `pip`."""
    words = command.words
    if words[0] == "srun":
        words = words[1:]
    if words[0] == "sh":
        # The interpreter that a script starts is made to print what it was given.
        environment = {**os.environ, **command.environment, "PYTHON": "echo"}
        script = [words[0], str(ROOT / words[1]), *words[2:]]
        done = subprocess.run(script, env=environment, check=True, capture_output=True, text=True)
        words = ["python", *shlex.split(done.stdout)]
    if words[1:3] == ["-m", "torch.distributed.run"]:
        words = ["torchrun", *words[3:]]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        launch = get_args_parser().parse_args(words[1:])
        words = ["python", launch.training_script, *launch.training_script_args]
    return words


def test_there_are_commands():
    """That the tests below find them, and each document that shows any."""
    assert len(COMMANDS) > 60
    shown = {command.file for command in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "docs/usage.md", "docs/many-machines.md", "DM/README.md"} <= shown


def parses(words):
    """Whether a script's own parser takes these words; what it says if not."""
    if words[0] == "-m":
        words = [f"{words[1].replace('.', '/')}/__main__.py", *words[2:]]
    script, *rest = words
    path = ROOT / script  # or the script itself, if its path is absolute
    out = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "argv", [str(path), *rest])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Parsed:
            return ""
        except SystemExit as end:
            return "" if not end.code and "--help" in rest else out.getvalue()
    return "it ended without reading its command line"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.file}: {command.text[:60]}")
def test_a_command_is_one_that_works(command, only_parsed, examples):
    """Its script exists and takes its flags with these values; of a distillation, the values also fit each other."""
    first, *rest = program(command)
    if first == "make":
        for target in (word for word in rest if "=" not in word):
            assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), target
    elif first == "pip":
        extras = re.findall(r"\.\[(.*)\]", rest[-1])
        assert rest[0] in ("install", "download")
        assert set(",".join(extras).split(",")) - {""} <= set(PROJECT["project"]["optional-dependencies"])
    elif first == "git":
        assert rest[0] in ("clone", "checkout", "commit")
    elif rest[:1] == ["-m"] and (rest[1] == "pytest" or rest[1].startswith("tests.")):
        assert importlib.util.find_spec(rest[1])
        assert all((ROOT / word).exists() for word in rest[2:] if "/" in word)
    else:
        assert first in ("python", ".venv/bin/python"), command.text
        if rest[0] in EXAMPLES:
            rest[0] = str(examples / rest[0])
        assert not parses(rest)


# Of programs that are not ours, and of the benchmarks, which parse their own.
OTHER_FLAGS = {"help", "nproc_per_node", "signal"}
BENCHMARKS = {"authors", "memory", "no_memory", "only", "repeats", "same_allocator", "threads"}


@pytest.mark.parametrize("file", FILES)
def test_flags_that_a_document_names_exist(file):
    known = set(re.findall(r" --(\w+)", (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8")))
    known |= OTHER_FLAGS | (BENCHMARKS if file in ("benchmarks/README.md", "results/README.md") else set())
    named = re.findall(r"--([a-zA-Z_]\w*)", prose(file))
    assert not {flag for flag in named if not {flag, flag.removeprefix("no_")} & known}


SHORT = {"Iteration": 1, "eval_it": 0, "num_eval": 1, "epoch_eval_train": 0, "batch_real": 8, "device": "cpu"}
SHORT_STUDENT = {"syn_steps": 1, "max_start_epoch": 1, "expert_epochs": 1}
SHORT_EXPERTS = {"num_experts": 1, "train_epochs": 2, "device": "cpu"}
DEMO = "runs/demo/DM/digits/ipc1/fred"  # where `make demo` leaves its set


def shrunk(words):
    """The words of a command with smaller numbers: seconds, not minutes."""
    script = words[0]
    changes = dict(SHORT)
    if script.endswith("buffer.py"):
        changes = dict(SHORT_EXPERTS)
    elif script.endswith("evaluate.py"):
        changes = {key: SHORT[key] for key in ("num_eval", "epoch_eval_train", "device")}
    elif script.startswith("-m"):
        changes = {}
    elif script.endswith("TM/distill.py"):
        changes = {**SHORT, **SHORT_STUDENT}
        del changes["batch_real"]
    if changes and "--model" not in words and not script.endswith("evaluate.py"):
        changes["model"] = "ConvNetD1W16"
    kept, rest = [], iter(words)
    for word in rest:
        if word.removeprefix("--") in changes and word.startswith("--"):
            next(rest)
        else:
            kept.append(word)
    return [*kept, *(str(each) for key, value in changes.items() for each in (f"--{key}", value))]


def test_commands_on_built_in_images_run(examples, monkeypatch, cache):
    """Every command on digits, on images that a document's own code makes, or on the set that `make demo` leaves.

    They run in the order of the documents, shrunk, for experts come before the student.
    """
    monkeypatch.chdir(examples)
    made = [*shrunk(["DM/distill.py", "--dataset", "digits"]), "--save_path", "runs/demo", "--name", "fred"]
    assert call(*made).code == 0
    ran = {}
    for command in COMMANDS:
        words = program(command)
        if command.words[0] == "make" or words[0] not in ("python", ".venv/bin/python"):
            continue
        mine = {"digits", "stripes"} & set(words) or DEMO in " ".join(words)
        shows = {"--help", "--dry_run"} & set(words)
        if not mine or shows or command.environment.get("NPROC"):
            continue
        words = [word.removeprefix(f"{ROOT}/") for word in words[1:]]
        words = shrunk([str(examples / words[0]) if words[0] in EXAMPLES else words[0], *words[1:]])
        if tuple(words) in ran:
            continue
        if words[0] == "-m":
            words[:2] = [f"{words[1].replace('.', '/')}/__main__.py"]
        ran[tuple(words)] = result = call(*words)
        assert result.code == 0, f"{command.file}: {command.text}\n{result.err}"
    scripts = {words[0].removeprefix(f"{examples}/") for words in ran}
    assert {*EXAMPLES, "DM/distill.py", "DC/distill.py", "TM/buffer.py", "TM/distill.py", "DM/evaluate.py"} <= scripts
    assert len(ran) >= 9


def test_distillations_of_the_readme_say_beforehand_what_they_would_do(tmp_path, monkeypatch, cache):
    """--dry_run makes the checks of a run; where images are missing, it names them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        for number in range(8):
            image = tmp_path / "own" / name / f"{number}.ppm"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(b"P6 16 16 255\n" + bytes((number + ord(name) * i) % 256 for i in range(3 * 16 * 16)))
    found = [program(each)[1:] for each in COMMANDS if each.file == "README.md"]
    found = [each for each in found if each and each[0].endswith("distill.py")]
    assert len(found) == 2
    for words in found:
        words = [word.replace("PATH", str(tmp_path / "own")).replace(f"{ROOT}/", "") for word in words]
        result = call(*words, "--dry_run")
        assert result.code == 0, result.err
        assert "run folder" in result.out


# -- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [*FILES, "docs/quickstart.ipynb"])
def test_links_within_the_repository_lead_somewhere(file):
    """To the heading, too."""
    for link in links(file):
        if re.match(r"[a-z]+:", link):
            assert link.startswith(("https://", "http://")), link
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT).as_posix()), link


def test_links_to_the_outside_that_do_not_answer_are_listed(monkeypatch, capsys):
    """One that asks robots to stay away answers."""
    answers = {"arxiv.org": None, "kaggle.com": 403, "zenodo.org": 404}

    def open_(request, timeout):
        code = next((code for name, code in answers.items() if name in request.full_url), None)
        if code is not None:
            raise urllib.error.HTTPError(request.full_url, code, "No", {}, None)
        return nullcontext()

    monkeypatch.setattr("urllib.request.urlopen", open_)
    assert documents.main() == 1
    *wrong, last = capsys.readouterr().out.splitlines()
    assert wrong
    assert all(line.startswith("https://zenodo.org/") and line.endswith("404 No") for line in wrong)
    assert last.endswith(f"{len(wrong)} without an answer")
    answers["zenodo.org"] = None
    assert documents.main() == 0


def test_every_page_of_the_docs_is_in_the_index():
    pages = {path.name for pattern in ("*.md", "*.ipynb") for path in (ROOT / "docs").glob(pattern)} - {"README.md"}
    assert pages == {link for link in links("docs/README.md") if "/" not in link}


@pytest.mark.parametrize("file", FILES)
def test_source_files_that_a_document_names_exist(file):
    places = r"(?:common|DM|DC|TM|tests|benchmarks|reproduction|docs|experiments|ImageNet-abcde|corruption-exp)"
    for name in re.findall(rf"`({places}/[\w./-]+\.(?:py|toml|sh|md|txt))`", prose(file)):
        assert (ROOT / name).exists(), name


# -- quotations ------------------------------------------------------------------------------------------------------


def test_the_readme_takes_two_minutes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1300
    assert max(map(len, text.splitlines())) <= 120


def test_the_loop_that_the_readme_quotes_is_the_loop():
    (quoted,) = blocks("README.md", "py")
    source = (ROOT / "DM" / "distill.py").read_text(encoding="utf-8")
    loop = textwrap.dedent(source[source.index("        for iteration in run:") : source.index("    return run\n")])
    assert quoted == loop


def texts_of_the_source():
    """Every text in the sources, with three dots for what an f-string fills in."""
    for folder in ("common", "DM", "DC", "TM"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "...".join(
                        part.value if isinstance(part, ast.Constant) else "" for part in joined_constants(node)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def joined_constants(node):
    """The constants of an f-string, one before the first and after the last value."""
    parts = [ast.Constant("")]
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts[-1] = ast.Constant(parts[-1].value + part.value)
        else:
            parts.append(ast.Constant(""))
    return parts


def test_the_messages_of_the_troubles_are_those_of_the_source():
    """What stands between two `...` of a message is in one text of the source, in this order."""
    messages = re.findall(r"^> (.*)$", read("docs/troubleshooting.md"), flags=re.MULTILINE)
    assert len(messages) > 20
    texts = list(texts_of_the_source())
    for message in messages:
        wanted = ".*".join(re.escape(part) for part in message.split("..."))
        assert any(re.search(wanted, text, re.DOTALL) for text in texts), message


def test_every_dataset_is_explained():
    page = read("docs/datasets.md")
    for name in (*DATASETS, *PREFIXES):
        assert (
            name in page
            or name.removeprefix("imagenet-") in re.findall(r"`([\w-]+)`", page)
            or re.fullmatch(r"imagenet-[a-e]", name)
        ), name


def test_examples_are_short():
    assert set(EXAMPLES) == {"stripes.py", "wide.py", "spread.py"}
    assert all(text.count("\n") < 40 for text in EXAMPLES.values())


# -- figures ---------------------------------------------------------------------------------------------------------

SUBSETS = [("ImageNet-abcde/{}", f"imagenet-{key}", 1) for key in "abcde"]
ROWS = {
    "TM, CIFAR-10, ipc 1, 10, 50": [("TM", "CIFAR10", ipc) for ipc in (1, 10, 50)],
    "TM, CIFAR-100, ipc 1, 10, 50": [("TM", "CIFAR100", ipc) for ipc in (1, 10, 50)],
    "TM, ImageNet-A to E, 128 px, ipc 1": [(name.format("TM"), *rest) for name, *rest in SUBSETS],
    "DM, the same": [(name.format("DM"), *rest) for name, *rest in SUBSETS],
    "DC, the same": [(name.format("DC"), *rest) for name, *rest in SUBSETS],
}


def published(cell):
    found = recipes.published(*cell)
    return str(found["accuracy"]) + (f" ± {found['std']}" if "std" in found else "")


def test_published_figures_are_those_of_the_recipes():
    rows = dict(re.findall(r"^\| ([TDM][MC], .*?) \| (.*?) \| \|$", read("README.md"), flags=re.MULTILINE))
    assert rows == {row: ", ".join(map(published, cells)) for row, cells in ROWS.items()}


@pytest.mark.parametrize("file", ["README.md", "docs/codec.md"])
def test_measured_figures_are_among_the_results(file):
    known = read("results/README.md") + " ".join(published(cell) for cells in ROWS.values() for cell in cells)
    found = re.findall(r"\d+\.\d ± \d+\.\d", read(file))
    assert len(found) > 7
    assert all(figure in known for figure in found)


def test_ratios_of_speed_are_those_of_the_benchmarks():
    """Each row of results/README.md repeats the CPU ratios that the table of the benchmarks has, as shipped."""
    rows = re.findall(r"^\| `(\w+)`: .* \| (\d\.\d\d) \| (\d\.\d\d) \|$", read("results/README.md"), flags=re.MULTILINE)
    assert len(rows) == 6
    table = [[cell.strip(" `*") for cell in line.split("|")] for line in read("benchmarks/README.md").splitlines()]
    ratios = {(row[1], row[3]): row[7] for row in table if len(row) > 10 and row[2] == "as shipped"}
    for case, *told in rows:
        assert told == [ratios[case, "default"], ratios[case, "compiled"]], case


def test_the_version_is_said_once_and_repeated_right():
    version = importlib.import_module("common").__version__
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## (?:Unreleased|{re.escape(version)}\b)", read("CHANGELOG.md"), re.MULTILINE)


# -- the notebook ----------------------------------------------------------------------------------------------------

NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
SHORTER = {"range(40)": "range(2)", '"epochs": 100': '"epochs": 1'}


def test_the_notebook_runs_from_top_to_bottom(capsys, monkeypatch):
    """With fewer updates and epochs; a figure is drawn, not shown."""
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(NOTEBOOK["cells"]) == 12
    assert all(any(number in cell for cell in cells) for number in SHORTER)
    names: dict = {}
    for cell in cells:
        for number, fewer in SHORTER.items():
            cell = cell.replace(number, fewer)
        exec(compile(cell, "docs/quickstart.ipynb", "exec"), names)
    assert names["both"].shape == (40, 100)
    assert names["loss"].isfinite()
    assert not torch.equal(names["synset"].coefficients, names["new_set"]().coefficients)
    assert "ten real images" in capsys.readouterr().out


def test_outputs_of_the_notebook_are_stored():
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"]
            assert cell["outputs"], cell["source"]
            assert {output["output_type"] for output in cell["outputs"]} <= {"stream", "display_data"}
            assert all(output.get("name", "stdout") == "stdout" for output in cell["outputs"])
    shown = [output for cell in NOTEBOOK["cells"] for output in cell.get("outputs", ()) if "data" in output]
    assert any("image/png" in output["data"] for output in shown)
