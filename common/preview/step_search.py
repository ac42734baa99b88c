"""`distill.py --find_lr`: a range test for lr_freq, the step size of the coefficients.

Each of nine step sizes makes the same few updates, with the same draws, from the same initial set, without evaluations.
What counts is the mean loss of the last quarter of the updates. The run folder is not touched.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from common.config.checks import check_least
from common.config.options import DistillOptions, Sources
from common.config.places import dataset_folder
from common.costs.forecast import forecast, needs_of
from common.preview.dry_run import Distil, Options
from common.recipes.shapes import DataShape
from common.report.pictures import draw_step_sizes
from common.runs.identity import folder_of
from common.runs.loop import Distillation
from common.runs.pieces import rehearsal
from common.system import parallel
from common.system.errors import InputError
from common.system.files import write_json
from common.system.text import counted
from common.system.version import code_version

FACTOR = 3.0
"""Between two step sizes."""
_EACH_SIDE = 4  # step sizes below and above the usual one
_SECONDS = 180.0  # for all updates together, by the forecast
_FEWEST, _MOST = 4, 100  # updates with each step size
_GROWN = 4.0  # a loss so many times as large as others is called diverged
_ALIKE = 1.02  # losses up to so many times the lowest one are called alike
FILE, PICTURE = "find_lr.json", "find_lr.png"


@dataclass
class Trial:
    """What came of a step size: its losses, and whether it was stopped because it diverged."""

    lr_freq: float
    losses: list[float] = field(default_factory=list)
    diverged: bool = False

    @property
    def score(self) -> float:
        """The mean loss of the last quarter of the updates; infinite if it diverged."""
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return math.inf if self.diverged else sum(last) / len(last)


class _Diverged(InputError):
    """The loss has grown far beyond that of other step sizes."""


def find_lr(distill: Distil[Options], options: Options, sources: Sources, objective: str) -> None:
    """Try step sizes around the usual one and print, draw and write what came of them.

    distill: the function that makes a run; of its loop only the first iterations are made. Raises InputError for
    options that cannot work, and if all step sizes diverge.
    """
    check_least(options, "find_lr_updates", 1)
    if options.seeds is not None:
        raise InputError("--find_lr searches with one seed: leave out --seeds, or give --seed")
    usual: list[DistillOptions] = []
    trials: list[Trial] = []

    def loop(run: Distillation) -> Iterator[int]:
        usual.append(run.options)
        updates = _updates(run, objective)
        start = run.synset.state_dict(), {name: each.state_dict() for name, each in run.kept.items()}
        for power in range(-_EACH_SIDE, _EACH_SIDE + 1):
            trials.append(Trial(run.options.lr_freq * FACTOR**power))
            _restore(run, *copy.deepcopy(start))  # a copy, because the optimiser changes its state in place
            for group in run.synset.optimizer.param_groups:
                group["lr"] = trials[-1].lr_freq
            _say(f"lr_freq {trials[-1].lr_freq:.3g}: {counted(updates, 'iteration')}")
            try:
                yield from run.rehearse(updates, _recorder(trials[-1], trials[:-1]))
            except InputError:  # the loss is not finite, or has grown too far
                trials[-1].diverged = True

    with rehearsal(loop):
        distill(options, sources, objective)
    if all(trial.diverged for trial in trials):
        raise InputError(
            f"all step sizes from {trials[0].lr_freq:.3g} on diverge: give a lower --lr_freq to begin with"
        )
    if parallel.is_main():
        _report(trials, usual[0], objective)


def _updates(run: Distillation, objective: str) -> int:
    """The iterations with each step size: those asked for, or as many as fit the time."""
    options = run.options
    if options.find_lr_updates is not None:
        return options.find_lr_updates
    shape = DataShape.of(run.train, run.test)
    needs = needs_of(objective, options, shape, run.device)
    found = _FEWEST
    if needs is not None and options.Iteration:
        one = forecast(options, needs, shape, run.device, run.synset).updates / options.Iteration
        found = max(_FEWEST, min(_MOST, int(_SECONDS / (2 * _EACH_SIDE + 1) / one)))
    return int(parallel.broadcast(found))


def _restore(run: Distillation, synset: dict[str, Any], kept: dict[str, dict[str, Any]]) -> None:
    run.synset.load_state_dict(synset)
    for name, each in run.kept.items():
        each.load_state_dict(kept[name])


def _recorder(trial: Trial, before: Sequence[Trial]) -> Callable[[int, float], None]:
    """What keeps the losses of a trial, and raises `_Diverged` for one that has grown too far.

    It is compared with the first loss, which all trials share, and with the lowest one at the same update of the trials
    before: networks and images are drawn for every update, so losses differ between updates, too.
    """

    def record(iteration: int, loss: float) -> None:
        trial.losses.append(loss)
        others = [each.losses[iteration] for each in before if iteration < len(each.losses)]
        if loss > _GROWN * max(trial.losses[0], min(others, default=0.0)):
            raise _Diverged(f"the loss of iteration {iteration} is {loss:g}")

    return record


def _report(trials: list[Trial], options: DistillOptions, objective: str) -> None:
    """Print the table and the suggestion, and write them and the picture to a folder beside the run folder."""
    best = min(trials, key=lambda trial: trial.score)
    alike = [trial.lr_freq for trial in trials if trial.score <= _ALIKE * best.score]
    table = "\n".join(f"{trial.lr_freq:>12.4g}  {_told(trial)}{_marks(trial, best, options)}" for trial in trials)
    counted_of = counted(len(best.losses), "iteration")
    print(f"\n     lr_freq  mean loss of the last quarter of {counted_of}\n{table}\n")
    print(f"suggested: --lr_freq {best.lr_freq:.4g} ({_flatness(alike, best, trials)})")
    run = folder_of(dataclasses.replace(options, find_lr=False), objective)
    folder = run.with_name(f"{run.name}-find_lr")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; give another --save_path") from error
    write_json(folder / FILE, {
        "objective": objective,
        "dataset": options.dataset,
        "ipc": options.ipc,
        "lr_freq": options.lr_freq,
        "suggested": best.lr_freq,
        "alike": alike,
        "trials": [
            {"lr_freq": trial.lr_freq, "losses": [each if math.isfinite(each) else None for each in trial.losses],
             "diverged": trial.diverged, "score": None if trial.diverged else trial.score}
            for trial in trials
        ],
        "version": code_version(),
    })  # fmt: skip
    title = f"{objective} on {dataset_folder(options.dataset)}, ipc {options.ipc}: {counted_of} with each step size"
    scores = [None if trial.diverged else trial.score for trial in trials]
    sizes = [trial.lr_freq for trial in trials]
    draw_step_sizes(folder / PICTURE, sizes, scores, options.lr_freq, best.lr_freq, title)
    print(f"the table and the picture are in {folder}; the run itself is untouched")


def _told(trial: Trial) -> str:
    return f"diverged at iteration {len(trial.losses)}" if trial.diverged else f"{trial.score:.5g}"


def _marks(trial: Trial, best: Trial, options: DistillOptions) -> str:
    usual = "  the value that a run would use" * (trial.lr_freq == options.lr_freq)
    return usual + "  lowest" * (trial is best)


def _flatness(alike: list[float], best: Trial, trials: list[Trial]) -> str:
    """How much the step size matters near the lowest loss, and whether the search ended at its edge."""
    flat = f"losses are within {100 * (_ALIKE - 1):.0f} % of the lowest"
    told = f"{flat} from {alike[0]:.4g} to {alike[-1]:.4g}" if len(alike) > 1 else f"no other's {flat}"
    if best in (trials[0], trials[-1]):
        told += f"; it is the end of the range, so search on with --find_lr --lr_freq {best.lr_freq:.4g}"
    return told


def _say(text: str) -> None:
    if parallel.is_main():
        tqdm.write(text)
