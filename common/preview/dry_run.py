"""`distill.py --dry_run`: what a distillation would do, on which budget, where, how long, and what it lacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from common.config.command_line import options_with_sources
from common.config.options import DistillOptions, Sources
from common.config.seeds import parse_seeds
from common.config.sets import new_set
from common.costs.estimate import Estimate
from common.costs.forecast import budget_of, forecast, needs_of
from common.costs.memory import too_large
from common.experts.open import NoExperts
from common.preview.layout import cost_section, missing_section, options_told, section
from common.preview.missing import missing_data, missing_experts
from common.recipes.shapes import DataShape, known_shape
from common.report.description import describe_set
from common.runs.finished import how_far
from common.runs.identity import folder_of
from common.runs.loop import Distillation
from common.runs.pieces import rehearsal
from common.runs.seeds import one_seed
from common.runs.setup import fitted, set_up
from common.synset.base import LearnedSet
from common.synset.packed import PackedSet
from common.system import parallel
from common.system.devices import resolve_device
from common.system.text import counted, describe_seconds

Options = TypeVar("Options", bound=DistillOptions)
Distil = Callable[[Options, Sources, str], Distillation]
_SECONDS = 1.0  # of measuring this machine


def dry_run(distill: Distil[Options], options: Options, sources: Sources, objective: str) -> None:
    """Print what the command would do. The disk stays as it is but for caches of decoded images; nothing is fetched.

    distill: the function that would make the run, whose checks of the options are made. Raises InputError for options
    that cannot work; what is missing is part of what is printed.
    """
    first, first_sources = options, sources
    if options.seeds is not None:
        first, first_sources = one_seed(options, sources, parse_seeds(options.seeds)[0])
    lacks, told = [missing_data(first)], list[str]()
    first = dataclasses.replace(first, no_download=True)

    def tell(run: Distillation) -> Iterator[int]:
        resolved = dataclasses.replace(run.options, no_download=options.no_download)
        told.extend(_sections(resolved, run.sources, objective, DataShape.of(run.train, run.test), run.synset))
        return iter(())

    if lacks[0] is not None:
        told += _without_images(dataclasses.replace(first, no_download=options.no_download), first_sources, objective)
        if hasattr(options, "expert_epochs"):
            lacks.append(missing_experts(first, objective))
    else:
        try:
            with rehearsal(tell):
                distill(first, first_sources, objective)
        except NoExperts:
            setup = set_up(first, first_sources, objective)
            lacks.append(missing_experts(setup.options, objective))
            shape = DataShape.of(setup.train, setup.test)
            told += _sections(setup.options, setup.sources, objective, shape, setup.synset)
    if parallel.is_main():
        several = [] if options.seeds is None else [_seeds_told(options, sources, objective)]
        print("\n\n".join([*told, *several, missing_section([each for each in lacks if each is not None])]))
        print("\nnothing has been run (--dry_run)")


def _seeds_told(options: Options, sources: Sources, objective: str) -> str:
    lines = [f"the above is the first of {len(parse_seeds(options.seeds or ''))} runs; time is that of one"]
    for seed in parse_seeds(options.seeds or ""):
        one, _ = one_seed(options, sources, seed)
        folder = folder_of(one, objective)
        lines.append(f"{folder}: {how_far(folder, options.Iteration)[0]}")
    return section("runs of --seeds", lines)


def _without_images(options: Options, sources: Sources, objective: str) -> list[str]:
    """What is known before the images are there: everything for a dataset whose sizes are known."""
    shape = known_shape(options.dataset, options.image_size)
    if shape is None:
        lines = options_told(options_with_sources(options, sources, objective))
        return [section("options", lines), section("budget, time and memory", ["not known without the images"])]
    whole, from_where = fitted(options, sources, shape.im_size)
    return _sections(whole, from_where, objective, shape, None)


def _sections(
    options: DistillOptions, sources: Sources, objective: str, shape: DataShape, synset: LearnedSet | None
) -> list[str]:
    device, folder = resolve_device(options.device), folder_of(options, objective)
    state, made = how_far(folder, options.Iteration)
    if options.resume == "never" and state != "new":
        state, made = f"{state}; --resume never would delete it and start over", 0
    needs = needs_of(objective, options, shape, device)
    told = options_with_sources(options, sources, objective)
    return [
        section("options", options_told({key: each for key, each in told.items() if key != "dry_run"})),
        section("budget", _budget(options, shape, synset)),
        section("run folder", [f"{folder}: {state}"]),
        section("cost on this machine", ["no estimate can be made"])
        if needs is None
        else _cost(options, needs, shape, device, synset, made),
    ]


def _budget(options: DistillOptions, shape: DataShape, synset: LearnedSet | None) -> list[str]:
    """The budget in numbers and in bytes, and the synthetic images that it buys."""
    made = new_set(options, shape, "meta") if synset is None else synset
    label = describe_set(_metadata(options, made, synset is None))
    lines = [
        f"{counted(len(made.labels), 'synthetic image')}, n = {made.num_per_class} per class, in {budget_of(options)}"
    ]
    if synset is not None:
        return [*lines, synset.describe_budget()]
    at_most = " (bytes that a decoder needs: at most)" if isinstance(made, PackedSet) else ""
    return [*lines, f"{label['budget']}; {label['coefficients']}{at_most}"]


def _metadata(options: DistillOptions, made: LearnedSet, blank: bool) -> dict[str, Any]:
    """What `describe_set` asks for of a set whose file is not written yet."""
    storage: dict[str, Any] = {}
    if isinstance(made, PackedSet) and blank:
        numbers = made.coefficients.numel()
        storage = {"storage": {
            "kind": made.storage, "images_per_class": made.num_per_class, "numbers": numbers,
            "bits_per_class": made.bits_per_class, "bytes": made.num_classes * made.bits_per_class // 8,
            "colour": made.planes.colour, "block": made.planes.block, "positions": made.kept,
        }}  # fmt: skip
    return {
        "channel": made.channel, "num_classes": made.num_classes, "im_size": made.im_size, "ipc": made.ipc,
        "msz_per_channel": made.msz_per_channel or made.d, "transform": made.transform, "selection": made.selection,
        **storage,
    }  # fmt: skip


def _cost(
    options: DistillOptions, needs: Estimate, shape: DataShape, device: torch.device, synset: LearnedSet | None,
    made: int,
) -> str:  # fmt: skip
    told = forecast(options, needs, shape, device, synset, made, _SECONDS)
    time = (
        f"{describe_seconds(told.seconds)}{told.busy}: {counted(options.Iteration - made, 'iteration')} take "
        f"{describe_seconds(told.updates)}, evaluations {describe_seconds(told.evaluations)}"
    )
    excess = too_large(needs, options, shape, device, synset is not None)
    return cost_section(time, told, needs, device, excess, f"the run{_set_told(synset)}")


def _set_told(synset: LearnedSet | None) -> str:
    return ", with the rounding and coding of its set as measured here" if isinstance(synset, PackedSet) else ""
