"""Parsing of command lines. A flag overrides the recipe's value, and the recipe overrides the default."""

from __future__ import annotations

import dataclasses
import io
import math
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_type_hints

import tyro

from common import recipes
from common.config import rule
from common.config.checks import check, check_numbers, check_positive, refuse_flags
from common.config.options import ALIASES, BufferOptions, DataOptions, DistillOptions, Sources
from common.config.validation import OWN_SHARE, ValidationOptions
from common.datasets import is_resizable
from common.datasets.folder import said_first
from common.datasets.imagenet_classes import canonical, resolve
from common.disk.paths import expand_options
from common.images.pixels import check_side
from common.recipes.shapes import SHAPES
from common.synset.adam import ADAM_STEP
from common.system.errors import InputError, nearest_names
from common.terminal.grouped import grouped, in_one_column

Options = TypeVar("Options", bound=DistillOptions)


Recipes = TypeVar("Recipes", bound=DataOptions)


Buffers = TypeVar("Buffers", bound=BufferOptions)


Plain = TypeVar("Plain")


# Flags are written with underscores, as the authors write them; booleans take a value (see _spell_out_booleans).
_STYLE: dict[str, Any] = {"use_underscores": True, "config": (tyro.conf.FlagConversionOff,)}


@dataclass
class _RecipeKey:
    """The options that decide which recipe applies."""

    dataset: str = DataOptions.dataset
    subset: str | None = None
    ipc: int = DistillOptions.ipc
    recipe: str | None = None
    transform: str = DistillOptions.transform
    zca: bool = False
    bits_per_class: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)

    def recipe_of(self, objective: str, ipc: int) -> recipes.Recipe:
        """The recipe for these options; `cifar100_stats` is dropped for other datasets and for whitened images."""
        found = find_recipe(objective, self.dataset, ipc, self.recipe, self.transform)
        if self.dataset != "CIFAR100" or self.zca:
            found = found.without("cifar100_stats")
        return found


def parse(kind: type[Options], objective: str, argv: Sequence[str] | None = None) -> tuple[Options, Sources]:
    """Return the options of a command line and the source of each: 'flag', 'default' or the recipe's source.

    Raises InputError for values that cannot work. A flag that does not exist or does not parse exits with code 2.
    """
    argv = _spell_out_booleans(kind, argv)
    cell = _cell(argv, kind)
    with said_first(cell.dataset):
        return _parse_cell(kind, objective, argv, cell)


def _parse_cell(kind: type[Options], objective: str, argv: list[str], cell: _RecipeKey) -> tuple[Options, Sources]:
    flags = flags_of(argv)
    if "ipc" not in flags:
        cell.ipc = _nearest_ipc(cell, objective)
    recipe = cell.recipe_of(objective, cell.ipc)
    usual = dataclasses.replace(with_recipe(kind, recipe, cell.dataset), ipc=cell.ipc)
    options = _read(kind, argv, default=usual)
    sources = _sources(options, flags, recipe)
    if options.bits_per_class is not None and "ipc" not in flags:
        sources["ipc"] = "nearest to --bits_per_class"
    for key in ("msz_per_channel", "lr_freq"):
        if key in flags:
            check_positive(options, key)
    options, sources = rule.with_side(*_as_stored(*_at_size(options, sources, recipe)))
    options, sources = rule.mark(options, sources, objective)
    check(options, objective, rule.is_left(sources, "msz_per_channel"))
    return options, sources


def flags_of(argv: Sequence[str] | None = None) -> set[str]:
    """The options that a command line gives by a flag."""
    words = {word[2:].split("=")[0].replace("-", "_") for word in _given(argv) if word.startswith("--")}
    return {ALIASES.get(word, word) for word in words}


def _sources(options: object, flags: set[str], recipe: recipes.Recipe) -> Sources:
    return {
        key: "flag" if key in flags else recipe.sources[key] if key in recipe.values else "default"
        for key in vars(options)
    }


def _at_size(options: Options, sources: Sources, recipe: recipes.Recipe) -> tuple[Options, Sources]:
    """Scale k and lr_freq from the recipe's image size to that of the options, unless flags give them.

    The number of synthetic images and the learning rate in orthonormal units stay the same.
    """
    size, wanted = recipe.values.get("image_size"), options.image_size
    if size is None or wanted in (None, size) or options.transform == "identity":
        return options, sources
    pixels = (wanted / size) ** 2
    scaled = {key: getattr(options, key) for key in ("msz_per_channel", "lr_freq") if sources[key] != "flag"}
    scaled = {key: type(value)(value * pixels) for key, value in scaled.items()}
    told = {key: f"{sources[key]} (scaled from {size} px)" for key in scaled}
    return dataclasses.replace(options, **scaled), sources | told


def _nearest_ipc(cell: _RecipeKey, objective: str) -> int:
    """The ipc whose float32 images take the most similar number of bits, among those with a recipe.

    It stays as it is if no number of bits is given, or if the size of the images is not known before they are loaded.
    """
    shape, ipcs = SHAPES.get(cell.dataset), recipes.available(objective).get(cell.recipe or cell.dataset, [])
    if cell.bits_per_class is None or cell.bits_per_class < 1 or shape is None or not ipcs:
        return cell.ipc
    if cell.image_size is not None:
        check_side(cell.image_size)
    sides = shape.im_size if cell.image_size is None else (cell.image_size,) * len(shape.im_size)
    wanted = cell.bits_per_class / (32 * shape.channels * math.prod(sides))
    return recipes.nearest(objective, cell.recipe or cell.dataset, wanted)


def _as_stored(options: Options, sources: Sources) -> tuple[Options, Sources]:
    """The options with what another storage or optimiser puts in place of a recipe's values.

    Raises InputError for flags that would then be ignored.
    """
    changes: dict[str, Any] = {}
    if options.optimizer_used == "adam":
        refuse_flags(sources, ["mom_freq"], "Adam has no --mom_freq: leave it out, or give --optimizer sgd")
        if sources["lr_freq"] != "flag":
            changes["lr_freq"] = ADAM_STEP
    if options.storage == "coded":
        refuse_flags(
            sources, ["msz_per_channel", "selection", "selection_images", "positions"],
            "a coded set keeps no positions, its rounding decides: leave out --{flag}",
        )  # fmt: skip
        changes["msz_per_channel"] = 0
    elif options.positions == "joint":
        refuse_flags(
            sources, ["selection", "selection_images"],
            "joint positions are those of the largest energy in the initial images: leave out --{flag}",
        )  # fmt: skip
    told = dict.fromkeys(changes, f"of --storage {options.storage}, --optimizer {options.optimizer_used}")
    if options.joint:
        told |= dict.fromkeys(("selection", "selection_images"), "unused")
    return dataclasses.replace(options, **changes), sources | told


def parse_buffer(kind: type[Buffers], objective: str, argv: Sequence[str] | None = None) -> Buffers:
    """Return the options of a buffer.py, as `parse_buffer_with_sources` without the sources."""
    return parse_buffer_with_sources(kind, objective, argv)[0]


def parse_buffer_with_sources(
    kind: type[Buffers], objective: str, argv: Sequence[str] | None = None
) -> tuple[Buffers, Sources]:
    """Return the options of a buffer.py and the source of each.

    Flags override the recipe values that hold for every ipc of the dataset, and these override the defaults. For images
    of one's own, the network goes by their size, and experts are tested after every epoch: TM's rule reads the curve.
    """
    argv = _spell_out_booleans(kind, argv)
    cell = _cell(argv, kind)
    recipe = cell.recipe_of(objective, recipes.EVERY_IPC)
    usual = with_recipe(kind, recipe, cell.dataset)
    sources = dict[str, str]()
    if cell.recipe is None and rule.is_own(usual):
        decided: dict[str, Any] = {"validation_share": OWN_SHARE, "model": rule.BY_SIZE, "test_every": 1}
        usual, sources = dataclasses.replace(usual, **decided), dict.fromkeys(decided, rule.SOURCE)
    options, flags = _read(kind, argv, default=usual), flags_of(argv)
    given = _sources(options, flags, recipe)
    return rule.with_side(options, given | {key: told for key, told in sources.items() if given[key] == "default"})


def _cell(argv: Sequence[str], kind: type[DataOptions]) -> _RecipeKey:
    """Read the options that decide the recipe, before all others; the dataset defaults to that of `kind`."""
    return _read_some(argv, _RecipeKey(dataset=kind.dataset))


def read_first(kind: type[Plain], argv: Sequence[str] | None = None) -> Plain:
    """Read only the options of `kind` and ignore all other words: they decide how the rest is parsed."""
    return _read_some(_given(argv), kind())


def _read_some(argv: Sequence[str], default: Plain) -> Plain:
    wanted = [word for word in argv if word not in ("-h", "--help")]
    quiet = {**_STYLE, "add_help": False, "console_outputs": False}
    try:
        with redirect_stderr(io.StringIO()):
            read, _ = tyro.cli(type(default), args=wanted, default=default, return_unknown_args=True, **quiet)
    except SystemExit:  # a value is missing or wrong; parsing the whole command line later reports it
        return default
    return read


def parse_plain(kind: type[Plain], argv: Sequence[str] | None = None) -> Plain:
    """Return the options of a command that uses no recipe."""
    return _read(kind, _spell_out_booleans(kind, argv))


def parse_command(kinds: dict[str, type], program: str, argv: Sequence[str] | None = None) -> Any:
    """Return the options of a command line whose first word names one of `kinds`, as an instance of that class.

    Raises InputError for another first word.
    """
    words = _given(argv)
    kind = kinds.get(words[0]) if words else None
    if kind is not None:
        words = [words[0], *_spell_out_booleans(kind, words[1:])]
    elif words and not words[0].startswith("-"):
        raise InputError(f"there is no {words[0]!r} in {program}, did you mean {nearest_names(words[0], kinds)}?")
    if _asks_for_help(words):
        kinds = {name: grouped(each) for name, each in kinds.items()}
    named: Any = tuple(Annotated[each, tyro.conf.subcommand(name, prefix_name=False)] for name, each in kinds.items())
    return _read(Union[named], words, prog=program)  # noqa: UP007 (made from a tuple)


def parse_some(kind: type[Plain], argv: Sequence[str] | None = None) -> tuple[Plain, list[str]]:
    """Return the options of a command that uses no recipe, and the words that are none of its options."""
    return _read(kind, _spell_out_booleans(kind, argv), return_unknown_args=True)


def _read(kind: Any, words: list[str], **more: Any) -> Any:
    """What tyro reads for every command, with every path expanded.

    Raises InputError for a number that is not finite, whichever option has it, and for a path in no home folder.
    """
    if isinstance(kind, type) and _asks_for_help(words):
        kind = grouped(kind, more.pop("default", None))
    with in_one_column(), redirect_stdout(getattr(sys.stdout, "stream", sys.stdout)):  # help is in colours
        read = tyro.cli(kind, args=words, **more, **_STYLE)
    options = read[0] if more.get("return_unknown_args") else read
    check_numbers(options)
    expand_options(options)
    return read


def _asks_for_help(words: Sequence[str]) -> bool:
    return "-h" in words or "--help" in words


def find_recipe(
    objective: str, dataset: str, ipc: int, borrowed: str | None = None, transform: str = "dct"
) -> recipes.Recipe:
    """Return the recipe of a (dataset, ipc) cell, or an empty recipe if there is none.

    borrowed: use the recipe of this dataset instead. The recipe's image_size, resize and antialias are kept only if the
    images of `dataset` can be resized.
    Raises InputError if the objective has no recipe for `borrowed`.
    """
    if borrowed is not None:
        recipes.check_dataset(objective, borrowed)
    found = recipes.find(objective, borrowed or dataset, ipc, pixels=transform == "identity")
    return found if is_resizable(dataset) else found.without("image_size", "resize", "antialias")


def with_recipe(kind: type[Recipes], recipe: recipes.Recipe, dataset: str | None = None) -> Recipes:
    """Return default options with the recipe's values; recipe values that `kind` has no option for are left out.

    dataset: the dataset of the options, on which other defaults depend; None keeps the default of `kind`.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    values = {key: value for key, value in recipe.values.items() if key in known}
    return kind(**values) if dataset is None else kind(dataset=dataset, **values)


def options_with_sources(options: DistillOptions, sources: Sources, objective: str) -> dict[str, dict[str, Any]]:
    """Return the value and source of every option, for config.json.

    An option given by a flag also has `instead_of`: the recipe's value, or the default if the recipe has none.
    """
    cell = _RecipeKey(options.dataset, None, options.ipc, options.recipe, options.transform, options.zca)
    usual = with_recipe(type(options), cell.recipe_of(objective, options.ipc), options.dataset)
    return {
        key: {"value": value, "source": sources[key]}
        | ({"instead_of": getattr(usual, key)} if sources[key] == "flag" else {})
        for key, value in dataclasses.asdict(options).items()
    }


def data_flags(options: DataOptions, unless: DataOptions) -> list[str]:
    """Return the flags for the options of data and, if both have them, of validation that differ in `unless`."""
    words: list[str] = []
    kinds = [kind for kind in (DataOptions, ValidationOptions) if isinstance(unless, kind)]
    for field in (field for kind in kinds for field in dataclasses.fields(kind) if hasattr(options, field.name)):
        value = getattr(options, field.name)
        if value != getattr(unless, field.name):
            words += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
    return words


def _given(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)


def _spell_out_booleans(kind: type, argv: Sequence[str] | None) -> list[str]:
    """Rewrite `--dsa`, `--no_dsa` and `--dsa true` as `--dsa True` or `--dsa False`.

    Both the usual spelling and the authors' are thus accepted.
    """
    booleans = {name for name, hint in get_type_hints(kind).items() if "bool" in str(hint)}
    words: list[str] = []
    rest = iter([*_given(argv), ""])
    word: Any = next(rest)
    for following in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_") if word.startswith("--") else ""
        if name in booleans and equals:
            words += [f"--{name}", _capital(value)]
        elif name in booleans:
            words.append(f"--{name}")
            if _capital(following) not in ("True", "False"):
                words.append("True")
        elif name.startswith("no_") and name[3:] in booleans and not equals:
            words += [f"--{name[3:]}", "False"]
        else:
            words.append(_capital(word) if words and words[-1].removeprefix("--") in booleans else word)
        word = following
    return words


def _capital(word: str) -> str:
    return {"true": "True", "false": "False", "1": "True", "0": "False"}.get(word.lower(), word)
