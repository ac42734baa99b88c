"""Measures the accuracy of networks trained on a synthetic set on CIFAR-10-C, CIFAR-10.1 or ImageNet-C.

Networks are trained once, as in any evaluation. They are tested on the clean test images, then under every condition (a
corruption at one level, or a version of CIFAR-10.1). The images of each condition are read once. The authors report the
plain mean of the accuracies over networks and over the corruptions of one level, which is 5 in their script.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.config.checks import check_stored_as, check_training
from common.config.command_line import parse_plain
from common.datasets import default_data_path, is_imagenet
from common.disk.paths import expanded
from common.images.image_data import with_statistics
from common.networks import build_network
from common.networks.graphs import can_capture
from common.report import pictures
from common.robustness.authors_set import authors_set, is_authors_set
from common.robustness.conditions import CORRUPTIONS, LEVELS, Condition, Target, TargetName
from common.robustness.figures import baseline_errors, summarise
from common.robustness.options import RobustnessOptions
from common.robustness.tables import as_rows, as_table, as_text
from common.robustness.targets import open_target
from common.system.command import run_command
from common.system.devices import can_compile, check_precision, describe_hardware, precision, resolve_device
from common.system.errors import InputError
from common.system.files import check_not_read, check_writable, write_csv, write_json
from common.system.progress import Progress
from common.system.text import in_percent
from common.system.version import code_version
from common.training.evaluation_setup import EvaluationSetup, prepare_evaluation, said_by
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.stored_real import describe_storage
from common.training.train import accuracy, batches_of_test

OBJECTIVE = "TM"  # the authors test sets of TM; a baseline is trained by TM's recipes
HALF = 0.5  # the authors normalise CIFAR-10-C and CIFAR-10.1 with this mean and std


def main(folder: Path) -> None:
    """Run `python corruption-exp/evaluate.py --synset FILE`: print the table of accuracies.

    folder: the script's own folder.
    """
    run_command(lambda: show(parse_plain(RobustnessOptions), folder))


def show(options: RobustnessOptions, folder: Path) -> None:
    """Measure and print the accuracies; with --output also write results.json, results.csv and heatmap.png."""
    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_not_read("--output", [output / "results.json"], [options.relative_to])
        check_writable(output / "results.json")
    result = measure(options, folder)
    if output is not None:
        write_json(output / "results.json", result)
        write_csv(output / "results.csv", as_rows(result))
        table, kinds, columns = as_table(result)
        names = [each.replace("_", " ") for each in kinds]
        title = f"{result['target']} by {result['n']} x {result['network']}, clean {in_percent(result['clean'])}"
        pictures.draw_accuracies(output / "heatmap.png", 100 * table, names, columns, title)
    if result["storage"] is not None:
        print(describe_storage(result["storage"]))
    print(as_text(result))


def measure(options: RobustnessOptions, folder: Path) -> dict[str, Any]:
    """Train the networks and test them on the clean images and under every condition.

    Returns {"clean", "conditions", "mean", "relative_drop", "mce" (with --relative_to), ...}, see `summarise`.
    Accuracies are fractions.
    Raises InputError for options and files that cannot work, most of them before the training, and if all networks
    diverge.
    """
    levels = _levels(options.level)
    check_training(options)
    check_stored_as(options)
    device = resolve_device(options.device)
    check_precision(options.precision, device)
    if is_authors_set(options):
        setup = authors_set(options, folder, device)
    else:
        setup = prepare_evaluation(options, OBJECTIVE, {}, device)
    clean = setup.test
    target = _target(options, setup, levels)
    baseline = None
    if options.relative_to is not None:
        baseline = baseline_errors(Path(options.relative_to), target, options.target_stats)

    with said_by(options.synset):
        network = build_network(setup.network, clean.channels, clean.num_classes, clean.im_size).to(device)
    setup.check_networks({setup.network: network}, options.synset)
    evaluated = EvaluationNetwork(
        network, options.compile and can_compile(), options.cuda_graphs and can_capture(device)
    )
    trained: list[dict[str, torch.Tensor]] = []
    clean_accuracies = evaluate_pool(
        {setup.network: evaluated},
        setup.training_sets,
        clean,
        setup.protocol,
        options.num_eval,
        options.seed,
        dataset=setup.dataset,
        together=1,  # one by one, so that the weights of each network can be kept for the tests
        precision=options.precision,
        on_accuracy=lambda *_: trained.append({key: value.clone() for key, value in network.state_dict().items()}),
    )[setup.network]

    accuracies: dict[Condition, list[float | None]] = {}
    batches = sum(batches_of_test(part.size, clean.im_size) for part in target.parts.values()) * len(trained)
    with Progress(total=batches, desc=target.name, unit="batch") as bar, precision(options.precision, device):
        for condition, part in target.parts.items():
            shifted = part.read().to(device)
            if options.target_stats == "half":
                shifted = with_statistics(shifted, [HALF] * shifted.channels, [HALF] * shifted.channels)
            accuracies[condition] = []
            for state in trained:
                network.load_state_dict(state)
                accuracies[condition].append(accuracy(network, shifted, evaluated.forward, bar.update))

    return {
        "target": target.name,
        "target_stats": options.target_stats,
        "network": setup.network,
        **summarise(clean_accuracies, accuracies, baseline),
        "images": {str(condition): part.size for condition, part in target.parts.items()},
        "options": dataclasses.asdict(options),
        "evaluation": setup.protocol.for_network(setup.dataset, setup.network).as_metadata(),
        "stored": setup.stored,
        "storage": setup.storage,
        "version": code_version(),
        "hardware": describe_hardware(device),
    }


def _levels(text: str) -> tuple[int, ...]:
    if text == "all":
        return LEVELS
    if text not in map(str, LEVELS):
        raise InputError(f"--level {text} is none of {', '.join(map(str, LEVELS))} or all")
    return (int(text),)


def _target(options: RobustnessOptions, setup: EvaluationSetup, levels: Sequence[int]) -> Target:
    clean = setup.test
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
    root = expanded(options.target_path or options.data_path or default_data_path(clean.name))
    return open_target(
        name,
        root,
        clean,
        list(dict.fromkeys(kinds)),
        levels,
        resize=setup.resize,
        decoding=options.decoding or "stored",
        skip_corrupt=options.skip_corrupt,
        workers=options.workers,
    )
