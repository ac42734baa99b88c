"""The result of an evaluation as lines for people: accuracies, what they cost, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.report.verdict import describe
from common.schemas import door
from common.synset.hub import PREFIX, SUFFIX
from common.system.errors import InputError
from common.system.text import counted, describe_seconds, in_percent, networks_of, with_diverged
from common.terminal.next_step import to_show


def read_result(file: Path) -> dict[str, Any]:
    """What evaluate.py has written. Raises InputError for another file."""
    from common.schemas.results import Result

    return door.read(file, Result, "remove it, and evaluate again")


def lines_of(result: dict[str, Any]) -> Iterator[str]:
    """The lines that evaluate.py prints of its result, less those about storage; the last is the next command."""
    for name, figures in networks_of(result).items():
        yield f"{in_percent(figures)} ({figures['n']} x {name}{_differently(result, name)}){_times(result, name)}"
        yield from (f"  {line}" for line in _beside(result, name))
    if result["published"] is not None:
        yield describe(result["published"])
    if stored := result["stored"]:
        name = stored.get("network", result["network"])
        # An evaluation's draws are a function of the seed and the run's iteration, which a file has no part in.
        drawn = "; its networks were other draws, whatever the --seed"
        yield f"{in_percent(stored)} is stored in the file ({stored['n']} x {name}){drawn}"
    file = result["options"].get("synset")
    if file is not None and file.endswith(SUFFIX) and not file.startswith(PREFIX):  # not on the hub, nor the authors'
        yield to_show(file)


def table_of(result: dict[str, Any], storage: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per network of an evaluation: name, number, seed, accuracy in %, seconds of training, augmentation.

    storage: further columns, about what the images take with --stored_as. With references every row has their means
    and the scores, too. If any network diverged, every row has a column "diverged", 1 or 0.
    """
    table = [
        {
            "network": name,
            "number": number,
            "seed": result["options"]["seed"],
            "accuracy": _in_percent(each),
            "seconds": took,
            "augmentation": result["augmentation"][name],
            **storage,
            **{what: _in_percent(of[name]["mean"]) for what, of in result["references"].items()},
            **{score: result["scores"][name].get(score) for score in _columns(result)},
        }
        for name, figures in networks_of(result).items()
        for number, (each, took) in enumerate(zip(figures["accuracies"], result["seconds"][name], strict=True))
    ]
    return with_diverged(table)


def _columns(result: dict[str, Any]) -> list[str]:
    """The scores that any of the networks has."""
    return list(dict.fromkeys(score for scores in result["scores"].values() for score in scores))


def _in_percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def distillation_seconds(file: str | None) -> float | None:
    """What the run took that a set lies in the folder of, without its evaluations; None if there is no such run."""
    from common.schemas.results import Took

    if file is None or not (summary := Path(file).parent / "summary.json").is_file():
        return None
    try:
        seconds = door.read(summary, Took, "remove it").get("distillation_seconds")
    except InputError:  # it is of something else, or damaged, which the evaluation does not depend on
        return None
    return None if seconds is None else float(seconds)


def _times(result: dict[str, Any], name: str) -> str:
    """What an accuracy cost, to stand behind it."""
    distilled = result["distillation_seconds"]
    told = "" if distilled is None else f", distillation {describe_seconds(distilled)}"
    return f"; evaluation {describe_seconds(result['evaluation_seconds'][name])}{told}"


def _beside(result: dict[str, Any], name: str) -> list[str]:
    """Lines about the references of a network, and what its accuracy is worth beside them."""
    found, lines = result["scores"][name], []
    for what, each in result["references"].items():
        of = each[name]
        random = f"{counted(of['images_per_class'] or 0, 'random real image')} per class"
        told = {
            "random": random,
            "full": f"all real images, {counted(of['epochs'], 'epoch')}",
            "random_unaugmented": f"{random}, not augmented",
            "unaugmented": "the set, not augmented",
        }[what]
        worth = {
            "random": f"; gain {found['gain']:+.2f} points" if "gain" in found else "",
            "full": f"; the set has {found['share_of_full']:.1f} % of it" if "share_of_full" in found else "",
        }.get(what, "")
        kept = f", {of['kept']} kept from before" if of["kept"] else ""
        lines.append(f"{in_percent(of)} ({told}){worth}; evaluation {describe_seconds(of['seconds'])}{kept}")
    names = {"lrs": "label-robust score", "ars": "augmentation-robust score"}
    scores = [f"{label} {found[key]:.2f} %" for key, label in names.items() if key in found]
    return lines + ([f"{', '.join(scores)} (DD-Ranking)"] if scores else [])


def _differently(result: dict[str, Any], name: str) -> str:
    """What an evaluation does besides the usual, to stand behind the name of its network: "" if nothing."""
    told = []
    if result["options"]["augmentation"] != "dsa":
        told.append(f"augmentation {result['augmentation'][name]}")
    if result["soft_labels"]:
        told.append("soft labels")
    return "".join(f", {each}" for each in told)
