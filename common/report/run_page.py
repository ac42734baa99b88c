"""The page of a run, `report.html`: its results in one file that needs nothing else (see `page`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config.places import dataset_folder
from common.report import pictures
from common.report.description import kept, needed_bytes
from common.report.page import TEMPLATES, png_uri, svg_uri, write_page
from common.report.record import RunRecord, read_run
from common.report.show import energy_by_frequency, shown
from common.report.voxels import render
from common.synset.base import LearnedSet
from common.synset.file import load_synset
from common.system.text import (
    POINTS,
    best_by_network,
    counted,
    describe_bytes,
    describe_seconds,
    diverged_in,
    networks_of,
    percent,
    percent_with_std,
    published_with_std,
)

_FILES = (
    "synset.safetensors", "synset_best.safetensors", "summary.json", "metrics.jsonl", "config.json", "log.txt",
    "images_best.pt", "labels_best.pt",
)  # fmt: skip
_POINTS_OF_A_CURVE = 1000
_SIDE = 64  # pixels: the larger side of a smaller image is scaled up to about this on the page


def write_run_report(folder: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path.

    Raises InputError if the folder is not that of a run, holds a damaged synthetic set, or cannot be written.
    """
    run = read_run(folder)
    file = folder / "synset.safetensors"
    pictures = _pictures(*load_synset(file)) if file.exists() else None
    path = folder / "report.html"
    write_page(
        path,
        TEMPLATES / "run.html",
        **head_of(run, folder),
        pictures=pictures,
        figures={key: _percent(point) for key, point in run.points.items()},
        labels=POINTS,
        pool=_pool(run),
        comparison=_comparison(run),
        curves=_curves(run),
        details=_details(run),
        files=[name for name in _FILES if (folder / name).exists()],
    )
    return path


def head_of(run: RunRecord, folder: Path) -> dict[str, Any]:
    """What every page of runs says first: the values for its template. folder: the page's, whose name is its title."""
    reduced, changed = map(", ".join, run.departures())
    return {
        "run": run,
        "name": folder.resolve().name,
        "dataset": dataset_folder(str(run.option("dataset"))),
        "reduced": reduced,
        "changed": changed,
        "plural": counted,
    }


# -- figures -----------------------------------------------------------------------------------------------------


def _percent(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mean": percent(figures["mean"]),
        "std": percent(figures["std"]),
        "n": figures["n"],
        "diverged": diverged_in(figures),
        "network": figures.get("network"),
        "iteration": figures.get("iteration"),
    }


def _comparison(run: RunRecord) -> list[dict[str, str]]:
    """Return table rows {"what", "ours", "published", "difference"} with accuracies in %."""
    published, rows = run.published, []
    theirs = "unknown" if published is None else published_with_std(published)
    points = run.points
    for key, what in POINTS.items():
        if key in points and key != "start":
            ours = points[key]
            rows.append({
                "what": what,
                "ours": percent_with_std(ours),
                "published": theirs,
                "difference": ""
                if published is None or ours["mean"] is None
                else f"{100 * ours['mean'] - published['accuracy']:+.2f}",
            })  # fmt: skip
    return rows


def _pool(run: RunRecord) -> list[dict[str, Any]]:
    """Return for each network of a pool its accuracy in the last and in the best evaluation that tested it."""
    names = dict.fromkeys(name for point in run.evaluations for name in point.get("networks", {}))
    last = {name: figures for point in run.evaluations for name, figures in networks_of(point).items()}
    best = best_by_network(run.evaluations)
    return [
        {
            "name": name,
            "last": percent_with_std(last[name]),
            "best": percent_with_std(best[name]) if name in best else "-",
        }
        for name in names
    ]


def _curves(run: RunRecord) -> dict[str, Any]:
    """Return SVG curves of the losses and the evaluations, None if there are none.

    `each` is the number of updates over which a point of the loss curve is averaged.
    """
    each = -(-len(run.losses) // _POINTS_OF_A_CURVE)
    losses = [run.losses[first : first + each] for first in range(0, len(run.losses), max(1, each))]
    means = [(part[-1][0], float(np.mean([loss for _, loss in part]))) for part in losses]
    return {
        "loss": svg_uri(lambda path: pictures.draw_losses(path, means)) if means else None,
        "accuracy": svg_uri(lambda path: pictures.draw_evaluations(path, run.evaluations)) if run.evaluations else None,
        "each": each,
    }


def _details(run: RunRecord) -> list[tuple[str, str]]:
    """Return (label, text) pairs with the cost of the run and the code and hardware that it used."""
    details = [("code version", run.config.get("version", "unknown"))]
    details += [(f"hardware: {key}", value) for key, value in run.config.get("hardware", {}).items()]
    if run.summary is not None:
        details.append(("time, evaluations included", describe_seconds(run.summary["seconds"])))
        details += [
            (f"peak memory, {kind}", "unknown" if count is None else describe_bytes(count))
            for kind, count in run.summary.get("peak_memory_bytes", {}).items()
        ]
        details.append(("synthetic-set file", describe_bytes(run.summary["file_bytes"])))
        budget = run.summary["budget"]
        details.append(("bytes that a decoder needs", f"{needed_bytes(budget):,}"))
        details.append(("paper's count, 4 bytes per number", f"{budget['coefficient_bytes']:,}"))
    return details


# -- pictures ----------------------------------------------------------------------------------------------------


def _pictures(synset: LearnedSet, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a synthetic set: images and masks by class, and the curve of energy by frequency.

    The curve is None for plain pixels.
    """
    names = [str(name) for name in metadata.get("class_names") or range(synset.num_classes)]
    images, outside = shown(synset.get(need_copy=True)[0], metadata)
    images = images.unflatten(0, (synset.num_classes, -1))
    images = images[: pictures.MAX_CLASSES, : pictures.MAX_IMAGES]
    rows = [flat(row) for row in images]
    masks = synset.mask[: pictures.MAX_CLASSES].cpu().numpy()
    if masks.ndim == 4:
        masks = np.nan_to_num(pictures.shares_along_axes(masks), nan=0.5)  # grey where there is no position
    energy = None
    if synset.transform != "identity":
        frequencies, energies = energy_by_frequency(synset)
        energy = svg_uri(lambda path: pictures.draw_energy(path, frequencies, energies, names, ""))
    return {
        "classes": [
            {"name": name, "images": [png_uri(image) for image in row], "mask": png_uri(1.0 - mask)}
            for name, row, mask in zip(names, rows, masks, strict=False)
        ],
        **side_on_page(rows[0], _SIDE),
        "num_classes": synset.num_classes,
        "num_per_class": synset.num_per_class,
        "shown": len(rows[0]),
        "iteration": (metadata.get("accuracy") or {}).get("iteration"),
        "kept": kept(metadata, "kept per channel, chosen by the {} rule"),
        "masked": kept(metadata, "kept in each class"),
        "volumes": len(synset.im_size) == 3,
        "energy": energy,
        "whitened": bool(metadata.get("zca")),
        "outside": f"{outside[:1].upper()}{outside[1:]}",
    }  # fmt: skip


def side_on_page(images: np.ndarray, side: int) -> dict[str, int]:
    """Width and height at which a page shows images [n, H, W, ch]: smaller ones scaled up to about `side` pixels."""
    height, width = images.shape[1:3]
    scale = max(1, round(side / max(height, width)))
    return {"width": width * scale, "height": height * scale}


def flat(images: Tensor) -> np.ndarray:
    """Return images [n, ch, H, W] as [n, H, W, ch], and volumes [n, ch, D, H, W] as renderings with one channel.

    Images with neither 1 nor 3 channels are averaged over channels.
    """
    if images.ndim == 5:
        images = render(images.mean(dim=1))[:, None]
    if images.shape[1] not in (1, 3):
        images = images.mean(dim=1, keepdim=True)
    return torch.movedim(images, 1, -1).cpu().numpy()
