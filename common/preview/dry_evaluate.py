"""`evaluate.py --dry_run`: which networks would be trained on what, how long it takes, and what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from common import recipes
from common.config.checks import check_references, check_stored_as, check_training
from common.config.command_line import flags_of, parse_plain
from common.config.evaluate_options import EvaluateOptions
from common.config.options import DataOptions
from common.costs.estimate import estimate_evaluation
from common.costs.forecast import forecast_evaluation
from common.costs.memory import too_large
from common.datasets.folder import said_first
from common.preview.layout import cost_section, missing_section, options_told, section
from common.preview.missing import missing_data
from common.recipes.shapes import DataShape
from common.synset.hub import PREFIX
from common.synset.open import open_synset
from common.system import parallel
from common.system.command import run_command
from common.system.devices import resolve_device
from common.system.text import counted, describe_seconds
from common.training.evaluate_command import networks_to_train, show
from common.training.evaluation_setup import EvaluationSetup, prepare_evaluation


def main(objective: str, **defaults: Any) -> None:
    """Run `python DM/evaluate.py --synset FILE`: print the measured accuracy and the accuracy stored in the file.

    objective, defaults: as for `evaluate_command.show`.
    """

    def command() -> None:
        options = parse_plain(EvaluateOptions)
        if options.dry_run:
            dry_run(options, objective, defaults)
        else:
            show(options, objective, defaults)

    run_command(command, several=True)


def dry_run(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> None:
    """Print what the command would do. Nothing is written but caches of decoded images; nothing is fetched.

    Raises InputError for options that cannot work; what is missing is part of what is printed.
    """
    with said_first(options.dataset):
        check_training(options)
        check_stored_as(options)
        check_references(options)
    missing = _missing(options, objective, defaults)
    flags = flags_of()
    unsaid = "of the synthetic set" if options.synset else "of the recipe, or the default"
    told = {
        key: {"value": value, "source": "flag" if key in flags else unsaid if value is None else "default"}
        for key, value in vars(options).items()
        if key != "dry_run" and not (value is None and key not in flags)
    }
    sections = [section("options", options_told(told))]
    if not missing:
        sections += _sections(options, objective, defaults)
    if parallel.is_main():
        print("\n\n".join([*sections, missing_section(missing)]))
        print("\nnothing has been run (--dry_run)")


def _missing(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> list[str]:
    """The synthetic set and the images that are not there."""
    missing, dataset = [], options.dataset
    if options.synset is None:
        known = recipes.defaults(objective) | defaults
        dataset = dataset or known.get("dataset", DataOptions.dataset)
    elif options.synset.startswith(PREFIX):
        missing.append(f"{options.synset}: the command would download it")
    elif not Path(options.synset).exists():
        missing.append(f"the synthetic set: there is no file {options.synset}")
    elif dataset is None:
        dataset = open_synset(options.synset, zca=options.zca, pixels=options.pixels)[1].get("dataset")
    if dataset is not None:
        data = DataOptions(
            dataset=dataset, subset=options.subset, data_path=options.data_path, no_download=options.no_download
        )
        lacks = missing_data(data)
        missing += [] if lacks is None else [lacks]
    return missing


def _sections(options: EvaluateOptions, objective: str, defaults: dict[str, Any]) -> list[str]:
    device = resolve_device(options.device)
    # Which images a coreset takes changes neither time nor memory, and to choose them trains a network.
    quick = dataclasses.replace(options, no_download=True)
    if options.baseline in ("herding", "kcenter") or options.stored_as is not None:
        quick = dataclasses.replace(
            quick, baseline="random", stored_as=None, bits_per_class=None, n=None, count_headers=None
        )
    setup = prepare_evaluation(quick, objective, defaults, device)
    names, count = list(networks_to_train(options, setup)), len(setup.training_sets(0).labels)
    if options.stored_as is not None and options.n is not None:
        count = options.n * setup.test.num_classes
    shape = DataShape.of(setup.test, setup.test)
    needs = estimate_evaluation(
        names, shape, count, setup.protocol, setup.dataset, options.num_eval, options.networks_at_once, device
    )
    batch = min(setup.protocol.batch, count)
    told = forecast_evaluation(names[0], needs, shape, device, batch, setup.protocol.strategy, options.precision)
    time = f"{describe_seconds(told.seconds)}{told.busy}{_not_in_it(options)}"
    excess = too_large(needs, options, shape, device, loaded=True)
    return [
        section("evaluation", _evaluation(options, setup, names, count)),
        cost_section(time, told, needs, device, excess, "the networks"),
    ]


def _not_in_it(options: EvaluateOptions) -> str:
    """What the time does not include."""
    if options.stored_as is not None:
        return ", besides the search for files that fill the budget, whose number of images is not known before"
    besides = []
    if options.baseline in ("herding", "kcenter"):
        besides.append(f"{options.coreset_epochs} epochs on the whole training set to choose images")
    if options.references_asked:
        besides.append(f"the networks of --references {','.join(options.references_asked)} that are not in the cache")
    return f", besides {' and '.join(besides)}" if besides else ""


def _evaluation(options: EvaluateOptions, setup: EvaluationSetup, names: list[str], count: int) -> list[str]:
    protocol = setup.protocol.for_network(setup.dataset, names[0])
    settings = ", ".join(f"{key} {value}" for key, value in protocol.as_metadata().items())
    return [
        f"{counted(options.num_eval, 'network')} of each of {', '.join(names)}",
        f"trained on {counted(count, 'image')} of {setup.dataset}, tested on {len(setup.test):,}",
        f"{names[0]} is trained with {settings}",
    ]
