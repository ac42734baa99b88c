"""The list of cells: published accuracy, origin of the recipe, estimated cost, and which data and experts exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from common.config.command_line import parse, parse_buffer
from common.config.options import BufferOptions, DistillOptions, Sources
from common.costs.estimate import RATES, SHAPES, Estimate, estimate, seconds
from common.datasets.presence import is_there
from common.system.errors import InputError
from common.system.progress import Progress
from common.system.text import describe_bytes, describe_seconds
from DC import distill as dc
from reproduction.cells import check_target, experts, steps
from reproduction.plan import Plan, images_of
from reproduction.programs import program
from reproduction.results import row_of
from reproduction.tables import TABLES, Cell


class Entry(NamedTuple):
    """One line of the list, as texts."""

    cell: str
    published: str
    ours: str
    recipe: str
    time: str
    memory: str
    data: str
    experts: str


def as_text(cells: Sequence[Cell], plan: Plan, rate: str) -> str:
    """The list as text, one section per published table. rate: key of `estimate.RATES`, the machine to estimate for."""
    tflops, source = RATES[rate]
    by_table: dict[str, list[Entry]] = {}
    for cell in Progress(cells, desc="estimating", unit="cell", leave=False):
        by_table.setdefault(cell.table, []).append(entry(cell, plan, rate))
    lines = []
    for name, entries in by_table.items():
        table = TABLES[name]
        lines += ["", f"{name}: {table.title}; published: {table.source}"]
        head = Entry("cell", "published, %", "ours, %", "k and lr_freq", "time", "memory", "data", "experts")
        widths = [max(len(each[column]) for each in (head, *entries)) for column in range(len(head))]
        lines += [
            "  ".join(f"{text:{width}}" for text, width in zip(each, widths, strict=True)).rstrip()
            for each in (head, *entries)
        ]
    lines += [
        "",
        f"Scale {plan.scale}. Times are estimates at {tflops:g} TFLOP/s ({source}), TM's with the experts that are",
        "missing; memory is an estimate of the peak. Ours: see python reproduce.py report.",
    ]
    return "\n".join(lines).lstrip("\n")


def entry(cell: Cell, plan: Plan, rate: str) -> Entry:
    """The line of a cell."""
    row, options, sources = row_of(cell, plan), *options_of(cell, plan)
    cost = cost_of(cell, plan, options, rate)
    found = experts(cell, plan)
    figure = f"{row.ours} ({row.images})" if row.ours and row.images else row.ours
    return Entry(
        cell="/".join(cell.parts),
        published=row.published_text,
        ours=figure or ("" if row.state == "not started" else row.state),
        recipe=_recipe(options, sources),
        time=describe_seconds(seconds(cost, RATES[rate][0])),
        memory=describe_bytes(cost.memory_bytes),
        data=data_of(cell, plan),
        experts="-" if found is None else "the authors'" if found.authors else f"{found.there} of {found.wanted}",
    )


def cost_of(cell: Cell, plan: Plan, options: DistillOptions, rate: str) -> Estimate:
    """Estimate time and memory of running a cell, including the training of missing experts.

    For a cell on drifted images, the estimate is of distilling its synthetic set. options: `options_of` the cell.
    """
    shape = SHAPES["digits" if images_of(cell, plan).dataset == "digits" else cell.dataset]
    if options.image_size is not None and len(shape.im_size) == 2:
        shape = dataclasses.replace(shape, im_size=(options.image_size, options.image_size))
    buffer = None
    found = experts(cell, plan)
    if found is not None and found.there < found.wanted:
        scripts = program(cell.objective, cell.dataset)
        training = next(step for step in steps(cell, plan) if step.script == scripts.buffer)
        asked = parse_buffer(BufferOptions, cell.objective, training.words)
        buffer = dataclasses.replace(asked, num_experts=found.wanted - found.there)
    return estimate(cell.objective, options, shape, buffer, device=rate)


def data_of(cell: Cell, plan: Plan) -> str:
    """Whether the images of a cell are on this machine, including the drifted images if the cell needs them."""
    if plan.scale == "smoke":
        return "stand-in"
    images = images_of(cell, plan)
    there = is_there(images.dataset, images.flags.get("data_path"))
    try:
        check_target(cell, plan)
    except InputError:
        return f"{cell.target} missing" if there else "missing"
    return {True: "there", False: "missing", None: "?"}[there]


def _recipe(options: DistillOptions, sources: Sources) -> str:
    """k and lr_freq, each with its origin. (Their published values are in the paper's appendix.)"""
    values = {"msz_per_channel": f"{options.msz_per_channel}", "lr_freq": f"{options.lr_freq:g}"}
    kinds = {
        key: sources[key].partition(":")[0] + (", scaled" if "(scaled from" in sources[key] else "") for key in values
    }
    if len(set(kinds.values())) == 1:
        return f"{', '.join(values.values())} ({kinds['lr_freq']})"
    return ", ".join(f"{value} ({kinds[key]})" for key, value in values.items())


def options_of(cell: Cell, plan: Plan) -> tuple[DistillOptions, Sources]:
    """The options of the cell's distillation, and the source of each."""
    scripts = program(cell.objective, cell.dataset)
    distillation = next(step for step in steps(cell, plan) if step.script == scripts.script)
    options, sources = parse(scripts.options, cell.objective, distillation.words)
    options = dc.by_method(options) if isinstance(options, dc.Options) else options
    return options, sources
