"""How well networks trained on a synthetic set stand drifted test images: CIFAR-10-C, CIFAR-10.1, ImageNet-C.

Networks are trained once, as any evaluation trains them, and tested on the clean images and then on every corruption
and level, each of which is read once. The figure of the authors is the plain mean of the accuracies over corruptions
(of one level, 5 in their script) and networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from tqdm import tqdm

from common.config.checks import check_least
from common.config.command_line import parse_plain
from common.config.options import DSA_STRATEGY, EvaluateOptions
from common.datasets import ImageData, check_dataset, default_data_path, is_imagenet, load_dataset
from common.datasets.imagenet_classes import PREFIX, SYNONYMS, WHOLE
from common.images.image_data import with_statistics
from common.images.pixels import Resize, ResizeMode
from common.networks import build_network
from common.networks.pools import EvalMode
from common.report import pictures
from common.robustness.targets import CORRUPTIONS, LEVELS, Condition, Target, TargetName, open_target
from common.synset.authors import is_authors, read_authors
from common.system.command import run_command
from common.system.devices import can_compile, check_precision, describe_hardware, precision, resolve_device
from common.system.errors import InputError
from common.system.files import read_json, write_csv, write_json
from common.system.text import in_percent, mean_and_std
from common.system.version import code_version
from common.training.evaluate import evaluate
from common.training.evaluate_command import Subject, find_subject, override
from common.training.train import Batches, EvaluationProtocol, accuracy

OBJECTIVE = "TM"  # whose sets the authors test; its recipes say how a baseline is trained
# What the authors' script trains with, whichever set.
AUTHORS_PROTOCOL = EvaluationProtocol(epochs=1000, lr=0.01, batch=256, strategy=DSA_STRATEGY)
AUTHORS_NETWORK, AUTHORS_IMAGENET_NETWORK = "ConvNetD3", "ConvNetD5"
HALF = 0.5  # mean and std that the authors normalise CIFAR-10-C and CIFAR-10.1 with


@dataclass
class RobustnessOptions(EvaluateOptions):
    """Train networks on a synthetic set and test them on drifted images. What is not given comes from the file."""

    synset: str | None = None
    """the synthetic set: a .safetensors file of this project or the authors' images_*.pt or res_*.pt (default, without
    --baseline: the authors' file of --dataset and --ipc below --synset_path)"""
    ipc: int | None = None
    """baselines and --synset_path: images a class (1 unless given)"""
    dataset: Annotated[str | None, tyro.conf.arg(aliases=("--source_dataset",))] = None
    """what the set was made from, if not where the file says; with the authors' files CIFAR10 (unless given) or
    ImageNet with its --subset (baselines: digits, so name one)"""
    eval_mode: Annotated[EvalMode | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """one kind of network is tested, that of --model"""
    models: Annotated[str | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """likewise"""
    networks_at_once: Annotated[int, tyro.conf.Suppress, tyro.conf.Fixed] = 1
    """networks are trained one by one: each is kept, and tested on everything"""
    output: str | None = None
    """write results.csv, results.json and heatmap.png to this folder"""
    synset_path: str | None = None
    """folder with FreD/CIFAR10/FreD_ipc1#images_best.pt, FreD/ImageNet/imagenette/... and so on, the authors' names
    (default: trained_synset beside the script)"""
    target_dataset: TargetName | None = None
    """the drifted images (default: ImageNet-C for subsets of ImageNet, else CIFAR10-C)"""
    target_path: str | None = None
    """folder that holds CIFAR10-C/, CIFAR10.1/ or imagenet-c/ (default: as --data_path)"""
    level: str = "all"
    """severity, 1 (mild) to 5 (severe; the authors' script), or all; CIFAR10.1 has none"""
    corruptions: tuple[str, ...] | None = None
    """which of them (default: the fifteen standard ones)"""
    versions: tuple[Literal["v4", "v6"], ...] | None = None
    """of CIFAR10.1 (default: v6, as the authors)"""
    target_stats: Literal["train", "half"] = "train"
    """how drifted images are normalised: train as those that the networks were trained on; half by mean 0.5 and std
    0.5, a fault of the authors' code for CIFAR10-C and CIFAR10.1, to compare with their figures"""
    relative_to: str | None = None
    """results.json of a baseline, tested on the same images, gives the mean corruption error (mCE), in % of
    its errors"""


def main(folder: Path) -> None:
    """`python corruption-exp/evaluate.py --synset FILE`: the table of accuracies. folder: the script's own."""
    run_command(lambda: show(parse_plain(RobustnessOptions), folder))


def show(options: RobustnessOptions, folder: Path) -> None:
    """Measure, print, and with --output write."""
    output = None if options.output is None else Path(options.output)
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # said before the training, not after
            raise InputError(f"cannot write to the folder --output {output}: {error.strerror}") from error
    result = measure(options, folder)
    if output is not None:
        write_json(output / "results.json", result)
        write_csv(output / "results.csv", as_rows(result))
        table, kinds, columns = as_table(result)
        names = [each.replace("_", " ") for each in kinds]
        title = f"{result['target']} by {result['n']} x {result['network']}, clean {in_percent(result['clean'])}"
        pictures.draw_accuracies(output / "heatmap.png", 100 * table, names, columns, title)
    print(as_text(result))


def measure(options: RobustnessOptions, folder: Path) -> dict[str, Any]:
    """Train and test: {"clean", "conditions", "mean", "relative_drop", "mce", ...}, accuracies as fractions.

    Raises InputError for what cannot work, as far as it can be known before the training.
    """
    levels = _levels(options.level)
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    subject = (
        _authors_set(options, folder, device) if _of_authors(options) else find_subject(options, OBJECTIVE, {}, device)
    )
    clean = subject.test
    target = _target(options, subject, levels)
    baseline = None if options.relative_to is None else _baseline_errors(options, target)

    network = build_network(subject.network, clean.channels, clean.num_classes, clean.im_size).to(device)
    protocol = subject.protocol.for_network(subject.dataset, subject.network)
    forward = torch.compile(network) if options.compile and can_compile(tqdm.write) else network
    clean_accuracies: list[float] = []
    trained: list[dict[str, torch.Tensor]] = []
    total = options.num_eval * protocol.epochs_of_training
    with (
        tqdm(total=total, desc=subject.network, unit="epoch", dynamic_ncols=True) as bar,
        precision(options.precision, device),
    ):
        for each in evaluate(
            network,
            subject.training_sets,
            clean,
            protocol,
            range(options.num_eval),
            options.seed,
            forward=forward,
            on_epoch=bar.update,
        ):
            clean_accuracies.append(each)
            trained.append({key: value.clone() for key, value in network.state_dict().items()})

    accuracies: dict[Condition, list[float]] = {}
    with (
        tqdm(target.parts.items(), desc=target.name, unit="test", dynamic_ncols=True) as conditions,
        precision(options.precision, device),
    ):
        for condition, part in conditions:
            drifted = part.read().to(device)
            if options.target_stats == "half":
                drifted = with_statistics(drifted, [HALF] * drifted.channels, [HALF] * drifted.channels)
            accuracies[condition] = []
            for state in trained:
                network.load_state_dict(state)
                accuracies[condition].append(accuracy(network, drifted, forward))

    return {
        "target": target.name,
        "target_stats": options.target_stats,
        "network": subject.network,
        **summarise(clean_accuracies, accuracies, baseline),
        "images": {str(condition): part.size for condition, part in target.parts.items()},
        "options": dataclasses.asdict(options),
        "evaluation": protocol.as_metadata(),
        "stored": subject.stored,
        "version": code_version(),
        "hardware": describe_hardware(device),
    }


# -- figures -----------------------------------------------------------------------------------------------------------


def summarise(
    clean: Sequence[float],
    accuracies: Mapping[Condition, Sequence[float]],
    baseline: Mapping[Condition, float] | None = None,
) -> dict[str, Any]:
    """The figures of some networks from their accuracies (fractions), on clean images and under each condition.

    "mean" is the authors' figure, by network the plain mean over all conditions. "relative_drop" is the share of the
    clean accuracy that is lost (None where there is none to lose). With the errors of a baseline there is also "mce".
    """
    by_network = np.array(list(accuracies.values())).mean(axis=0).tolist()  # from [conditions, networks]
    average = float(np.mean(clean))
    figures: dict[str, Any] = {
        "n": len(clean),
        "clean": _figures(clean),
        "conditions": [{"kind": kind, "level": level, **_figures(each)} for (kind, level), each in accuracies.items()],
        "mean": _figures(by_network),
        "relative_drop": 1 - float(np.mean(by_network)) / average if average else None,
    }
    if baseline is not None:
        errors = {condition: [1 - each for each in of_networks] for condition, of_networks in accuracies.items()}
        figures["mce"] = mean_corruption_error(errors, baseline)
    return figures


def mean_corruption_error(
    errors: Mapping[Condition, Sequence[float]], baseline: Mapping[Condition, float]
) -> dict[str, Any]:
    """Corruption errors of networks as shares of a baseline's, 1 for as many errors: {"mean", "std", "n", "by_kind"}.

    CE_c = sum over levels s of E_{s,c}  /  sum over levels s of E^baseline_{s,c},  mCE = mean over corruptions c
    (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
    2019, section 3.2, where the baseline is AlexNet). Sums go over the levels that were tested, all five in the paper.

    errors: top-1 errors as fractions, of each network; baseline: of its networks' mean. Raises InputError where the
    baseline makes no error.
    """
    ratios: dict[str, np.ndarray] = {}  # of each network
    for kind in dict.fromkeys(condition.kind for condition in errors):
        levels = [condition for condition in errors if condition.kind == kind]
        against = sum(baseline[condition] for condition in levels)
        if not against > 0:
            raise InputError(f"the baseline makes no error under {kind}: an error relative to it is not defined")
        ratios[kind] = np.sum([errors[condition] for condition in levels], axis=0) / against
    by_network = np.mean(list(ratios.values()), axis=0).tolist()
    return {
        **mean_and_std(by_network),
        "networks": by_network,
        "by_kind": {kind: float(each.mean()) for kind, each in ratios.items()},
    }


def _figures(accuracies: Sequence[float]) -> dict[str, Any]:
    return {**mean_and_std(accuracies), "accuracies": list(accuracies)}


def _baseline_errors(options: RobustnessOptions, target: Target) -> dict[Condition, float]:
    """The errors, means over networks, in the file of --relative_to; raises InputError unless they can be compared."""
    file = Path(options.relative_to or "")
    try:
        stored = read_json(file)
        name, stats = stored["target"], stored["target_stats"]
        sizes = dict(stored["images"])
        errors = {Condition(each["kind"], each["level"]): 1 - float(each["mean"]) for each in stored["conditions"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{file} is not readable as results of this script ({error}): give the results.json that --output wrote"
        ) from error
    if (name, stats) != (target.name, options.target_stats):
        raise InputError(
            f"{file} is of {name} with --target_stats {stats}, this is {target.name} with {options.target_stats}: "
            "test both alike"
        )
    if lacking := [condition for condition in target.parts if condition not in errors]:
        raise InputError(f"{file} lacks {lacking[0]}: test the baseline on the same corruptions and levels")
    for condition, part in target.parts.items():
        if (count := sizes.get(str(condition))) != part.size:
            raise InputError(f"{file} is of {count} images of {condition}, here are {part.size}: test both alike")
    return errors


# -- what is shown -----------------------------------------------------------------------------------------------------


def as_table(result: dict[str, Any]) -> tuple[np.ndarray, list[str], list[str]]:
    """Mean accuracies as fractions [kinds, levels], and the names of rows and columns."""
    found = {(each["kind"], each["level"]): each["mean"] for each in result["conditions"]}
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    levels = list(dict.fromkeys(level for _, level in found))
    table = np.array([[found[kind, level] for level in levels] for kind in kinds])
    return table, kinds, ["accuracy" if level is None else f"level {level}" for level in levels]


def as_text(result: dict[str, Any]) -> str:
    """The table in %, means over networks, and below it the figures of all conditions together."""
    table, kinds, columns = as_table(result)
    names, rows = [*kinds], [*table]
    if len(kinds) > 1:
        names, rows = [*names, "mean"], [*rows, table.mean(axis=0)]
    figures = np.array(rows)
    if len(columns) > 1:
        columns, figures = [*columns, "mean"], np.column_stack([figures, figures.mean(axis=1)])
    if "mce" in result:
        errors = result["mce"]["by_kind"] | {"mean": result["mce"]["mean"]}
        columns, figures = [*columns, "CE"], np.column_stack([figures, [errors[name] for name in names]])
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{column:>10}" for column in columns)]
    lines += [
        f"{name:<{width}}" + "".join(f"{100 * figure:10.2f}" for figure in row)
        for name, row in zip(names, figures, strict=True)
    ]
    stats = "" if result["target_stats"] == "train" else ", normalised by mean 0.5 and std 0.5"
    lines += [
        "",
        f"clean  {in_percent(result['clean'])} ({result['n']} x {result['network']})",
        f"mean   {in_percent(result['mean'])} ({result['target']}{stats})",
    ]
    if result["relative_drop"] is not None:
        lines.append(f"drop   {100 * result['relative_drop']:.2f} % of the clean accuracy")
    if "mce" in result:
        lines.append(f"mCE    {in_percent(result['mce'])} of the errors in {result['options']['relative_to']}")
    return "\n".join(lines)


def as_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a network and condition, those on clean images first: accuracies as fractions."""
    tests = [{"kind": "clean", "level": None, **result["clean"]}, *result["conditions"]]
    return [
        {"kind": test["kind"], "level": test["level"], "network": result["network"], "number": number, "accuracy": each}
        for test in tests
        for number, each in enumerate(test["accuracies"])
    ]


# -- what is tested ----------------------------------------------------------------------------------------------------


def _levels(text: str) -> tuple[int, ...]:
    if text == "all":
        return LEVELS
    if text not in map(str, LEVELS):
        raise InputError(f"--level {text} is none of {', '.join(map(str, LEVELS))} or all")
    return (int(text),)


def _target(options: RobustnessOptions, subject: Subject, levels: Sequence[int]) -> Target:
    clean = subject.test
    name: TargetName = options.target_dataset or ("ImageNet-C" if is_imagenet(clean.name) else "CIFAR10-C")
    kinds: Sequence[str]
    if name == "CIFAR10.1":
        if options.corruptions is not None:
            raise InputError("--corruptions are for CIFAR10-C and ImageNet-C: CIFAR10.1 has --versions")
        kinds = options.versions or ("v6",)
    else:
        if options.versions is not None:
            raise InputError(f"--versions is for CIFAR10.1: leave it out with {name}")
        kinds = options.corruptions or CORRUPTIONS
    if options.target_stats == "half" and clean.whitening is not None:
        raise InputError("--target_stats half takes the place of mean and std, and this set was whitened: leave it out")
    root = Path(options.target_path or options.data_path or default_data_path(clean.name)).expanduser()
    return open_target(
        name,
        root,
        clean,
        list(dict.fromkeys(kinds)),
        levels,
        resize=subject.resize,
        skip_corrupt=options.skip_corrupt,
        workers=options.workers,
    )


def _of_authors(options: RobustnessOptions) -> bool:
    """Whether the set is a file of the authors: named, or found by its name where nothing is."""
    return options.baseline is None and (options.synset is None or is_authors(options.synset))


def _authors_set(options: RobustnessOptions, folder: Path, device: torch.device) -> Subject:
    """A set in the authors' format, with what their script says of it: the file itself says nothing."""
    check_least(options, "num_eval", 1)
    check_least(options, "ipc", 1)
    if any(value is not None for value in (options.recipe, options.cifar100_stats, options.zca)):
        raise InputError("--recipe, --cifar100_stats and --zca are for baselines: leave them out with a synthetic set")
    if options.synset is not None and options.ipc is not None:
        raise InputError("--ipc says which file of --synset_path is meant: leave it out with --synset")
    dataset = options.dataset or "CIFAR10"
    check_dataset(dataset, options.subset)
    found = read_authors(options.synset or _authors_file(options, dataset, folder))
    imagenet = is_imagenet(dataset)
    # The authors squash, and their version of torchvision did not antialias.
    antialias = not imagenet if options.antialias is None else options.antialias
    mode: ResizeMode = options.resize or ("squash" if imagenet else "crop")
    _, test = load_dataset(
        dataset,
        options.data_path,
        download=not options.no_download,
        image_size=options.image_size or (found.im_size[0] if imagenet else None),
        resize=mode,
        antialias=antialias,
        skip_corrupt=options.skip_corrupt,
        workers=options.workers,
    )
    _check_fit(test, found.images, found.num_classes)
    batches = Batches(found.images.to(device), found.labels.to(device))
    network = options.model or (AUTHORS_IMAGENET_NETWORK if imagenet else AUTHORS_NETWORK)
    protocol = override(AUTHORS_PROTOCOL, options)
    resize = Resize(test.im_size[0], mode, antialias)
    return Subject(lambda number: batches, test.to(device), dataset, network, protocol, resize)


def _check_fit(test: ImageData, images: torch.Tensor, classes: int) -> None:
    if tuple(images.shape[1:]) != tuple(test.images.shape[1:]) or classes != test.num_classes:
        raise InputError(
            f"the test images of {test.name} are {tuple(test.images.shape[1:])} of {test.num_classes} classes, the "
            f"synthetic ones {tuple(images.shape[1:])} of {classes}: give the --dataset they were made from"
        )


def _authors_file(options: RobustnessOptions, dataset: str, folder: Path) -> Path:
    """FreD/CIFAR10/FreD_ipc1#images_best.pt, or below FreD/ImageNet by any of the subset's names."""
    root = Path(options.synset_path or folder / "trained_synset").expanduser() / "FreD"
    places = [root / dataset]
    if is_imagenet(dataset):
        key = dataset.removeprefix(PREFIX)
        # The authors' own keys first.
        synonyms = [name for name, known in SYNONYMS.items() if known == key]
        places = [root / WHOLE / name for name in (*synonyms, key)]
    files = [place / f"FreD_ipc{options.ipc or 1}#images_best.pt" for place in places]
    for file in files:
        if file.is_file():
            return file
    raise InputError(
        f"there is no {files[0]}: put the authors' images_best.pt and labels_best.pt there under this name (and with "
        "#labels_best.pt), or give --synset FILE or --baseline random|full"
    )
