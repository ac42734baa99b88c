"""Every recipe is one that the command line could have been given."""

import dataclasses
import math
import runpy
import sys
import typing

import pytest

import common.options as options_module
from common import recipes
from common.datasets.imagenet_classes import NAMES
from common.errors import InputError
from common.networks import build_network
from common.objectives import dc, dm, tm
from common.options import DSA_STRATEGY, ClassMatchingOptions, check
from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = ROOT / "common" / "recipes"
FILES = sorted(FOLDER.rglob("*.toml"))
TABLES = {
    str(file.relative_to(FOLDER).with_suffix("")): tomllib.loads(file.read_text(encoding="utf-8")) for file in FILES
}
# (channels, sides, images of the smallest training class, classes) of the datasets that recipes exist for.
SHAPES = {
    "digits": (1, (8, 8), 139, 10),
    "MNIST": (1, (28, 28), 5421, 10),
    "FashionMNIST": (1, (28, 28), 6000, 10),
    "CIFAR10": (3, (32, 32), 5000, 10),
    "CIFAR100": (3, (32, 32), 500, 100),
    "SVHN": (3, (32, 32), 4659, 10),
    "Tiny": (3, (64, 64), 500, 200),
    **dict.fromkeys(NAMES, (3, (128, 128), 732, 10)),  # the smallest class of all of ImageNet
    "3D-MNIST": (1, (16, 16, 16), 100, 10),  # of 10000; how many of the rarest digit its source does not say
}
OBJECTIVES = {"DC": dc, "DM": dm, "TM": tm}
BLOCKS = [
    pytest.param(objective, dataset, cell, id=f"{objective} {dataset} {cell}")
    for objective, table in TABLES.items()
    for dataset, cells in table.items()
    for cell in cells
]
CELLS = [
    pytest.param(objective, dataset, ipc, id=f"{objective} {dataset} {ipc}")
    for objective in TABLES
    for dataset, ipcs in recipes.available(objective).items()
    for ipc in ipcs
]


def options_of(objective):
    """The dataclass behind <objective>/distill.py, with the type of each option."""
    folder, _, part = objective.partition("/")
    if part:  # a script for several objectives has a class for each
        names = runpy.run_path(str(ROOT / folder / "distill.py"))
        kind = names[part]
    else:
        names, kind = {}, OBJECTIVES[objective].Options
    module = OBJECTIVES[part or objective]
    # The annotations are text that the names of their modules give a meaning to.
    kinds = typing.get_type_hints(kind, {**vars(options_module), **vars(module), **names})
    # TM's recipes also say how its experts are trained.
    return kind, kinds | (typing.get_type_hints(options_module.BufferOptions) if objective.endswith("TM") else {})


def fits(value, kind):
    """Whether a TOML value is of an option's type; an integer will do for a float."""
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if typing.get_args(kind):
        return any(fits(value, part) for part in typing.get_args(kind))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def test_there_are_recipes():
    assert "DM" in TABLES
    assert {"CIFAR10", "digits"} <= recipes.available("DM").keys()


@pytest.mark.parametrize(("objective", "dataset", "cell"), BLOCKS)
def test_blocks_say_where_they_come_from_and_name_options(objective, dataset, cell):
    blocks = TABLES[objective][dataset][cell]
    if cell.endswith("_published"):
        assert blocks.keys() <= {"accuracy", "std", "source"}
        assert {"accuracy", "source"} <= blocks.keys()
        assert 0 < blocks["accuracy"] < 100
        return
    assert cell == "any" or (cell.startswith("ipc") and cell[3:].isdigit() and int(cell[3:]) >= 1)
    assert isinstance(blocks, list)
    _, kinds = options_of(objective)
    seen = set()
    for block in blocks:
        assert isinstance(block["source"], str)
        assert block["source"].split(":")[0] in ("published", "tuned here", "paper") or len(block["source"]) > 10
        given = block.keys() - {"source"}
        assert given
        assert given <= kinds.keys()
        for key in given:
            assert fits(block[key], kinds[key]), (key, block[key])
        assert not given & seen, "defined by two blocks of one cell"
        seen |= given
    assert not seen & {"dataset", "ipc", "name", "save_path", "device", "resume", "recipe", "data_path"}


@pytest.mark.parametrize(("objective", "dataset", "ipc"), CELLS)
def test_cells_are_possible(objective, dataset, ipc):
    """At least one image a class, no more than there are, at most all coefficients; options that pass the check."""
    recipe = recipes.find(objective, dataset, ipc)
    kind, _ = options_of(objective)
    options = dataclasses.replace(options_module.with_recipe(kind, recipe), dataset=dataset, ipc=ipc)
    check(options, objective)
    assert recipe.values.keys() == recipe.sources.keys()
    channels, sides, smallest, classes = SHAPES[dataset]
    d = math.prod(sides)
    assert 1 <= options.msz_per_channel <= d
    assert 1 <= ipc * d // options.msz_per_channel <= smallest
    build_network(options.model, channels, classes, sides)


@pytest.mark.parametrize("objective", TABLES)
def test_pixels_are_the_same_cell_with_their_own_step(objective):
    if "pixels" not in TABLES[objective]:
        pytest.skip("no pixel baseline")
    for dataset, ipcs in recipes.available(objective).items():
        for ipc in ipcs:
            plain, pixels = recipes.find(objective, dataset, ipc), recipes.find(objective, dataset, ipc, pixels=True)
            assert pixels.values["msz_per_channel"] == 0
            changed = {key for key in pixels.values if pixels.values[key] != plain.values.get(key)}
            assert changed <= {"msz_per_channel", "lr_freq"}
    assert "pixels" not in recipes.available(objective)


def test_a_cells_own_values_win_and_other_cells_are_empty(monkeypatch):
    table = {
        "set": {
            "any": [{"source": "a", "Iteration": 1, "lr_freq": 2.0}],
            "ipc1": [{"source": "b", "lr_freq": 3.0}, {"source": "c", "mom_freq": 0.25}],
            "ipc1_published": {"accuracy": 60.5, "source": "paper"},
            "ipc10": [{"source": "d", "lr_freq": 4.0}],
        },
        "pixels": {"any": [{"source": "p", "lr_freq": 1.0}]},
    }
    monkeypatch.setattr(recipes, "_table", lambda objective: table)
    recipe = recipes.find("DM", "set", 1)
    assert recipe.values == {"Iteration": 1, "lr_freq": 3.0, "mom_freq": 0.25}
    assert recipe.sources == {"Iteration": "a", "lr_freq": "b", "mom_freq": "c"}
    assert recipe.published == {"accuracy": 60.5, "source": "paper"}
    assert recipes.find("DM", "set", 1, pixels=True).sources == {"Iteration": "a", "lr_freq": "p", "mom_freq": "c"}
    assert recipes.find("DM", "set", 10).published is None
    assert recipes.find("DM", "set", 2).values == {"Iteration": 1, "lr_freq": 2.0}  # what 'any' says
    assert recipes.find("DM", "other", 1).values == {}
    assert recipes.available("DM") == {"set": [1, 10]}
    recipes.check_dataset("DM", "set")
    for name in ("other", "pixels"):
        with pytest.raises(InputError, match=f"DM has no recipe for '{name}': choose one of set"):
            recipes.check_dataset("DM", name)


def test_shapes_of_the_digits():
    from common.datasets import load_dataset

    train, _ = load_dataset("digits")
    smallest = min(len(indices) for indices in train.class_indices)
    assert SHAPES["digits"] == (train.channels, tuple(train.im_size), smallest, train.num_classes)


def test_3d_mnist_is_as_published():
    """The authors' script and the defaults of their command line; nothing is augmented."""
    published = {
        "model": "Conv3DNet", "msz_per_channel": 512, "lr_freq": 1e6, "mom_freq": 0.5, "Iteration": 1000,
        "eval_it": 200, "num_eval": 5, "epoch_eval_train": 500, "lr_net": 0.01, "batch_real": 256, "dsa": False,
        "selection": "variance", "selection_images": "init",
    }  # fmt: skip
    recipe = recipes.find("DM", "3D-MNIST", 1)
    assert recipe.values == published
    assert all(source.startswith("published") for source in recipe.sources.values())


def test_cifar10_at_two_images_is_as_published():
    """The authors' script and the defaults of their command line."""
    published = {"msz_per_channel": 64, "lr_freq": 1e6, "mom_freq": 0.5, "Iteration": 20000, "num_eval": 5}
    recipe = recipes.find("DM", "CIFAR10", 2)
    assert published.items() <= recipe.values.items()
    assert all(recipe.sources[key].startswith("published") for key in published)
    defaults = {
        "batch_real": 256, "batch_train": 256, "epoch_eval_train": 1000, "lr_net": 0.01, "eval_it": 2000, "dsa": True,
        "dsa_strategy": DSA_STRATEGY, "model": "ConvNetD3", "selection": "variance", "selection_images": "init",
        "batch_syn": 0, "precision": "fp32", "seed": 0,
    }  # fmt: skip
    options = dataclasses.asdict(ClassMatchingOptions(**recipe.values))
    assert {key: options[key] for key in defaults} == defaults
