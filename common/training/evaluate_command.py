"""Evaluates a synthetic-set file or a baseline, as every objective's evaluate.py does."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from common.config.checks import check_references, check_stored_as, check_training, output_files
from common.config.evaluate_options import EvaluateOptions
from common.datasets.folder import said_first
from common.networks import Network, build_network
from common.networks.graphs import can_capture
from common.networks.pools import build_pool, principal
from common.report.description import describe_files
from common.report.evaluated import distillation_seconds, lines_of, table_of
from common.report.scores import worth
from common.report.verdict import compared
from common.synset.file import StoredSet
from common.system import parallel
from common.system.devices import can_compile, describe_hardware, resolve_device
from common.system.errors import InputError
from common.system.files import write_csv, write_json
from common.system.text import networks_of, point_of
from common.system.version import code_version
from common.training import references
from common.training.evaluation_setup import EvaluationSetup, prepare_evaluation, said_by
from common.training.pool import EvaluationNetwork, evaluate_pool, networks_at_once
from common.training.stored_real import describe_storage, storage_columns


def show(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> None:
    """Evaluate and print the accuracies; with --output also write the result as JSON and one CSV row per network.

    objective: the objective whose recipes say how a baseline is trained; a synthetic-set file says so itself. defaults:
    values of options that affect evaluations, where the objective's default differs from that of `DistillOptions`.

    Raises InputError for options that cannot work, and if --output would overwrite the set or its own table.
    """
    files = None if options.output is None else output_files(options.output, options.synset)
    result = evaluate_file(options, objective, defaults)
    if result["storage"] is not None:
        print(describe_storage(result["storage"]))
    if "files" in result:
        print(describe_files(result["files"]))
    for line in lines_of(result):
        print(line)
    if files is not None and parallel.is_main():
        write_json(files[0], result)
        write_csv(files[1], table_of(result, storage_columns(result["storage"])))


def evaluate_file(
    options: EvaluateOptions, objective: str, defaults: dict[str, Any], stored: StoredSet | None = None
) -> dict[str, Any]:
    """Evaluate what the options name, a synthetic-set file or a baseline.

    Returns {"network", "mean", "std", "n", "accuracies", "diverged" (if any), "networks" (for a pool only), "stored",
    ...}, with accuracies as fractions, and "files" of a set that was imported.
    stored: the content of the file options.synset, if the caller has read the file already.
    Raises InputError for options that cannot work, and if all networks diverge.
    """
    with said_first(options.dataset):
        check_training(options)
        check_stored_as(options)
        check_references(options)
        device = resolve_device(options.device)
        setup = prepare_evaluation(options, objective, defaults, device, stored)
    compiles = options.compile and can_compile()
    graphs = options.cuda_graphs and can_capture(device)
    with said_by(options.synset):
        networks = networks_to_train(options, setup)
    setup.check_networks(networks, options.synset)
    pool = {name: EvaluationNetwork(each.to(device), compiles, graphs) for name, each in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in pool}  # when each network was finished
    begun = time.monotonic()
    accuracies = evaluate_pool(
        pool,
        setup.training_sets,
        setup.test,
        setup.protocol,
        options.num_eval,
        options.seed,
        dataset=setup.dataset,
        together=options.networks_at_once,
        precision=options.precision,
        on_accuracy=lambda name, _: times[name].append(time.monotonic()),
    )
    together = networks_at_once(options.networks_at_once, device) * parallel.world()
    seconds = {}
    for name, finished in times.items():
        seconds[name] = _seconds_each([begun, *finished], together)
        begun = finished[-1]
    standing = principal(pool, setup.network)
    point = point_of(accuracies, standing)
    found = references.measure(options, setup, pool)
    protocols = {name: setup.protocol.for_network(setup.dataset, name) for name in pool}
    evaluation, soft = protocols[standing].as_metadata(), setup.soft_labels
    return {
        **point,
        "seconds": seconds,
        "evaluation_seconds": {name: round(sum(each), 3) for name, each in seconds.items()},
        "distillation_seconds": distillation_seconds(options.synset),
        "published": compared(setup.cell, standing, evaluation, point),
        "references": found,
        "scores": {
            name: worth(figures, {what: each[name] for what, each in found.items()}, soft is not None)
            for name, figures in networks_of(point).items()
        },
        "options": dataclasses.asdict(options),
        "evaluation": evaluation,
        "augmentation": {name: protocol.describe_augmentation() for name, protocol in protocols.items()},
        "soft_labels": soft,
        "stored": setup.stored,
        "storage": setup.storage,
        **({} if setup.files is None else {"files": setup.files}),
        "version": code_version(),
        "hardware": describe_hardware(device),
    }


def networks_to_train(options: EvaluateOptions, setup: EvaluationSetup) -> dict[str, Network]:
    """The networks to train, by name: those of --models, those of --eval_mode, or else the network of the setup."""
    channels, classes, im_size = setup.test.channels, setup.test.num_classes, setup.test.im_size
    if options.models is None:
        mode = options.eval_mode or "SS"
        return build_pool(mode, setup.network, channels, classes, im_size, setup.protocol.kind)
    if options.eval_mode is not None or options.model is not None:
        raise InputError("--models names the networks: leave out --eval_mode and --model")
    names = dict.fromkeys(name.strip() for name in options.models.split(","))
    return {name: build_network(name, channels, classes, im_size) for name in names}


def _seconds_each(finished: list[float], together: int) -> list[float]:
    """Seconds per network: the time of each group of `together` networks, shared equally among them.

    finished: the start, followed by the time at which each network was finished.
    """
    count = len(finished) - 1
    took = []
    for start in range(0, count, together):
        end = min(start + together, count)
        took += [round((finished[end] - finished[start]) / (end - start), 3)] * (end - start)
    return took
