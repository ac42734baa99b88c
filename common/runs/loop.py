"""The loop that every objective shares: evaluate, update, keep.

A run makes exactly `Iteration` updates. It is evaluated before the first, every `eval_it`, and after the last one, and
what is saved at a point is what was evaluated there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from common.matching.step_size import StepSize
from common.report import pictures
from common.report.record import read_metrics
from common.report.run_page import write_run_report
from common.runs.folder import Run, open_run
from common.runs.setup import Setting
from common.runs.track import Tracker, open_tracker
from common.synset.file import export_pair, load_synset, save_synset
from common.system import parallel
from common.system.devices import peak_memory
from common.system.errors import InputError
from common.system.text import best_by_network, best_of, in_percent, point_of
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol

Step = Callable[[int], Tensor]

# Losses stay on the device between two looks at them; looking waits for the device.
_LOOK_EVERY = 10
_CHECKPOINT_SHARE = 0.01


class Source(Protocol):
    """What an objective takes its updates from beside the images, of which a run has to keep to the same."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def stated(self) -> dict[str, Any]:
        """Facts for config.json and summary.json."""
        ...

    def check(self, stated: dict[str, Any]) -> None:
        """Raises InputError where a finished run had another, by the facts in its summary."""
        ...


def distill(
    setting: Setting, step: Step, step_size: StepSize | None = None, source: Source | None = None
) -> dict[str, Any]:
    """Run to the end, from wherever the run folder left off; returns the summary (also in summary.json).

    step: iteration -> loss (a scalar without graph), having updated the coefficients. step_size: what the networks are
    trained with, where the objective learns it; `step` updates it too. source: what `step` reads beside the images.
    Of several processes all make the same updates, and the first one alone writes and says what there is to say.
    Raises Stopped after SIGINT or SIGTERM, with everything saved; InputError for a loss that is not finite.
    """
    with contextlib.ExitStack() as stack:
        run = open_run(setting.options, setting.sources, setting.objective, setting.device)
        stack.callback(run.close)
        summary = run.summary
        if summary is None:
            loop = _Loop(setting, run, step_size, source)
            stack.callback(lambda: loop.tracker.close())  # after the closing lines: it may have to wait for the network
            loop.restore()
            with run.catching_signals():
                loop.run_through(step)
            summary = parallel.broadcast(loop.finish() if parallel.is_main() else None)
        else:
            if source is not None:
                source.check(summary)
            run.log(f"{run.folder} is finished; --resume never would start it over")
        if setting.options.export and parallel.is_main():
            best, _ = load_synset(run.folder / "synset_best.safetensors")
            run.log(f"{'exported':>20}: {', '.join(map(str, export_pair(best, run.folder)))}")
        _say(summary, run)
        return summary


def _say(summary: dict[str, Any], run: Run) -> None:
    """The closing lines."""
    for label, key in {"before optimisation": "start", "last": "last", "best on test": "best_on_test"}.items():
        point = summary[key]
        run.log(f"{label:>20}: {in_percent(point)} ({point['n']} x {point['network']}, {point['iteration']} updates)")
    for name, figures in summary.get("best_on_test_by_network", {}).items():
        last = summary["last"]["networks"][name]
        run.log(
            f"{name:>20}: last {in_percent(last)}, best on test {in_percent(figures)} ({figures['iteration']} updates)"
        )
    run.log(f"{'synthetic set':>20}: {summary['file']} ({summary['file_bytes']:,} bytes)")


class _Loop:
    """The state of a distillation between two updates, all of which a checkpoint holds."""

    def __init__(self, setting: Setting, run: Run, step_size: StepSize | None, source: Source | None) -> None:
        self.run, self.step_size, self.source = run, step_size, source
        self.setting, self.options, self.synset = setting, setting.options, setting.synset
        self.networks = {name: EvaluationNetwork(each, setting.compile) for name, each in setting.evaluated.items()}
        self.iteration = 0
        self.evaluations: list[dict[str, Any]] = []
        self.unfinished: dict[str, list[float]] = {}  # accuracies of the evaluation under way, by network
        self.seconds = 0.0
        self.last_loss: float | None = None
        self.tracker = Tracker()
        self._losses: list[Tensor] = []
        self._started = self._saved = time.monotonic()
        self._saving = 0.0

    # -- checkpoints -------------------------------------------------------------------------------------------

    def restore(self) -> None:
        state = parallel.broadcast(self.run.load_checkpoint())
        if self.source is not None:
            # Of a new run too: processes may see files appear at different moments.
            begun_with = self.source.state_dict() if state is None else state["source"]
            self.source.load_state_dict(parallel.broadcast(begun_with))
            self.run.state(self.source.stated())
        if state is None:
            self.run.log(self.synset.describe_budget())
            self.run.log(f"run folder {self.run.folder}")
            self.tracker = self._open_tracker(None)
            self._draw_masks()
            return
        self.synset.load_state_dict(state["synset"])
        if self.step_size is not None:
            self.step_size.load_state_dict(state["step_size"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.evaluations, self.unfinished = state["evaluations"], state["unfinished"]
        self.run.log(f"resumed from iteration {self.iteration} ({self.run.folder})")
        self.tracker = self._open_tracker(self.iteration)

    def _open_tracker(self, resumed_from: int | None) -> Tracker:
        if not parallel.is_main():
            return Tracker()
        context = {key: self.run.config[key] for key in ("objective", "version", "hardware")}
        place = self.run.folder.relative_to(self.options.save_path)
        return open_tracker(
            self.options.track,
            self.run.folder,
            context | dataclasses.asdict(self.options),
            name=place.as_posix(),
            group=self.options.track_group or place.parent.as_posix(),
            project=self.options.track_project,
            resumed_from=resumed_from,
            say=self.run.log,
        )

    def save(self) -> None:
        self.look_at_losses()
        if not self.synset.coefficients.isfinite().all():
            raise self._diverged(f"the coefficients after {self.iteration} updates are not finite")
        if self.step_size is not None and not self.step_size.value.isfinite():
            raise self._diverged(f"the step size after {self.iteration} updates is not finite")
        if not parallel.is_main():
            return
        begun = time.monotonic()
        self.run.save_checkpoint({
            "synset": self.synset.state_dict(),
            "step_size": None if self.step_size is None else self.step_size.state_dict(),
            "source": None if self.source is None else self.source.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds + begun - self._started,
            "evaluations": self.evaluations,
            "unfinished": self.unfinished,
        })  # fmt: skip
        self._saved = time.monotonic()
        self._saving = self._saved - begun

    def save_if_due(self) -> None:
        if not parallel.is_main():
            return
        if self.options.checkpoint_every:
            due = self.iteration % self.options.checkpoint_every == 0
        else:
            due = time.monotonic() - self._saved > self._saving / _CHECKPOINT_SHARE
        if due:
            self.save()

    def look_at_losses(self) -> None:
        """Fetch the losses of the last updates, record them, and refuse to go on from one that is not finite."""
        if not self._losses:
            return
        first = self.iteration - len(self._losses)
        for index, loss in enumerate(torch.stack(self._losses).tolist(), start=first):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss of iteration {index} is {loss}")
            self.run.record(iteration=index, loss=loss)
            self.tracker.scalars(index + 1, loss=loss)
            self.last_loss = loss
        self._losses.clear()

    def _diverged(self, what: str) -> InputError:
        kept = f"the last good checkpoint is kept in {self.run.folder}"
        flags = [f"--lr_freq ({self.options.lr_freq:g})"]
        if self.step_size is not None:
            flags += [f"--lr_lr ({self.step_size.lr:g})", f"--lr_teacher ({self.step_size.initial:g})"]
        return InputError(f"{what}: lower {' or '.join(flags)}; {kept}")

    # -- the loop ----------------------------------------------------------------------------------------------

    def run_through(self, step: Step) -> None:
        bar = tqdm(
            total=self.options.Iteration,
            initial=self.iteration,
            desc=self.setting.objective,
            unit="it",
            dynamic_ncols=True,
            disable=not parallel.is_main(),
        )
        with bar:
            while True:
                if self._evaluation_is_due():
                    self._evaluate()
                    bar.set_postfix(self._postfix())
                if self.iteration == self.options.Iteration:
                    return
                self._losses.append(step(self.iteration))
                self.iteration += 1
                bar.update()
                if len(self._losses) == _LOOK_EVERY:
                    self.look_at_losses()
                    bar.set_postfix(self._postfix())
                if self.run.is_stopped():
                    self.save()
                    self.run.raise_if_stopped()
                self.save_if_due()

    def _postfix(self) -> dict[str, str]:
        shown = {} if self.last_loss is None else {"loss": f"{self.last_loss:.4g}"}
        return shown | ({"acc": f"{100 * self.evaluations[-1]['mean']:.1f}%"} if self.evaluations else {})

    def _evaluation_is_due(self) -> bool:
        every = self.options.eval_it
        ends = self.iteration in (0, self.options.Iteration)
        seen = bool(self.evaluations) and self.evaluations[-1]["iteration"] == self.iteration
        return (ends or (every > 0 and self.iteration % every == 0)) and not seen

    @property
    def protocol(self) -> EvaluationProtocol:
        """How networks are trained at this point: kind dc takes the learned step size, where there is one."""
        protocol = self.setting.protocol
        if self.step_size is None or protocol.kind == "glad":
            return protocol
        return dataclasses.replace(protocol, lr=self.step_size.value.item())

    def _evaluate(self) -> None:
        """Train and test `num_eval` networks of each kind on the set as it is now; keep set, figures and a picture."""
        self.save()
        begun, options = time.monotonic(), self.options
        images, labels = self.synset.get(need_copy=True)
        batches = Batches(images, labels)
        accuracies = evaluate_pool(
            self._tested_now(),
            lambda number: batches,
            self.setting.test,
            self.protocol,
            options.num_eval,
            options.seed,
            dataset=options.dataset,
            point=self.iteration,
            together=options.networks_at_once,
            precision=options.precision,
            finished=self.unfinished,
            check_stop=self.run.raise_if_stopped,
            on_accuracy=self._keep_accuracy,
            title="  evaluation",
            leave=False,
        )
        point = {"iteration": self.iteration, **point_of(accuracies, self.setting.principal)}
        if self.step_size is not None:
            point["step_size"] = self.step_size.value.item()
        self.unfinished = {}
        self._keep(point, images)
        self.run.record(evaluation=point, seconds=round(time.monotonic() - begun, 3))
        self.save()
        if self.iteration < self.options.Iteration:  # after the last one `finish` writes it, with the summary
            self._write_report()

    def _keep_accuracy(self, name: str, accuracy: float) -> None:
        self.unfinished.setdefault(name, []).append(accuracy)
        self.save()

    def _tested_now(self) -> dict[str, EvaluationNetwork]:
        """All networks, or only the one that stands for them while the others wait."""
        if not self.options.wait_eval or self.iteration == self.options.Iteration:
            return self.networks
        return {self.setting.principal: self.networks[self.setting.principal]}

    def _keep(self, point: dict[str, Any], images: Tensor) -> None:
        data = self.setting.train
        self.evaluations.append(point)
        if not parallel.is_main():
            return
        text = f"accuracy {in_percent(point)} ({point['n']} networks)"
        before = " (before optimisation)" if self.iteration == 0 else ""
        self.run.log(f"iteration {self.iteration}: {text}{before}")
        for name, figures in point.get("networks", {}).items():
            self.run.log(f"{name:>20}: {in_percent(figures)}")
        metadata = self._metadata(point)
        learned = None if self.step_size is None else self.step_size.value
        save_synset(self.synset, self.run.folder / "synset.safetensors", metadata, learned)
        if point is self.best:
            save_synset(self.synset, self.run.folder / "synset_best.safetensors", metadata, learned)
        what = f"{self.run.dataset}, ipc {self.options.ipc}, {self.setting.objective}"
        title = f"{what}, {self.iteration} updates: {text}"
        path = self.run.folder / f"images_{self.iteration:06d}.png"
        draw = pictures.draw_images if len(data.im_size) == 2 else pictures.draw_voxels
        draw(path, data.denormalise(images), data.class_names, title)
        self.tracker.picture("images", path, self.iteration)
        self.tracker.evaluation(point)

    @property
    def best(self) -> dict[str, Any]:
        """The evaluation with the highest mean, the first of equals."""
        return best_of(self.evaluations)

    def _metadata(self, point: dict[str, Any]) -> dict[str, Any]:
        data, options = self.setting.train, self.options
        return {
            "dataset": options.dataset,
            "mean": list(data.mean),
            "std": list(data.std),
            "zca": None if data.whitening is None else data.whitening.stated(),
            "class_names": list(data.class_names),
            "image_size": options.image_size,
            "resize": options.resize,
            "antialias": options.antialias,
            "objective": self.setting.objective,
            "model": options.model,
            "network": self.setting.principal,
            "evaluation": self.protocol.as_metadata(),
            "accuracy": point,
            "seed": options.seed,
            "version": self.run.config["version"],
        }

    def _write_report(self) -> None:
        if not parallel.is_main():
            return
        try:
            write_run_report(self.run.folder)
        except InputError as error:  # everything else is saved: it can be written later
            self.run.log(f"no report.html ({error})")

    def _draw_masks(self) -> None:
        if not parallel.is_main():
            return
        kept = f"{self.options.msz_per_channel} of {self.synset.d} {self.synset.transform} coefficients"
        title = f"{kept} kept, by {self.synset.selection}"
        path = self.run.folder / "masks.png"
        pictures.draw_masks(path, self.synset.mask, self.setting.train.class_names, title)
        self.tracker.picture("masks", path, 0)

    # -- the end -----------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        losses, _ = read_metrics(self.run.folder / "metrics.jsonl")
        pictures.draw_curves(self.run.folder / "curves.png", losses, self.evaluations)
        self.tracker.picture("curves", self.run.folder / "curves.png", self.iteration)
        picture = self.run.folder / f"images_{self.iteration:06d}.png"
        summary: dict[str, Any] = {
            "objective": self.setting.objective,
            "dataset": self.options.dataset,
            "start": self.evaluations[0],
            "last": self.evaluations[-1],
            "best_on_test": self.best,
            **(
                {}
                if len(self.setting.evaluated) == 1
                else {"best_on_test_by_network": best_by_network(self.evaluations)}
            ),
            "evaluation": self.protocol.as_metadata(),
            "budget": self.synset.budget(),
            "file": str(self.run.folder / "synset.safetensors"),
            "file_bytes": (self.run.folder / "synset.safetensors").stat().st_size,
            "picture": str(picture) if picture.exists() else None,
            "seconds": round(self.seconds + time.monotonic() - self._started, 1),
            "peak_memory_bytes": peak_memory(self.setting.device),  # of this process, where the run was continued
            "version": self.run.config["version"],
            **({} if self.source is None else self.source.stated()),
        }
        self.run.finish(summary)
        self._write_report()
        self.tracker.summary(summary)
        return summary
