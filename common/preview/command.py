"""What every distill.py does with its options: distil, or first tell what that would take."""

from __future__ import annotations

from common.config.options import Sources
from common.preview.dry_run import Distil, Options, dry_run
from common.preview.step_search import find_lr
from common.runs.seeds import distill_seeds


def distill_command(distill: Distil[Options], options: Options, sources: Sources, objective: str) -> None:
    """Distil, once or for each seed of --seeds, or do what --dry_run or --find_lr ask for instead.

    distill: makes one run and returns it. Raises InputError for options that cannot work.
    """
    if options.dry_run:
        dry_run(distill, options, sources, objective)
    elif options.find_lr:
        find_lr(distill, options, sources, objective)
    else:
        distill_seeds(distill, options, sources, objective)
