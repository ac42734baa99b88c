"""The output of a run: synthetic sets, pictures, report, tracked curves, summary and log lines."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from torch import Tensor

from common.report import pictures
from common.report.description import clipped, needed_bytes
from common.report.record import read_metrics, seconds_of_evaluations
from common.report.run_page import write_run_report
from common.runs.finished import SETS, is_whole
from common.runs.folder import Run
from common.runs.setup import Setup
from common.runs.track import Tracker, open_tracker
from common.synset.file import export_pair, load_synset, save_synset
from common.system import parallel
from common.system.devices import peak_memory
from common.system.errors import InputError
from common.system.files import checksum, write_atomically
from common.system.text import best_by_network, chosen_of, counted, in_percent, points_in, points_of
from common.terminal.next_step import to_evaluate
from common.training.train import EvaluationProtocol


class Output:
    """Writes the results of a run for people and for later programs. Only rank 0 writes.

    resumed_from: the iteration of the checkpoint that the run resumes from; None for a new run.
    """

    def __init__(self, setup: Setup, run: Run, resumed_from: int | None) -> None:
        self._setup, self._run = setup, run
        self._objective = str(run.config["objective"])
        self.files: dict[str, str] = {}
        """Checksums of the synthetic sets by file name, for the checkpoint."""
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
        """Log an evaluation, and save and draw the synthetic set that was evaluated. Call `keep_best` afterwards.

        point: the evaluation. best: whether it is the best of the run so far. protocol: how the networks were trained.
        learned: the learned step size [], if the objective has one.
        """
        if not parallel.is_main():
            return
        setup, run, iteration = self._setup, self._run, point["iteration"]
        text = f"accuracy {in_percent(point)} ({counted(point['n'], 'network')})"
        before = " (before optimisation)" if iteration == 0 else ""
        if "validation" in point:
            text += f", {in_percent(point['validation'])} on the images held back"
        run.log(f"iteration {iteration}: {text}{before}")
        for name, figures in point.get("networks", {}).items():
            run.log(f"{name:>20}: {in_percent(figures)}")
        self._save_set(SETS[0], point, protocol, learned)
        if best:
            self.files[SETS[1]] = self.files[SETS[0]]
        data, images = setup.train, setup.synset.stored().get(need_copy=True)[0]
        bits, ipc = setup.options.bits_per_class, setup.options.ipc
        budget = f"ipc {ipc}" if bits is None else f"{bits:,} bits per class"
        title = f"{run.dataset}, {budget}, {self._objective}, {_updates(point)}: {text}"
        path = run.folder / f"images_{iteration:06d}.png"
        draw = pictures.draw_images if len(data.im_size) == 2 else pictures.draw_voxels
        pixels = data.denormalise(images, clamp=False)
        if outside := clipped(pixels):
            title += f"\n{outside}"
        draw(path, pixels.clamp(0, 1), data.class_names, title)
        self.tracker.picture("images", path, iteration)
        self.tracker.evaluation(point)

    def keep_best(self) -> None:
        """Copy the last set to the best one if it is the best so far.

        Call it once the checkpoint has the evaluation: until then the file of the best evaluation before has to stay.
        """
        last, best = (self._run.folder / name for name in SETS)
        if (
            parallel.is_main()
            and self.files.get(SETS[1]) == self.files[SETS[0]]
            and not is_whole(best, self.files[SETS[1]])
        ):
            write_atomically(best, lambda temporary: shutil.copyfile(last, temporary))

    def _save_set(self, name: str, point: dict[str, Any], protocol: EvaluationProtocol, learned: Tensor | None) -> None:
        path = self._run.folder / name
        save_synset(self._setup.synset, path, self._metadata(point, protocol), learned)
        self.files[name] = checksum(path)

    def restore(
        self,
        files: dict[str, str],
        points: list[dict[str, Any]],
        iteration: int,
        protocol: EvaluationProtocol,
        learned: Tensor | None,
    ) -> None:
        """Check the synthetic sets of a run that goes on, and write those again that are damaged or of another run.

        files: their checksums by name, as the checkpoint has them. A set can be written again if it is that of the
        checkpoint, `iteration`; the last one will be replaced by the next evaluation anyway. Raises InputError for a
        best set that is lost.
        """
        self.files = dict(files)
        if not (parallel.is_main() and points):
            return
        for name, point in zip(SETS, (points[-1], chosen_of(points)), strict=True):
            path = self._run.folder / name
            if point is None:  # in every evaluation a network diverged, so there is no best set
                continue
            if is_whole(path, files.get(name)) if files else path.exists():
                continue
            if point["iteration"] == iteration:
                self._save_set(name, point, protocol, learned)
                self._run.log(f"{path} has been written again, from the checkpoint")
            elif name == SETS[1]:
                raise InputError(
                    f"{path} is missing, damaged or of another run, and the checkpoint has a later set: "
                    "restore the file, or give --resume never to start over"
                )

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
            **({} if options.decoding is None else {"decoding": options.decoding}),
            "objective": self._objective,
            "model": options.model,
            "network": self._setup.principal,
            "evaluation": protocol.as_metadata(),
            "accuracy": point,
            "content": self._setup.content,
            "seed": options.seed,
            **({} if options.validation is None else {"validation": options.validation}),
            **({} if self._setup.tried is None else {"tried_n": self._setup.tried.as_metadata()}),
            "version": self._run.config["version"],
        }

    def _draw_masks(self) -> None:
        if not parallel.is_main():
            return
        synset, path = self._setup.synset, self._run.folder / "masks.png"
        names = self._setup.train.class_names
        pictures.draw_masks(path, synset.mask, names, synset.describe_kept(by_rule=True))
        self.tracker.picture("masks", path, 0)

    def finish(
        self, points: list[dict[str, Any]], protocol: EvaluationProtocol, seconds: float, more: dict[str, Any]
    ) -> dict[str, Any]:
        """Write summary.json, which marks the run as finished, and the report. Returns the summary.

        points: all evaluations. seconds: the duration of the run. more: further entries for the summary.
        """
        run, setup = self._run, self._setup
        last = points[-1]["iteration"]
        losses, _ = read_metrics(run.folder / "metrics.jsonl")
        evaluating = min(seconds, seconds_of_evaluations(run.folder / "metrics.jsonl"))
        pictures.draw_curves(run.folder / "curves.png", losses, points)
        self.tracker.picture("curves", run.folder / "curves.png", last)
        picture, file = run.folder / f"images_{last:06d}.png", run.folder / "synset.safetensors"
        summary: dict[str, Any] = {
            "objective": self._objective,
            "dataset": setup.options.dataset,
            **points_of(points),
            **({} if len(setup.pool) == 1 else {"best_on_test_by_network": best_by_network(points)}),
            "evaluation": protocol.as_metadata(),
            "budget": setup.synset.budget(),
            "file": str(file),
            "file_bytes": file.stat().st_size,
            "picture": str(picture) if picture.exists() else None,
            "seconds": round(seconds, 1),
            "distillation_seconds": round(seconds - evaluating, 1),
            "evaluation_seconds": round(evaluating, 1),
            "peak_memory_bytes": peak_memory(setup.device),  # of this process only, if the run was resumed
            "version": run.config["version"],
            "content": setup.content,
            **more,
        }
        run.finish(summary)
        write_report(run)
        self.tracker.summary(summary)
        return summary


def write_report(run: Run) -> None:
    """Write report.html about the run so far, on rank 0."""
    if not parallel.is_main():
        return
    try:
        write_run_report(run.folder)
    except InputError as error:  # everything else is saved, so the report can be written later
        run.log(f"no report.html ({error})")


def export(run: Run) -> None:
    """Write the best synthetic set in the authors' format: images_best.pt and labels_best.pt.

    Raises InputError if no set is the best, because a network diverged in every evaluation.
    """
    file = run.folder / SETS[1]
    if not file.exists():
        raise InputError(f"{run.folder} has no best set to --export: in every evaluation a network diverged")
    best, _ = load_synset(file)
    run.log(f"{'exported':>20}: {', '.join(map(str, export_pair(best, run.folder)))}")


def say(summary: dict[str, Any], run: Run) -> None:
    """Log the closing lines of a run: its accuracies, its synthetic-set file, and the command to run next."""
    for key, label in points_in(summary).items():
        point = summary[key]
        if point is None:
            run.log(f"{label:>20}: none, for in every evaluation a network diverged")
            continue
        run.log(f"{label:>20}: {in_percent(point)} ({point['n']} x {point['network']}, {_updates(point)})")
    best = summary.get("best_on_test_by_network", {})
    last = summary["last"].get("networks", {})
    for name in dict.fromkeys([*best, *last]):
        told = f"{in_percent(best[name])} ({_updates(best[name])})" if name in best else "none"
        run.log(f"{name:>20}: last {in_percent(last[name])}, best on test {told}")
    needed, count = needed_bytes(summary["budget"]), summary["budget"]["coefficient_bytes"]
    told = f"{summary['file_bytes']:,} bytes, {needed:,} bytes that a decoder needs, {count:,} by the paper's count"
    run.log(f"{'synthetic set':>20}: {summary['file']} ({told})")
    run.log(to_evaluate(summary["objective"], summary["file"]))


def _updates(point: dict[str, Any]) -> str:
    return counted(point["iteration"], "update")
