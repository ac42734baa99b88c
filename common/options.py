"""The options behind every command line, and how they are resolved: flag, then recipe, then default."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

import torch
import tyro

from common import parallel, recipes
from common.augment import STRATEGIES, parse_strategy
from common.datasets import (
    PREFIXES,
    ImageData,
    check_dataset,
    default_image_size,
    is_resizable,
    load_dataset,
    statistics,
)
from common.datasets.image_data import ResizeMode, Statistics
from common.datasets.imagenet_classes import canonical, resolve
from common.devices import Precision
from common.errors import InputError
from common.frequency import TransformName
from common.pools import EvalMode, EvalProtocol
from common.selection import SelectionRule
from common.track import TrackerName

DSA_STRATEGY = "_".join(STRATEGIES)

# Where a run computes, reads and writes: two runs that differ in these alone are the same run.
# Of every other option the default has to mean what the code did before there was the option: see identity.py.
NOT_PART_OF_A_RUN = frozenset({
    "data_path", "no_download", "workers", "save_path", "name", "device", "resume", "checkpoint_every", "export",
    "track", "track_project", "track_group", "buffer_path",
})  # fmt: skip

# The authors' ImageNet scripts call it --res.
_ALIASES = {"res": "image_size"}
ImageSize = Annotated[int | None, tyro.conf.arg(aliases=tuple(f"--{alias}" for alias in _ALIASES))]


@dataclass
class DataOptions:
    """Which images."""

    dataset: str = "digits"
    """digits (built in), MNIST, FashionMNIST, SVHN, CIFAR10, CIFAR100, Tiny, 3D-MNIST, imagenet-SUBSET, folder:PATH
    with train/CLASS/ and test/CLASS/ (or val/), hf:owner/name of the Hugging Face hub, or hf:PATH with parquet files"""
    subset: str | None = None
    """with --dataset ImageNet: a, b, c, d, e, imagenette, imagewoof, fruits, yellow, cats, birds, geo, food, mammals or
    marine"""
    data_path: str | None = None
    """folder that holds the datasets, or into which they are downloaded; of imagenet-SUBSET the one with train/ and
    val/ (default: data; for imagenet-SUBSET what the variable IMAGENET names, if set)"""
    no_download: bool = False
    """never download a missing dataset"""
    image_size: ImageSize = None
    """side in pixels of the squares that the images of imagenet-SUBSET (default: 128), folder: or hf: (default: left
    as they are) are made"""
    resize: ResizeMode = "crop"
    """crop: the shorter side is scaled to image_size pixels and the centre square cut out; squash: both sides are"""
    antialias: bool = True
    """antialias what is scaled down; without, as the authors' torchvision 0.12 did"""
    skip_corrupt: bool = False
    """leave out image files that cannot be read, and say how many, instead of stopping"""
    recipe: str | None = None
    """take hyper-parameters (for folder: and hf: also mean and std) from this dataset's recipe"""
    zca: bool = False
    """whiten the images (ZCA, fitted to the training images; 2-D only) instead of normalising by mean and std"""
    cifar100_stats: Literal["cifar100", "cifar10"] = "cifar100"
    """mean and std that CIFAR100 is normalised with; cifar10: those of the authors' trajectory-matching folder"""
    workers: int | None = None
    """threads that decode image files (default: by image size and cores)"""

    def __post_init__(self) -> None:
        # Names in one form only. What makes no sense is left for `check` and `load` to refuse.
        self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)
        if self.image_size is None:
            self.image_size = default_image_size(self.dataset)

    def load(self) -> tuple[ImageData, ImageData]:
        """(train, test) on the CPU; folder: and hf: take mean and std from `recipe`. Raises InputError."""
        check_dataset(self.dataset, self.subset)
        mean, std = self._borrowed_statistics()
        with parallel.main_first():
            return load_dataset(
                self.dataset,
                self.data_path,
                download=not self.no_download,
                image_size=self.image_size,
                resize=self.resize,
                antialias=self.antialias,
                skip_corrupt=self.skip_corrupt,
                mean=mean,
                std=std,
                zca=self.zca,
                workers=self.workers,
                progress=parallel.is_main(),
            )

    def _borrowed_statistics(self) -> Statistics | tuple[None, None]:
        """Mean and std of another dataset than this one; (None, None) to keep its own."""
        lender = None
        if self.cifar100_stats == "cifar10":
            if self.dataset != "CIFAR100" or self.zca:
                raise InputError(
                    "--cifar100_stats cifar10 sets CIFAR100's mean and std: "
                    "leave it out with another dataset or with --zca"
                )
            lender = "CIFAR10"
        elif self.dataset.startswith(tuple(PREFIXES)) and not self.zca:
            lender = self.recipe
        if lender is None:
            return None, None
        borrowed = statistics(lender)
        if borrowed is None:
            raise InputError(f"--recipe {lender} has no mean and std to borrow: give a dataset such as CIFAR10")
        return borrowed


@dataclass
class EvaluationOptions:
    """How a synthetic set is tested: networks trained from scratch on it."""

    num_eval: int = 5
    """networks trained per evaluation"""
    epoch_eval_train: int | None = 1000
    """epochs of training; one more is run, as in the authors' code, and the step size falls to a tenth halfway
    (None, the default of DC: 1000 where images are augmented, else 300)"""
    batch_train: int = 256
    """images per training step"""
    lr_net: float = 0.01
    """step size of the evaluation networks with --eval_protocol dc (SGD, momentum 0.9, weight decay 5e-4)"""
    eval_mode: EvalMode = "S"
    """networks that are tested: S the distillation network (without its BN), SS as it is, C it and ConvNet, or a pool:
    M and B architectures (B with batch norm), CIFAR architectures for small images, ConvNet's W widths, D depths,
    A activations, P poolings, N norms"""
    eval_protocol: EvalProtocol = "dc"
    """dc: constant step size, a tenth of it in the second half; glad (ImageNet-abcde): warm-up, cosine, a step size by
    architecture (1e-3, VGG11 1e-4), and the weights' moving average over epochs is tested"""
    networks_at_once: int = 0
    """networks of a kind that are trained at the same time (0: all on a GPU, one after another on a CPU)"""


@dataclass
class DistillOptions(EvaluationOptions, DataOptions):
    """What every objective's distillation takes."""

    model: str = "ConvNetD3"
    """network that is matched and evaluated; ConvNet with depth D1..D8, width W32.., norm NN|BN|LN|IN|GN, ..."""
    ipc: int = 1
    """budget: what is stored per class, in images of the dataset"""
    msz_per_channel: int = 0
    """k, coefficients kept per channel of a synthetic image; n = ipc * pixels / k images a class
    (0: from the recipe; with --transform identity: every pixel)"""
    lr_freq: float = 0.0
    """step size on the coefficients, in units of the transform, the unnormalised DCT's for dct
    (0: from the recipe, converted for dft and dwt)"""
    mom_freq: float = 0.5
    """momentum on the coefficients"""
    transform: TransformName = "dct"
    """dct, dft (Fourier), dwt (Haar wavelets), or identity for plain pixels, whose lr_freq is in normalised pixel
    values; k real numbers per channel and image in each"""
    selection: SelectionRule = "variance"
    """rule that chooses the k positions of a class; variance is the paper's"""
    selection_images: Literal["init", "class"] = "init"
    """images the rule looks at: the n initial ones (as the authors do) or all of the class"""
    Iteration: int = 20000
    """updates of the synthetic set"""
    dsa: bool = True
    """differentiable Siamese augmentation while matching and evaluating; without it MNIST and ConvNetBN are evaluated
    with the augmentation of DC, as in the authors' code"""
    dsa_strategy: str = DSA_STRATEGY
    """augmentations, joined by underscores"""
    eval_it: int = 2000
    """updates between two evaluations (0: only before the first and after the last update)"""
    wait_eval: bool = False
    """test the distillation network alone until the last update, and only then the other networks of --eval_mode"""
    seed: int = 0
    """every random draw is a function of it"""
    device: str = "auto"
    """auto (a CUDA GPU if there is one), cpu, cuda, cuda:N"""
    precision: Precision = "fp32"
    """networks in fp32, tf32 or bf16; the coefficients and their transform are always float32"""
    compile: bool = False
    """compile the networks: about half a minute before the first update, then faster ones"""
    chunk: int | None = None
    """images per pass through the network (default: by device); memory and speed, not the result"""
    save_path: str = "runs"
    """run folders lie below it: <objective>/<dataset>/ipc<ipc>/<name>"""
    name: str | None = None
    """name of the run folder (default: made from the options, so the same command finds its run again)"""
    resume: Literal["auto", "never"] = "auto"
    """auto: continue what the run folder holds; never: discard it and start anew"""
    checkpoint_every: int = 0
    """updates between two checkpoints (0: as often as costs a hundredth of the time)"""
    export: bool = False
    """write the best set also as images_best.pt and labels_best.pt, the authors' format"""
    track: TrackerName = "none"
    """show curves and pictures also in wandb or tensorboard; wandb runs offline where nobody is logged in"""
    track_project: str | None = None
    """wandb's project (default: WANDB_PROJECT, else fred)"""
    track_group: str | None = None
    """wandb's group (default: <objective>/<dataset>/ipc<ipc>)"""

    @property
    def strategy(self) -> str:
        """The augmentation in force: '' for none."""
        return self.dsa_strategy if self.dsa else ""


@dataclass
class BufferOptions(DataOptions):
    """Train expert networks on a dataset and keep their weights after every epoch, for trajectory matching."""

    model: str = "ConvNetD3"
    """network that is trained, and later matched"""
    num_experts: int = 100
    """experts in the buffer; those that are there already are not trained again"""
    train_epochs: int = 50
    """epochs of an expert's training"""
    keep_epochs: int | None = None
    """stop after this many of them: matching needs max_start_epoch - 1 + expert_epochs (default: all)"""
    batch_train: int = 256
    """images per training step"""
    lr_teacher: float = 0.01
    """step size (SGD)"""
    mom: float = 0.0
    """momentum"""
    l2: float = 0.0
    """weight decay"""
    decay: bool = False
    """lower the step size to a tenth halfway, after epoch train_epochs // 2 + 1 counted from 0"""
    dsa: bool = True
    """augment the images"""
    dsa_strategy: str = DSA_STRATEGY
    """augmentations, joined by underscores; one is drawn per step, its parameters per image"""
    test_every: int = 0
    """epochs between two tests of an expert (0: only at the end)"""
    wait: bool = False
    """where other processes train the last of the experts, wait until all are there"""
    buffer_path: str = "buffers"
    """experts lie below it: <dataset>[_zca]/<model>"""
    seed: int = 0
    """every random draw is a function of it"""
    device: str = "auto"
    """auto (a CUDA GPU if there is one), cpu, cuda, cuda:N"""
    precision: Precision = "fp32"
    """networks in fp32, tf32 or bf16"""
    compile: bool = False
    """compile the network: half a minute once, then faster epochs"""

    @property
    def strategy(self) -> str:
        """The augmentation in force, "none" where there is none."""
        return self.dsa_strategy if self.dsa else "none"


@dataclass
class ClassMatchingOptions(DistillOptions):
    """What objectives take that compare real and synthetic images class by class, DM and DC."""

    batch_real: int = 256
    """real images per class and update"""
    batch_syn: int = 0
    """synthetic images per class and update, drawn anew each time (0: all)"""


@dataclass
class EvaluateOptions:
    """Train networks on a synthetic set and test them. What is not given comes from the file."""

    synset: str | None = None
    """the synthetic set: a .safetensors file, hf://owner/name[/file] of the Hugging Face hub, or the authors' res_*.pt
    or images_*.pt (beside its labels_*.pt)"""
    baseline: Literal["random", "herding", "kcenter", "full"] | None = None
    """instead of a file: ipc real images a class, at random (each network sees another draw), chosen by herding or as
    k centres, or the whole training set"""
    coreset_epochs: int = 20
    """herding and kcenter: epochs on the whole training set of the network whose features they choose by"""
    ipc: int | None = None
    """baselines: real images a class of the random one (1 unless given); also which recipe says how to train"""
    model: str | None = None
    """another network than the one it was made with (baselines: the recipe's)"""
    eval_mode: EvalMode | None = None
    """test a pool of networks instead of one: M B CIFAR W D A P N, or C, S, SS around the network; see
    distill.py --help"""
    models: str | None = None
    """test these networks, joined by commas, e.g. ConvNetD3,AlexNet,VGG11,ResNet18"""
    eval_protocol: EvalProtocol | None = None
    """how networks are trained, dc or glad, if not as the file or the recipe says; glad has its own step sizes"""
    networks_at_once: int = 0
    """networks of a kind that are trained at the same time (0: all on a GPU, one after another on a CPU)"""
    dataset: str | None = None
    """where the test images are, e.g. folder:PATH, if not where they were (baselines: digits)"""
    subset: str | None = None
    """with --dataset ImageNet: a, b, c, d, e, imagenette, imagewoof, fruits, yellow, cats, birds, geo, food, mammals or
    marine"""
    image_size: ImageSize = None
    """side in pixels of the squares that images of imagenet-SUBSET, folder: or hf: are made, if not as the file says"""
    resize: ResizeMode | None = None
    """crop or squash, see distill.py --help; if not as the file (baselines: the recipe) says"""
    antialias: bool | None = None
    """antialias what is scaled down, if not as the file (baselines: the recipe) says"""
    skip_corrupt: bool = False
    """leave out image files that cannot be read, and say how many, instead of stopping"""
    recipe: str | None = None
    """baselines: train as this dataset's recipe says; on folder: and hf: also take its mean and std"""
    zca: bool | None = None
    """baselines: whiten the images (ZCA) instead of normalising them; a synthetic set says itself whether"""
    cifar100_stats: Literal["cifar100", "cifar10"] | None = None
    """baselines: mean and std that CIFAR100 is normalised with (cifar100 unless given)"""
    data_path: str | None = DataOptions.data_path
    """folder that holds the datasets, or into which they are downloaded (default: data; for imagenet-SUBSET what the
    variable IMAGENET names, if set)"""
    no_download: bool = False
    """never download a missing dataset"""
    workers: int | None = None
    """threads that decode image files (default: by image size and cores)"""
    num_eval: int = 5
    """networks trained"""
    epoch_eval_train: int | None = None
    """epochs of training (one more is run)"""
    batch_train: int | None = None
    """images per training step"""
    lr_net: float | None = None
    """step size of the networks; a learned one in the file goes before the protocol's"""
    dsa_strategy: str | None = None
    """augmentations joined by underscores, or none (MNIST and ConvNetBN then get the augmentation of DC)"""
    seed: int = 0
    """every random draw is a function of it"""
    device: str = "auto"
    """auto (a CUDA GPU if there is one), cpu, cuda, cuda:N"""
    precision: Precision = "fp32"
    """networks in fp32, tf32 or bf16"""
    compile: bool = False
    """compile the network: half a minute once, then faster epochs"""
    output: str | None = None
    """write the accuracies to this JSON file too"""

    def __post_init__(self) -> None:
        if self.dataset is not None:
            self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)


Options = TypeVar("Options", bound=DistillOptions)
Recipes = TypeVar("Recipes", bound=DataOptions)
Buffers = TypeVar("Buffers", bound=BufferOptions)
Plain = TypeVar("Plain")
Sources = dict[str, str]

# Underscores in flags and help, as the authors write them; booleans take a value (see _spell_out_booleans).
_STYLE: dict[str, Any] = {"use_underscores": True, "config": (tyro.conf.FlagConversionOff,)}


@dataclass
class _Cell:
    """What decides the recipe."""

    dataset: str = DataOptions.dataset
    subset: str | None = None
    ipc: int = DistillOptions.ipc
    recipe: str | None = None
    transform: str = DistillOptions.transform
    zca: bool = False

    def __post_init__(self) -> None:
        self.dataset, self.subset = resolve(self.dataset, self.subset)
        self.recipe = self.recipe and canonical(self.recipe)

    def recipe_of(self, objective: str, ipc: int) -> recipes.Recipe:
        """The cell's recipe; of one that is borrowed, or for whitened images, without what is CIFAR-100's alone."""
        found = find_recipe(objective, self.dataset, ipc, self.recipe, self.transform)
        if self.dataset != "CIFAR100" or self.zca:
            found = found.without("cifar100_stats")
        return found


def parse(kind: type[Options], objective: str, argv: Sequence[str] | None = None) -> tuple[Options, Sources]:
    """The options of a command line, and for each where it came from: 'flag', 'default' or the recipe's source.

    Raises InputError for values that cannot work; a flag that does not exist or does not parse exits with code 2.
    """
    argv = _spell_out_booleans(kind, list(sys.argv[1:] if argv is None else argv))
    cell = _cell(argv, kind)
    recipe = cell.recipe_of(objective, cell.ipc)
    options = tyro.cli(kind, args=argv, default=with_recipe(kind, recipe, cell.dataset), **_STYLE)
    words = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    flags = {_ALIASES.get(word, word) for word in words}
    sources = {
        key: "flag" if key in flags else recipe.sources[key] if key in recipe.values else "default"
        for key in vars(options)
    }
    for key in ("msz_per_channel", "lr_freq"):
        if key in flags:
            check_positive(options, key)
    options, sources = _at_size(options, sources, recipe)
    check(options, objective)
    return options, sources


def _at_size(options: Options, sources: Sources, recipe: recipes.Recipe) -> tuple[Options, Sources]:
    """A recipe for images of one size at another: the same number of images, and the same step in orthonormal units."""
    size, wanted = recipe.values.get("image_size"), options.image_size
    if size is None or wanted in (None, size) or options.transform == "identity":
        return options, sources
    pixels = (wanted / size) ** 2
    scaled = {key: getattr(options, key) for key in ("msz_per_channel", "lr_freq") if sources[key] != "flag"}
    scaled = {key: type(value)(value * pixels) for key, value in scaled.items()}
    told = {key: f"{sources[key]} (scaled from {size} px)" for key in scaled}
    return dataclasses.replace(options, **scaled), sources | told


def parse_buffer(kind: type[Buffers], objective: str, argv: Sequence[str] | None = None) -> Buffers:
    """The options of a buffer.py: flag, then what the recipes say for every ipc of the dataset, then default."""
    argv = _spell_out_booleans(kind, list(sys.argv[1:] if argv is None else argv))
    cell = _cell(argv, kind)
    recipe = cell.recipe_of(objective, recipes.EVERY_IPC)
    return tyro.cli(kind, args=argv, default=with_recipe(kind, recipe, cell.dataset), **_STYLE)


def _cell(argv: Sequence[str], kind: type[DataOptions]) -> _Cell:
    """What decides the recipe, read before anything else is; its dataset is the kind's unless a flag names one."""
    return _read_some(argv, _Cell(dataset=kind.dataset))


def read_first(kind: type[Plain], argv: Sequence[str] | None = None) -> Plain:
    """The options of a kind alone, whatever else the command line says: what decides how the rest is read."""
    return _read_some(sys.argv[1:] if argv is None else argv, kind())


def _read_some(argv: Sequence[str], default: Plain) -> Plain:
    wanted = [word for word in argv if word not in ("-h", "--help")]
    quiet = {**_STYLE, "add_help": False, "console_outputs": False}
    try:
        with redirect_stderr(io.StringIO()):
            read, _ = tyro.cli(type(default), args=wanted, default=default, return_unknown_args=True, **quiet)
    except SystemExit:  # a value is missing or wrong: the second reading meets it too, and says so
        return default
    return read


def parse_plain(kind: type[Plain], argv: Sequence[str] | None = None) -> Plain:
    """The options of a command line that takes no recipe."""
    return tyro.cli(kind, args=_spell_out_booleans(kind, list(sys.argv[1:] if argv is None else argv)), **_STYLE)


def parse_command(kinds: dict[str, type], program: str, argv: Sequence[str] | None = None) -> Any:
    """The options of a command line whose first word is one of `kinds`: an instance of that kind."""
    words = list(sys.argv[1:] if argv is None else argv)
    kind = kinds.get(words[0]) if words else None
    if kind is not None:
        words = [words[0], *_spell_out_booleans(kind, words[1:])]
    named: Any = tuple(Annotated[each, tyro.conf.subcommand(name, prefix_name=False)] for name, each in kinds.items())
    return tyro.cli(Union[named], prog=program, args=words, **_STYLE)  # noqa: UP007 (made from a tuple)


def parse_some(kind: type[Plain], argv: Sequence[str] | None = None) -> tuple[Plain, list[str]]:
    """The options of a command line that takes no recipe, and the words that are none of them, to be passed on."""
    words = _spell_out_booleans(kind, list(sys.argv[1:] if argv is None else argv))
    options, rest = tyro.cli(kind, args=words, return_unknown_args=True, **_STYLE)
    return options, rest


def find_recipe(
    objective: str, dataset: str, ipc: int, borrowed: str | None = None, transform: str = "dct"
) -> recipes.Recipe:
    """The recipe of a cell, an empty one where there is none. Raises InputError for a borrowed name without recipes.

    How images are resized is borrowed only for a dataset whose images are.
    """
    if borrowed is not None:
        recipes.check_dataset(objective, borrowed)
    found = recipes.find(objective, borrowed or dataset, ipc, pixels=transform == "identity")
    return found if is_resizable(dataset) else found.without("image_size", "resize", "antialias")


def with_recipe(kind: type[Recipes], recipe: recipes.Recipe, dataset: str | None = None) -> Recipes:
    """Default options with the recipe's values; values for the options of other scripts are left out.

    dataset: the one they are for, which decides other defaults, if it is not the kind's.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    values = {key: value for key, value in recipe.values.items() if key in known}
    return kind(**values) if dataset is None else kind(dataset=dataset, **values)


def check(options: DistillOptions, objective: str) -> None:
    """Raises InputError for the first option that cannot work, before any data is read."""
    check_dataset(options.dataset, options.subset)
    for key in ("ipc", "batch_real", "batch_train", "num_eval", "image_size", "chunk", "workers"):
        check_least(options, key, 1)
    for key in (
        "Iteration",
        "batch_syn",
        "eval_it",
        "networks_at_once",
        "epoch_eval_train",
        "checkpoint_every",
        "mom_freq",
        "seed",
    ):
        check_least(options, key, 0)
    for key in ("lr_freq", "mom_freq", "lr_net"):
        check_float32(options, key)
    if options.name is not None and (options.name in ("", ".", "..") or "/" in options.name):
        raise InputError(f"--name '{options.name}' is not the name of a folder: --save_path says where it lies")
    all_pixels = options.transform == "identity" and options.msz_per_channel == 0
    if options.lr_freq == 0 or (options.msz_per_channel == 0 and not all_pixels):
        ipcs = recipes.available(objective).get(options.recipe or options.dataset, [])
        have = f"recipes exist for ipc {', '.join(map(str, ipcs))}" if ipcs else "there is none for this dataset"
        raise InputError(
            f"no recipe for {objective} on {options.recipe or options.dataset} at ipc {options.ipc} ({have}): "
            f"give --msz_per_channel and --lr_freq, or --recipe NAME to borrow another dataset's"
        )
    for key in ("msz_per_channel", "lr_freq", "lr_net"):
        if not (all_pixels and key == "msz_per_channel"):
            check_positive(options, key)
    parse_strategy(options.strategy)


def check_least(options: object, key: str, bound: int) -> None:
    """Raises InputError for an option that is there, given, and below its bound."""
    value = getattr(options, key, None)
    if value is not None and value < bound:
        raise InputError(f"--{key} {value} is too small: give at least {bound}")


def check_positive(options: object, key: str) -> None:
    """Raises InputError for an option that is not above zero."""
    if not getattr(options, key) > 0:
        raise InputError(f"--{key} {getattr(options, key)} must be positive")


def described(options: DistillOptions, sources: Sources, objective: str) -> dict[str, dict[str, Any]]:
    """Value and source of every option, for config.json.

    One that a flag gave has `instead_of` too: what the recipe says of it, else the default.
    """
    cell = _Cell(options.dataset, None, options.ipc, options.recipe, options.transform, options.zca)
    usual = with_recipe(type(options), cell.recipe_of(objective, options.ipc), options.dataset)
    return {
        key: {"value": value, "source": sources[key]}
        | ({"instead_of": getattr(usual, key)} if sources[key] == "flag" else {})
        for key, value in dataclasses.asdict(options).items()
    }


def refuse_step_size(options: EvaluationOptions, sources: Sources) -> None:
    """Raises InputError for --lr_net where nothing would be trained with it."""
    if options.eval_protocol == "glad" and sources["lr_net"] == "flag":
        raise InputError("--lr_net has no use with --eval_protocol glad, which has step sizes of its own: leave it out")


def check_float32(options: object, key: str) -> None:
    """Raises InputError for an option that float32 has no finite number for."""
    if not abs(getattr(options, key)) <= torch.finfo(torch.float32).max:
        raise InputError(f"--{key} {getattr(options, key)} is not a finite float32: give another")


def data_flags(options: DataOptions, unless: DataOptions) -> list[str]:
    """The flags for what `options` say of the images otherwise than `unless` do."""
    words: list[str] = []
    for field in dataclasses.fields(DataOptions):
        value = getattr(options, field.name)
        if value != getattr(unless, field.name):
            words += [f"--{field.name}"] if value is True else [f"--{field.name}", str(value)]
    return words


def _spell_out_booleans(kind: type, argv: list[str]) -> list[str]:
    """`--dsa`, `--no_dsa` and `--dsa true` become `--dsa True` or `--dsa False`: the usual form and the authors'."""
    booleans = {field.name for field in dataclasses.fields(kind) if "bool" in str(field.type)}
    words: list[str] = []
    rest = iter([*argv, ""])
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
