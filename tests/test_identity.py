"""An option that is new makes no other run of an old one, and no other name for it.

old_runs/ holds run folders as version 073cbd3 left them. They were made by

git clone . ../then && git -C ../then checkout 073cbd3
PYTHONPATH=../then OMP_NUM_THREADS=1 python tests/old_runs/make.py ../then
"""

import dataclasses
import json
import runpy
import shutil

import pytest
import torch
from safetensors.torch import load_file

from common import recipes
from common.config.command_line import parse
from common.runs.identity import ALWAYS_NAMED, automatic_name, differences, identity
from common.system.errors import InputError
from DM import distill as dm
from reproduction.programs import OPTIONS
from tests.command_line import assert_refused, call
from tests.conftest import ROOT
from tests.old_runs.make import COMMANDS, HERE, STOPPED_AFTER

CONFIGS = sorted(HERE.glob("runs/**/config.json"))
TOLERANCE = 1e-5  # of the norm: machines and versions of torch round otherwise

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=CONFIGS, ids=lambda path: path.parents[2].relative_to(HERE / "runs").as_posix())
def old(request):
    """(kind of options, objective, identity, name) of an old run."""
    config = json.loads(request.param.read_text())
    kind = OPTIONS[config["objective"]]
    if config["identity"]["dataset"] == "3D-MNIST":
        kind = runpy.run_path(str(ROOT / "3D-MNIST/distill.py"))["Options"]
    return kind, config["objective"], config["identity"], request.param.parent.name


@pytest.fixture
def old_runs(tmp_path, monkeypatch):
    """The old folders where commands look for them; they say `runs` and `buffers`, without a place."""
    for name in ("runs", "buffers"):
        shutil.copytree(HERE / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def later(kind, name="sharpness", default=0.5):
    """The kind as it is when somebody has added an option."""
    field = dataclasses.field(default_factory=default) if callable(default) else default
    return dataclasses.make_dataclass("Later", [(name, type(default), field)], bases=(kind,))


# -- old runs go on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", COMMANDS)
def test_an_old_run_is_continued_by_its_command(old_runs, objective):
    (folder,) = (old_runs / objective / "digits/ipc1").iterdir()
    before = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["synset"]["coefficients"]
    result = call(f"{objective}/distill.py", *COMMANDS[objective])
    assert result.code == 0, result.err
    assert f"resumed from iteration {STOPPED_AFTER} " in result.out
    assert list(folder.parent.iterdir()) == [folder]
    expected = load_file(HERE / "finished" / f"{objective}.safetensors")
    ended = load_file(folder / "synset.safetensors")
    assert ended.keys() == expected.keys()
    for key, value in expected.items():
        assert (ended[key] - value).double().norm() <= TOLERANCE * value.double().norm(), key
    assert (before - expected["coefficients"]).norm() > 100 * TOLERANCE * before.norm()  # the updates were not nothing
    assert json.loads((folder / "config.json").read_text())["identity"].keys() >= ALWAYS_NAMED[objective]


# -- names -------------------------------------------------------------------------------------------------------


def test_names_are_what_they_were(old):
    kind, objective, stored, name = old
    assert ALWAYS_NAMED[objective] == stored.keys()
    assert automatic_name(kind(**stored), objective) == name


def test_every_objective_has_an_old_run():
    assert {json.loads(path.read_text())["objective"] for path in CONFIGS} == ALWAYS_NAMED.keys()


@pytest.mark.parametrize("default", [0.5, None, (1, 2), list], ids=str)
def test_a_new_option_at_its_default_is_the_old_run(old, default):
    kind, objective, stored, name = old
    options = later(kind, default=default)(**stored)
    assert automatic_name(options, objective) == name
    assert differences(stored, options) == ""
    assert "sharpness" in identity(options)


def test_a_new_option_at_another_value_is_another_run(old):
    kind, objective, stored, name = old
    options = later(kind)(**stored, sharpness=0.7)
    assert automatic_name(options, objective) != name
    assert differences(stored, options) == "--sharpness 0.5 there, 0.7 now"
    assert differences(identity(options), later(kind)(**stored)) == "--sharpness 0.7 there, 0.5 now"


def test_the_default_is_that_of_the_class_that_declares_the_option(old):
    """As a folder of its own has, whose old runs knew neither."""
    kind, objective, stored, name = old
    options = later(later(kind), default=0.7)(**stored)
    assert automatic_name(options, objective) != name
    assert differences(stored, options) == "--sharpness 0.5 there, 0.7 now"
    options = dataclasses.replace(options, sharpness=0.5)
    assert automatic_name(options, objective) == name
    assert differences(stored, options) == ""


def test_an_option_that_other_objectives_had_is_new_all_the_same(old):
    kind, objective, stored, name = old
    others = sorted(frozenset.union(*ALWAYS_NAMED.values()) - stored.keys())
    assert others
    for other in others:
        options = later(kind, other)(**stored)
        assert automatic_name(options, objective) == name
        assert differences(stored, options) == ""


def test_a_new_objective_needs_no_list():
    names = {automatic_name(kind(), "New") for kind in (dm.Options, later(dm.Options))}
    names |= {automatic_name(later(dm.Options)(sharpness=value), "New") for value in (0.5, 0.7)}
    assert len(names) == 2
    assert automatic_name(dm.Options(seed=1), "New") not in names


# -- named runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def named(old_runs):
    """The old run of DM as --name mine, and its command."""
    (folder,) = (old_runs / "DM/digits/ipc1").iterdir()
    return folder.rename(folder.with_name("mine")), [*COMMANDS["DM"], "--name", "mine"]


def test_a_named_run_is_continued_when_an_option_is_new(named, capsys):
    folder, words = named
    dm.distill(*parse(later(dm.Options), "DM", words))
    assert f"resumed from iteration {STOPPED_AFTER} " in capsys.readouterr().out
    assert json.loads((folder / "config.json").read_text())["identity"]["sharpness"] == 0.5


def test_a_named_run_is_refused_at_another_value_of_a_new_option(named, monkeypatch):
    folder, words = named
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    told = r"another configuration \(--sharpness 0.5 there, 0.7 now\): give another --name"
    with pytest.raises(InputError, match=told):
        dm.distill(*parse(later(dm.Options), "DM", [*words, "--sharpness", "0.7"]))
    # A recipe is no better than a flag: the old run did not hear of it.
    recipe = recipes.find("DM", "digits", 1)
    recipe = dataclasses.replace(
        recipe, values=recipe.values | {"sharpness": 0.7}, sources=recipe.sources | {"sharpness": "tuned here"}
    )
    monkeypatch.setattr(recipes, "find", lambda *_, **__: recipe)
    with pytest.raises(InputError, match=told):
        dm.distill(*parse(later(dm.Options), "DM", words))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before


def test_options_that_one_side_lacks(named):
    folder, words = named
    config = json.loads((folder / "config.json").read_text())
    del config["identity"]["wait_eval"]  # as a run from before it
    config["identity"]["workers"] = 3  # since then no part of a run
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(call("DM/distill.py", *words, "--wait_eval"), "(--wait_eval False there, True now)")
    config["identity"]["blur"] = 3  # of a later version, or since removed
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(call("DM/distill.py", *words), "(--blur 3 there, no such option now): give another --name")
    del config["identity"]["blur"]
    (folder / "config.json").write_text(json.dumps(config))
    assert f"resumed from iteration {STOPPED_AFTER} " in call("DM/distill.py", *words).out
