"""`--seeds`: several distillations that differ only in the seed, with mean and standard deviation over their sets.

Each is a run like any other, in a folder of its own, and the same as with --seed N. What they have in common goes into
a folder beside theirs:

<save_path>/<objective>/<dataset>/ipc<ipc>/<name>-seed<N>/    the run of seed N; without --name, as named by its options
<save_path>/<objective>/<dataset>/ipc<ipc>/<name>-seeds/      seeds.json and report.html, about all sets so far
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from common.config.options import DistillOptions, Sources
from common.config.places import seed_name, seeds_folder
from common.config.seeds import parse_seeds
from common.report.description import needed_bytes
from common.report.record import read_run
from common.report.seeds import FILE, figures_over_sets, named_runs, write_seeds_report
from common.runs.finished import CONFIG, is_finished_run
from common.runs.identity import folder_of
from common.runs.loop import Distillation
from common.schemas import door
from common.system import parallel
from common.system.errors import InputError
from common.system.files import write_json
from common.system.text import points_in, sets_in_percent
from common.system.version import code_version
from common.terminal.next_step import to_gallery

Options = TypeVar("Options", bound=DistillOptions)


def distill_seeds(
    distill: Callable[[Options, Sources, str], Distillation], options: Options, sources: Sources, objective: str
) -> None:
    """Distil once for each seed of --seeds, one after another, and report on all sets; without --seeds, distil once.

    distill: makes one run and returns it. Raises InputError for --seeds that cannot work.
    """
    if options.seeds is None:
        distill(options, sources, objective)
        return
    seeds, folders, summary = parse_seeds(options.seeds), [], {}
    for number, seed in enumerate(seeds, 1):
        _say(f"\nseed {seed}: set {number} of {len(seeds)}")
        run = distill(*one_seed(options, sources, seed), objective)
        folders.append(run.folder)
        # Named by the options that the data have completed, of which the seed is set aside.
        folder = _folder(dataclasses.replace(run.options, name=options.name), objective)
        if parallel.is_main():  # after each set, so that a page is there while the others are made
            summary = _write_summary(folder, options.name, dict(zip(seeds, folders, strict=False)))
    if parallel.is_main():
        _say("")
        for key, label in points_in(summary).items():
            _say(f"{label:>20}: {sets_in_percent(summary[key])}")
        for name, points in summary.get("networks", {}).items():
            _say(f"{name:>20}: last {sets_in_percent(points['last'])}")
        _say(f"{'sets of all seeds':>20}: {folder / FILE}")
        _say(f"{'their page':>20}: {folder / 'report.html'}")
        _say(to_gallery(folder.parent))


def one_seed(options: Options, sources: Sources, seed: int) -> tuple[Options, Sources]:
    """The options, and their sources, of the run with this seed among those of --seeds.

    Raises InputError if --seed is given, too.
    """
    if sources["seed"] == "flag":
        raise InputError(f"--seed {options.seed} and --seeds {options.seeds} both say which seeds: give one of them")
    name = None if options.name is None else seed_name(options.name, seed)
    one = dataclasses.replace(options, seed=seed, seeds=None, name=name)
    return one, sources | {"seed": "flag", "seeds": "default"}


def _folder(options: DistillOptions, objective: str) -> Path:
    """The folder of what all seeds have in common. Its name does not depend on the seeds."""
    return seeds_folder(folder_of(dataclasses.replace(options, seed=0), objective))


def _write_summary(folder: Path, name: str | None, folders: dict[int, Path]) -> dict[str, Any]:
    """Write seeds.json and report.html about the finished runs in `folders`, by seed; returns what the former says.

    folder: where they go. name: that of --name.
    The sets of other seeds that were made before, by runs that differ in nothing else, are kept.
    """
    identity = _but_for_seed(next(iter(folders.values())))
    before = {seed: each for seed, each in named_runs(folder).items() if seed not in folders}
    others = {seed: each for seed, each in before.items() if _but_for_seed(each) == identity}
    if left := before.keys() - others.keys():
        _say(f"left out: {', '.join(f'seed {seed}' for seed in sorted(left))}, of other options or not finished")
    folders = dict(sorted({**others, **folders}.items()))
    first = read_run(next(iter(folders.values())))
    summaries = [read_run(each).summary or {} for each in folders.values()]
    summary: dict[str, Any] = {
        "objective": first.objective,
        "dataset": first.option("dataset"),
        "ipc": first.option("ipc"),
        "name": name,
        "seeds": list(folders),
        "runs": {str(seed): each.name for seed, each in folders.items()},  # beside this folder
        "bytes": [needed_bytes(each["budget"]) for each in summaries],  # that a decoder needs, set by set
        "paper_bytes": [each["budget"]["coefficient_bytes"] for each in summaries],
        **figures_over_sets(summaries),
        "version": code_version(),
    }
    write_json(folder / FILE, summary)
    write_seeds_report(folder)
    return summary


def _but_for_seed(folder: Path) -> dict[str, Any] | None:
    """The options of a finished run that affect its result, without the seed; None for a folder of no finished run."""
    from common.schemas.run import REMEDY, Identity

    if not is_finished_run(folder):
        return None
    identity: dict[str, Any] = door.read(folder / CONFIG, Identity, REMEDY)["identity"]
    return identity | {"seed": None}


def _say(text: str) -> None:
    if parallel.is_main():
        tqdm.write(text)
