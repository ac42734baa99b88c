"""Evaluate a synthetic-set file or a baseline: the one implementation behind every folder's evaluate.py."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from common.config.command_line import parse_plain
from common.config.options import EvaluateOptions
from common.networks import Network, build_network
from common.networks.pools import build_pool, principal
from common.synset.file import StoredSet
from common.system import parallel
from common.system.command import run_command
from common.system.devices import can_compile, describe_hardware, resolve_device
from common.system.errors import InputError
from common.system.files import write_csv, write_json
from common.system.text import in_percent, networks_of, point_of, with_diverged
from common.system.version import code_version
from common.training.evaluation_setup import EvaluationSetup, prepare_evaluation
from common.training.pool import EvaluationNetwork, evaluate_pool, networks_at_once


def main(objective: str, **defaults: Any) -> None:
    """`python DM/evaluate.py --synset FILE`: print the accuracy, and the one stored in the file beside it.

    objective: whose recipes say how a baseline is trained; a file says it itself. defaults: options of the objective's
    distillation that have another default than in `DistillOptions`, and bear upon evaluations.
    """
    run_command(lambda: show(parse_plain(EvaluateOptions), objective, defaults), several=True)


def show(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> None:
    """Evaluate and print; with --output also write the result as JSON, and a CSV row for every network."""
    result = evaluate_file(options, objective, defaults)
    stored = result["stored"]
    for name, figures in networks_of(result).items():
        print(f"{in_percent(figures)} ({figures['n']} x {name})")
    if stored:
        print(
            f"{in_percent(stored)} is stored in the file ({stored['n']} x {stored.get('network', result['network'])})"
        )
    if options.output and parallel.is_main():
        write_json(Path(options.output), result)
        write_csv(Path(options.output).with_suffix(".csv"), rows(result))


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for every network of an evaluation: its name, number and seed, accuracy in %, seconds of training.

    Where networks diverged, which have no accuracy, rows also say 1 for those and 0 for the others.
    """
    table = [
        {
            "network": name,
            "number": number,
            "seed": result["options"]["seed"],
            "accuracy": None if each is None else 100 * each,
            "seconds": took,
        }
        for name, figures in networks_of(result).items()
        for number, (each, took) in enumerate(zip(figures["accuracies"], result["seconds"][name], strict=True))
    ]
    return with_diverged(table)


def evaluate_file(
    options: EvaluateOptions, objective: str, defaults: dict[str, Any], stored: StoredSet | None = None
) -> dict[str, Any]:
    """{"network", "mean", "std", "n", "accuracies", "diverged" (if any), "networks" (of a pool), "stored", ...}.

    stored: the set that options.synset names, where it has been read already.
    Raises InputError for what cannot work, and where all networks diverge.
    """
    device = resolve_device(options.device)
    setup = prepare_evaluation(options, objective, defaults, device, stored)
    compiles = options.compile and can_compile()
    pool = {name: EvaluationNetwork(each.to(device), compiles) for name, each in _networks(options, setup).items()}
    times: dict[str, list[float]] = {name: [] for name in pool}  # at which each network was finished
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
    return {
        **point_of(accuracies, standing),
        "seconds": seconds,
        "options": dataclasses.asdict(options),
        "evaluation": setup.protocol.for_network(setup.dataset, standing).as_metadata(),
        "stored": setup.stored,
        "version": code_version(),
        "hardware": describe_hardware(device),
    }


def _networks(options: EvaluateOptions, setup: EvaluationSetup) -> dict[str, Network]:
    """The networks to train, by name: those of --models, or of --eval_mode, or the one that the set was made with."""
    channels, classes, im_size = setup.test.channels, setup.test.num_classes, setup.test.im_size
    if options.models is None:
        mode = options.eval_mode or "SS"
        return build_pool(mode, setup.network, channels, classes, im_size, setup.protocol.kind)
    if options.eval_mode is not None or options.model is not None:
        raise InputError("--models names the networks: leave out --eval_mode and --model")
    names = dict.fromkeys(name.strip() for name in options.models.split(","))
    return {name: build_network(name, channels, classes, im_size) for name in names}


def _seconds_each(finished: list[float], together: int) -> list[float]:
    """Of networks that ended at these times, the first the start, the seconds each took: its share of its group's."""
    count = len(finished) - 1
    took = []
    for start in range(0, count, together):
        end = min(start + together, count)
        took += [round((finished[end] - finished[start]) / (end - start), 3)] * (end - start)
    return took
