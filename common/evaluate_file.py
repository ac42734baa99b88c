"""Evaluate a synthetic-set file: the one implementation behind every folder's evaluate.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.augment import parse_strategy
from common.datasets import load_dataset
from common.devices import compile_or_not, describe_hardware, precision, resolve_device
from common.errors import InputError, run_command
from common.evaluate import Batches, EvaluationProtocol, evaluate, mean_and_std
from common.files import write_json
from common.networks import build_network
from common.options import EvaluateOptions, parse_plain
from common.run import code_version
from common.synset_file import load_synset


def main() -> None:
    """`python DM/evaluate.py --synset FILE`: print the accuracy, and the one stored in the file beside it."""
    run_command(lambda: show(parse_plain(EvaluateOptions)))


def show(options: EvaluateOptions) -> None:
    """Evaluate and print; with --output also write the result as JSON."""
    result = evaluate_file(options)
    stored = result["stored"]
    print(f"{100 * result['mean']:.2f} +- {100 * result['std']:.2f} % ({result['n']} x {result['network']})")
    if stored:
        print(
            f"{100 * stored['mean']:.2f} +- {100 * stored['std']:.2f} % is stored in the file ({stored['n']} networks)"
        )
    if options.output:
        write_json(Path(options.output), result)


def evaluate_file(options: EvaluateOptions) -> dict[str, Any]:
    """{"mean", "std", "n", "accuracies", "network", "stored", ...}; raises InputError for what cannot work."""
    device = resolve_device(options.device)
    synset, metadata = load_synset(options.synset, device)
    protocol = _protocol(options, metadata)
    network_name = options.model or metadata["network"]
    train_data, test_data = load_dataset(
        options.dataset or metadata["dataset"], options.data_path, download=not options.no_download,
        image_size=metadata["image_size"], mean=metadata["mean"], std=metadata["std"], workers=options.workers,
    )  # fmt: skip
    if (test_data.channels, *test_data.im_size) != (synset.channel, *synset.im_size):
        raise InputError(
            f"the test images are {(test_data.channels, *test_data.im_size)}, "
            f"the synthetic ones {(synset.channel, *synset.im_size)}: give the --dataset it was made from"
        )
    if list(test_data.class_names) != metadata["class_names"]:
        raise InputError(
            f"{options.synset} was made for other classes than those of {test_data.name}: give its own --dataset"
        )
    del train_data
    network = build_network(network_name, synset.channel, synset.num_classes, synset.im_size).to(device)
    forward = compile_or_not(network, options.compile, tqdm.write)
    batches = Batches(*synset.get(need_copy=True))
    bar = tqdm(total=options.num_eval * (protocol.epochs + 1), desc=network_name, unit="epoch", dynamic_ncols=True)
    with bar, precision(options.precision, device):
        accuracies = list(
            evaluate(
                network,
                lambda number: batches,
                test_data.to(device),
                protocol,
                range(options.num_eval),
                options.seed,
                forward=forward,
                on_epoch=bar.update,
            )
        )
    return {
        **mean_and_std(accuracies),
        "accuracies": accuracies,
        "synset": options.synset,
        "network": network_name,
        "evaluation": protocol.as_metadata(),
        "stored": metadata.get("accuracy"),
        "seed": options.seed,
        "version": code_version(),
        "hardware": describe_hardware(device),
    }


def _protocol(options: EvaluateOptions, metadata: dict[str, Any]) -> EvaluationProtocol:
    """The file's protocol, with what flags say instead; the learned step size of a file goes before a fixed one."""
    stored = EvaluationProtocol(**metadata["evaluation"])
    if "step_size" in metadata:
        stored = dataclasses.replace(stored, lr=metadata["step_size"])
    asked: dict[str, Any] = {
        "epochs": options.epoch_eval_train,
        "lr": options.lr_net,
        "batch": options.batch_train,
        "strategy": options.dsa_strategy,
    }
    if options.num_eval < 1:
        raise InputError(f"--num_eval {options.num_eval} is too small: give at least 1")
    protocol = dataclasses.replace(stored, **{key: value for key, value in asked.items() if value is not None})
    if not (protocol.epochs >= 0 and protocol.lr > 0 and protocol.batch >= 1):
        raise InputError(f"--epoch_eval_train, --lr_net and --batch_train must be positive: {protocol}")
    parse_strategy(protocol.strategy)
    return dataclasses.replace(protocol, strategy="" if protocol.strategy == "none" else protocol.strategy)
