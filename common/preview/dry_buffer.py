"""`buffer.py --dry_run`: which experts would be trained, where, how long it takes, and what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.config.options import BufferOptions, Sources
from common.config.rule import with_network
from common.costs.estimate import estimate_experts
from common.costs.forecast import forecast_experts
from common.costs.memory import too_large
from common.experts.folder import buffer_folder, expert_files, missing_experts
from common.experts.train import check_experts
from common.networks import build_network
from common.preview.layout import cost_section, missing_section, options_told, section
from common.preview.missing import missing_data
from common.recipes.shapes import DataShape, known_shape
from common.system import parallel
from common.system.devices import resolve_device
from common.system.text import counted, describe_bytes, describe_seconds

_SECONDS = 1.0  # of measuring this machine
_FLOAT = 4  # bytes


def dry_run(options: BufferOptions, sources: Sources) -> None:
    """Print what the command would do. Nothing is written but caches of decoded images; nothing is fetched.

    Raises InputError for options that cannot work; images that are missing are part of what is printed.
    """
    protocol, _ = check_experts(options)
    epochs = protocol.keep_epochs
    told = {key: {"value": value, "source": sources[key]} for key, value in vars(options).items() if key != "dry_run"}
    lacks, name, shape = missing_data(options), options.dataset, known_shape(options.dataset, options.image_size)
    if lacks is None:
        train, test = dataclasses.replace(options, no_download=True).load()
        name, shape = train.name, DataShape.of(train, test)
        options = with_network(options, train.im_size)
    folder = buffer_folder(options.buffer_path, name, options.model, options.zca)
    sections = [section("options", options_told(told))]
    if shape is not None:
        network = build_network(options.model, shape.channels, shape.num_classes, shape.im_size)
        weights = sum(parameter.numel() for parameter in network.parameters())
        missing = missing_experts(folder, options.num_experts, (epochs + 1, weights))
        each = (epochs + 1) * weights * _FLOAT
        sections += [
            section("experts", [_there(folder, options.num_experts - len(missing), options.num_experts),
                                f"each takes {describe_bytes(each)} on the disk, {weights:,} weights after each of "
                                f"{counted(epochs, 'epoch')} and before"]),
            _cost(options, shape, len(missing), lacks is None),
        ]  # fmt: skip
    else:
        sections.append(section("experts", [_there(folder, len(expert_files(folder)), options.num_experts)]))
    if parallel.is_main():
        print("\n\n".join([*sections, missing_section([] if lacks is None else [lacks])]))
        print("\nnothing has been run (--dry_run)")


def _there(folder: Path, there: int, wanted: int) -> str:
    state = "finished" if there >= wanted else "begun" if there else "new"
    return f"{folder}: {state}, {there} of {counted(wanted, 'expert')} are there"


def _cost(options: BufferOptions, shape: DataShape, missing: int, loaded: bool) -> str:
    device = resolve_device(options.device)
    needs = estimate_experts(options, shape, device)
    told = forecast_experts(options, needs, shape, device, missing, loaded, seconds=_SECONDS)
    excess = too_large(needs, options, shape, device, loaded)
    time = f"{describe_seconds(told.seconds)}{told.busy} for {counted(missing, 'expert')}"
    return cost_section(time, told, needs, device, excess, "the run")
