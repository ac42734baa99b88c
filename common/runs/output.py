"""What a run shows and leaves behind: synthetic sets, pictures, report, tracker, summary."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from common.report import pictures
from common.report.record import read_metrics
from common.report.run_page import write_run_report
from common.runs.folder import Run
from common.runs.setup import Setup
from common.runs.track import Tracker, open_tracker
from common.synset.file import export_pair, load_synset, save_synset
from common.system import parallel
from common.system.devices import peak_memory
from common.system.errors import InputError
from common.system.text import best_by_network, best_of, in_percent
from common.training.train import EvaluationProtocol


class Output:
    """Everything of a run that is for people and for later programs. Of several processes the first alone writes.

    resumed_from: the iteration of the checkpoint, None for a new run.
    """

    def __init__(self, setup: Setup, run: Run, resumed_from: int | None) -> None:
        self._setup, self._run = setup, run
        self._objective = str(run.config["objective"])
        self.tracker = self._open_tracker(resumed_from)
        if resumed_from is None:
            self._draw_masks()

    def _open_tracker(self, resumed_from: int | None) -> Tracker:
        if not parallel.is_main():
            return Tracker()
        run, options = self._run, self._setup.options
        context = {key: run.config[key] for key in ("objective", "version", "hardware")}
        place = run.folder.relative_to(options.save_path)
        return open_tracker(
            options.track,
            run.folder,
            context | dataclasses.asdict(options),
            name=place.as_posix(),
            group=options.track_group or place.parent.as_posix(),
            project=options.track_project,
            resumed_from=resumed_from,
            say=run.log,
        )

    def evaluated(
        self, point: dict[str, Any], best: bool, protocol: EvaluationProtocol, learned: Tensor | None
    ) -> None:
        """Say, save and draw the set as it was evaluated.

        best: whether no point is better. protocol: how the networks were trained. learned: the step size [], where the
        objective learns one.
        """
        if not parallel.is_main():
            return
        setup, run, iteration = self._setup, self._run, point["iteration"]
        text = f"accuracy {in_percent(point)} ({point['n']} networks)"
        before = " (before optimisation)" if iteration == 0 else ""
        run.log(f"iteration {iteration}: {text}{before}")
        for name, figures in point.get("networks", {}).items():
            run.log(f"{name:>20}: {in_percent(figures)}")
        metadata = self._metadata(point, protocol)
        save_synset(setup.synset, run.folder / "synset.safetensors", metadata, learned)
        if best:
            save_synset(setup.synset, run.folder / "synset_best.safetensors", metadata, learned)
        data, images = setup.train, setup.synset.get(need_copy=True)[0]
        title = f"{run.dataset}, ipc {setup.options.ipc}, {self._objective}, {iteration} updates: {text}"
        path = run.folder / f"images_{iteration:06d}.png"
        draw = pictures.draw_images if len(data.im_size) == 2 else pictures.draw_voxels
        draw(path, data.denormalise(images), data.class_names, title)
        self.tracker.picture("images", path, iteration)
        self.tracker.evaluation(point)

    def _metadata(self, point: dict[str, Any], protocol: EvaluationProtocol) -> dict[str, Any]:
        data, options = self._setup.train, self._setup.options
        return {
            "dataset": options.dataset,
            "mean": list(data.mean),
            "std": list(data.std),
            "zca": None if data.whitening is None else data.whitening.as_metadata(),
            "class_names": list(data.class_names),
            "image_size": options.image_size,
            "resize": options.resize,
            "antialias": options.antialias,
            "objective": self._objective,
            "model": options.model,
            "network": self._setup.principal,
            "evaluation": protocol.as_metadata(),
            "accuracy": point,
            "seed": options.seed,
            "version": self._run.config["version"],
        }

    def write_report(self) -> None:
        """Write report.html, as far as the run has come."""
        if not parallel.is_main():
            return
        try:
            write_run_report(self._run.folder)
        except InputError as error:  # everything else is saved: it can be written later
            self._run.log(f"no report.html ({error})")

    def _draw_masks(self) -> None:
        if not parallel.is_main():
            return
        synset, path = self._setup.synset, self._run.folder / "masks.png"
        kept = f"{self._setup.options.msz_per_channel} of {synset.d} {synset.transform} coefficients"
        pictures.draw_masks(path, synset.mask, self._setup.train.class_names, f"{kept} kept, by {synset.selection}")
        self.tracker.picture("masks", path, 0)

    def finish(
        self, points: list[dict[str, Any]], protocol: EvaluationProtocol, seconds: float, more: dict[str, Any]
    ) -> dict[str, Any]:
        """Write summary.json, with which the run is finished, and the report; returns the summary.

        points: all evaluations. seconds: what the run took. more: further entries of the summary.
        """
        run, setup = self._run, self._setup
        last = points[-1]["iteration"]
        losses, _ = read_metrics(run.folder / "metrics.jsonl")
        pictures.draw_curves(run.folder / "curves.png", losses, points)
        self.tracker.picture("curves", run.folder / "curves.png", last)
        picture, file = run.folder / f"images_{last:06d}.png", run.folder / "synset.safetensors"
        summary: dict[str, Any] = {
            "objective": self._objective,
            "dataset": setup.options.dataset,
            "start": points[0],
            "last": points[-1],
            "best_on_test": best_of(points),  # None where a network diverged in every evaluation
            **({} if len(setup.pool) == 1 else {"best_on_test_by_network": best_by_network(points)}),
            "evaluation": protocol.as_metadata(),
            "budget": setup.synset.budget(),
            "file": str(file),
            "file_bytes": file.stat().st_size,
            "picture": str(picture) if picture.exists() else None,
            "seconds": round(seconds, 1),
            "peak_memory_bytes": peak_memory(setup.device),  # of this process, where the run was continued
            "version": run.config["version"],
            **more,
        }
        run.finish(summary)
        self.write_report()
        self.tracker.summary(summary)
        return summary


def export(run: Run) -> None:
    """Write the best set as images_best.pt and labels_best.pt, the authors' format.

    Raises InputError where no set is the best, because in each evaluation a network diverged.
    """
    file = run.folder / "synset_best.safetensors"
    if not file.exists():
        raise InputError(f"{run.folder} has no best set to --export: in every evaluation a network diverged")
    best, _ = load_synset(file)
    run.log(f"{'exported':>20}: {', '.join(map(str, export_pair(best, run.folder)))}")


def say(summary: dict[str, Any], run: Run) -> None:
    """The closing lines."""
    for label, key in {"before optimisation": "start", "last": "last", "best on test": "best_on_test"}.items():
        point = summary[key]
        if point is None:
            run.log(f"{label:>20}: none, for in every evaluation a network diverged")
            continue
        run.log(f"{label:>20}: {in_percent(point)} ({point['n']} x {point['network']}, {point['iteration']} updates)")
    best = summary.get("best_on_test_by_network", {})
    last = summary["last"].get("networks", {})
    for name in dict.fromkeys([*best, *last]):
        told = f"{in_percent(best[name])} ({best[name]['iteration']} updates)" if name in best else "none"
        run.log(f"{name:>20}: last {in_percent(last[name])}, best on test {told}")
    run.log(f"{'synthetic set':>20}: {summary['file']} ({summary['file_bytes']:,} bytes)")
