"""`Distillation`: the loop around the updates of every objective, which evaluates and saves between them.

A run makes exactly `Iteration` iterations, each of one or more updates of the synthetic set. The set is evaluated
before the first iteration, after every `eval_it` iterations, and after the last one. Each evaluation saves the very set
that it evaluates.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from common.config.options import DistillOptions, Sources
from common.config.places import check_objective
from common.costs.forecast import say_forecast
from common.matching.step_size import StepSize
from common.runs.evaluation import Evaluations, Speed
from common.runs.folder import open_run
from common.runs.kept import Kept, Source, checked, described, states_of, stored_states
from common.runs.losses import Losses
from common.runs.output import Output, export, say, write_report
from common.runs.pieces import REHEARSED, Pieces
from common.runs.setup import set_up
from common.system import parallel
from common.system.errors import InputError
from common.system.progress import Progress
from common.system.text import chosen_of, counted
from common.training.train import EvaluationProtocol, all_finite

Options = TypeVar("Options", bound=DistillOptions)

_OUTSIDE = 1e4  # normalised and whitened images stay far below; beyond, the set is to blame, not who trains on it
_CHECKPOINT_SHARE = 0.01  # at most this share of the time goes to checkpoints


class Distillation(Pieces):
    """One distillation, from its options to a run folder with the finished synthetic set.

        with Distillation(options, sources, "DM") as run:
            for iteration in run:
                draws = run.draws(iteration)
                synthetic = run.synthetic(options.batch_syn, draws)
                ...                                     # loss [], gradient like synthetic
                run.update(synthetic, gradient, loss)

    The loop yields the number of each iteration that the run has not made yet. Between iterations it evaluates, saves,
    shows progress, and stops if a signal has arrived. Leaving the `with` block releases the run folder and never saves:
    after a `break`, as after a kill, the same command resumes from the last checkpoint. A checkpoint holds the
    synthetic set and what was passed to `keep`, so pass every other state that changes from one update to the next. All
    processes of a job run the same loop and leave it together.

    `config.command_line.parse` makes options and sources. objective: the name of a folder for its runs, or FOLDER/NAME.
    `Pieces` lists the objects that a script reads and the parts of an update. `summary` is None before the loop has
    ended.

    Raises InputError for options that cannot work, and RuntimeError for methods called outside the `with` block or in
    another order than here. The loop raises InputError for a run folder that cannot be used, for a loss that is not
    finite, and if all networks of an evaluation diverge; Stopped after SIGINT or SIGTERM, when everything has been
    saved; and ProcessLost if another process of the job has ended.
    """

    def __init__(self, options: DistillOptions, sources: Sources, objective: str) -> None:
        self.objective = objective
        check_objective(objective)
        self._setup = setup = set_up(options, sources, objective)
        super().__init__(setup)
        self.summary: dict[str, Any] | None = None
        self._step_size: StepSize | None = None
        self._source: Source | None = None
        self._kept: dict[str, Kept] = {}
        self._folder: Path | None = None
        self._iteration = 0
        self._stage: Literal["outside", "before", "looping", "left"] = "outside"
        self._evaluations = Evaluations(setup)
        self._losses = Losses(
            self._record_loss,
            self._diverged,
            network_diverged=lambda what: self._diverged(what, f"--lr_net ({self.options.lr_net:g})"),
        )
        self._seconds = 0.0
        self._started = self._saved = time.monotonic()
        self._saving = 0.0
        self._open = ExitStack()

    def __enter__(self) -> Distillation:
        if self._stage != "outside":
            raise RuntimeError("a `with` block of a Distillation is entered once: open another one to resume")
        self._stage = "before"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._stage = "left"
        return bool(self._open.__exit__(kind, error, trace))

    def keep(self, *, step_size: StepSize | None = None, source: Source | None = None, **others: Kept) -> None:
        """Save these objects in every checkpoint, and restore them at the first `next`. Call it before the loop.

        Of a finished run they are restored, too, as they were at its end. step_size: the learned step size; evaluation
        networks are trained with it. source: what updates read beside the images. others: anything else that changes
        from one update to the next, each under a name of your choice.
        The loop raises InputError for a checkpoint that holds other names, and TypeError for a state that a checkpoint
        cannot hold (see `kept.Kept`). Raises TypeError for an object without the methods of `Kept`, and RuntimeError if
        the loop has begun or at a second call.
        """
        if self._stage != "before" or self._kept:
            raise RuntimeError("call `keep` once, with everything to keep, inside the `with` block and before the loop")
        self._kept = checked({"step_size": step_size, "source": source, **others})
        self._step_size, self._source = step_size, source

    def settle(self, options: Options, **values: Any) -> Options:
        """Replace options that the script decides when it knows the data, before the loop. Returns the new options."""
        if self._stage != "before":
            raise RuntimeError("call `settle` inside the `with` block and before the loop")
        self.options = self._setup.options = dataclasses.replace(self.options, **values)
        return dataclasses.replace(options, **values)

    # -- updates -----------------------------------------------------------------------------------------------

    def update(self, synthetic: Tensor, gradient: Tensor, loss: Tensor, *also: Tensor, whole: bool = False) -> None:
        """Backpropagate the gradient through the inverse transform, and take one optimiser step on the coefficients.

        synthetic: the images from `synthetic` or `synset.decode`. gradient: the gradient of the loss with respect to
        `synthetic`. loss: a scalar without a graph. also: further tensors that processes combine. By default the
        processes sum their losses, gradients and `also` in place. whole: every process has the complete values already,
        and all take those of process 0. An iteration may make several updates.
        Raises TypeError for a loss or a gradient of another kind, and RuntimeError outside the loop.
        """
        if self._stage != "looping":
            raise RuntimeError("call `update` inside the loop, which evaluates and saves the set between iterations")
        if not (isinstance(loss, Tensor) and loss.is_floating_point() and loss.ndim == 0 and not loss.requires_grad):
            raise TypeError(f"loss is {described(loss)}: give a floating-point tensor [] without a graph")
        if not isinstance(gradient, Tensor) or gradient.shape != synthetic.shape:
            raise TypeError(f"gradient is {described(gradient)}: give a tensor {list(synthetic.shape)} like the images")
        self.synset.optim_zero_grad()
        synthetic.backward(gradient)
        assert self.synset.coefficients.grad is not None
        parts = [loss, *also, self.synset.coefficients.grad]
        if whole:  # different processors may have rounded differently
            parallel.copy_from_main_(parts)
        else:
            parallel.sum_(*parts)
        self.synset.optim_step()
        self._losses.add(loss)
        self._speed.count_update()

    def rehearse(self, iterations: int, record: Callable[[int, float], None]) -> Iterator[int]:
        """Loop over the first iterations without evaluations and without a run folder.

        record: called with (iteration, loss) after each. Raises InputError for a loss that is not finite.
        """
        self._speed, self._losses = Speed(self.device), Losses(record, InputError, InputError)
        for iteration in range(iterations):
            yield iteration
            self._losses.end_iteration()
            self._losses.look(iteration + 1)

    @property
    def kept(self) -> dict[str, Kept]:
        """What `keep` was given, by name."""
        return dict(self._kept)

    def check_network(self, network: nn.Module) -> None:
        """End the run if a network that was trained on the synthetic set with --lr_net, between updates, has diverged.

        Nothing waits for the device: the run ends when it next looks at its losses. A network that was trained on
        coefficients that are not finite is not to blame.
        """
        finite = all_finite([*network.parameters(), *network.buffers()], self.device)
        self._losses.expect(finite | ~self.synset.coefficients.detach().isfinite().all())

    @property
    def folder(self) -> Path:
        """The run folder. It is known once the loop has begun; before that, raises RuntimeError."""
        if self._folder is None:
            raise RuntimeError("the run folder is known once the loop has begun")
        return self._folder

    # -- the loop ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[int]:
        if self._stage != "before":
            raise RuntimeError("loop over a Distillation once, inside its `with` block; open another one to resume")
        self._stage = "looping"
        instead = REHEARSED.get()
        return self._iterations() if instead is None else instead(self)

    def _iterations(self) -> Iterator[int]:
        self._run = run = open_run(self.options, self._setup.sources, self.objective, self.device, self._setup.content)
        self._folder = run.folder
        self._open.callback(run.close)
        if run.summary is None:
            self._restore()
            say_forecast(self.objective, self.options, self.train, self.test, self.synset, self._iteration)
            self._speed = Speed(self.device)
            self._open.callback(self._output.tracker.close)  # after the closing lines: uploads may be slow
            looping = self._open.enter_context(ExitStack())
            looping.enter_context(run.catching_signals())
            bar = looping.enter_context(self._progress())
            while True:
                if self._evaluations.are_due(self._iteration):
                    self._evaluate()
                    bar.set_postfix(self._postfix())
                if self._iteration == self.options.Iteration:
                    break
                run.doing = f"update {self._iteration + 1:,}"
                yield self._iteration
                if self._stage == "left":
                    raise RuntimeError("the `with` block has ended, and the run is stopped: open another to resume")
                self._count_update(bar)
            looping.close()
            self.summary = parallel.broadcast(self._finish() if parallel.is_main() else None)
        else:
            self.summary = run.summary
            if self._source is not None:
                self._source.check(run.summary)
            run.check_content(self._setup.content, run.summary)
            self._restore_finished()
            run.log(f"{run.folder} is finished; --resume never would start it over")
            if not (run.folder / "report.html").exists():  # it was killed before, or the page was removed
                write_report(run)
        if self.options.export and parallel.is_main():
            export(run)
        say(self.summary, run)

    def _progress(self) -> Progress:
        return Progress(
            total=self.options.Iteration,
            initial=self._iteration,
            desc=self.objective,
            unit="it",
            disable=not parallel.is_main(),
        )

    def _postfix(self) -> dict[str, str]:
        shown = {} if self._losses.last is None else {"loss": f"{self._losses.last:.4g}"}
        points = self._evaluations.points
        if points and points[-1]["mean"] is not None:
            shown["acc"] = f"{100 * points[-1]['mean']:.1f} %"
        return shown

    def _count_update(self, bar: Progress) -> None:
        """Follow up the body of the loop: count the iteration, stop if a signal has arrived, and save if it is time."""
        look = self._losses.end_iteration()
        self._iteration += 1
        bar.update()
        if look:
            self._losses.look(self._iteration)
            bar.set_postfix(self._postfix())
        if self._run.is_stopped():
            self._save()
            self._run.raise_if_stopped()
        self._save_if_due()

    def _record_loss(self, iteration: int, loss: float) -> None:
        self._run.record(iteration=iteration, loss=loss)
        self._output.tracker.scalars(iteration + 1, loss=loss)

    def _diverged(self, what: str, *flags: str) -> InputError:
        """The error that says what is not finite. flags: those to lower first, with their values."""
        flags = (*flags, f"--lr_freq ({self.options.lr_freq:g})")
        if self._step_size is not None:
            flags = (*flags, *self._flags_of_step_size(self._step_size))
        return InputError(f"{what}: lower {' or '.join(flags)}; {self._last_good}")

    @staticmethod
    def _flags_of_step_size(step_size: StepSize) -> list[str]:
        return [f"--lr_lr ({step_size.lr:g})", f"--lr_teacher ({step_size.initial:g})"]

    @property
    def _last_good(self) -> str:
        return f"the last good checkpoint is kept in {self._run.folder}"

    # -- evaluations -------------------------------------------------------------------------------------------

    @property
    def _protocol(self) -> EvaluationProtocol:
        """How evaluation networks are trained now. Kind dc trains with the learned step size, if there is one."""
        protocol = self._setup.protocol
        if self._step_size is None or protocol.kind == "glad":
            return protocol
        return dataclasses.replace(protocol, lr=self._step_size.value.item())

    @property
    def _learned(self) -> Tensor | None:
        """The learned step size [], if the objective has one."""
        return None if self._step_size is None else self._step_size.value

    def _lower(self, images: Tensor) -> str:
        """What to advise if all networks of an evaluation diverge that were trained on these images."""
        protocol, largest = self._protocol, images.abs().max().item()
        if largest > _OUTSIDE:
            advice = f"lower --lr_freq ({self.options.lr_freq:g}), for values of the images reach {largest:.0e}"
        elif protocol.kind == "glad":
            advice = "train them with --eval_protocol dc and a lower --lr_net"
        elif self._step_size is not None:
            flags = " or ".join(self._flags_of_step_size(self._step_size))
            advice = f"lower {flags}, for they are trained with the learned step size, which is {protocol.lr:g}"
        else:
            advice = f"lower --lr_net ({protocol.lr:g})"
        return f"{advice}; {self._last_good}"

    def _evaluate(self) -> None:
        """Evaluate the current synthetic set, and save the set, its accuracies and a picture."""
        self._save()
        begun, protocol = time.monotonic(), self._protocol
        self._run.doing = f"a batch of the evaluation after {counted(self._iteration, 'update')}"
        point = self._evaluations.make(self._iteration, protocol, self._run.raise_if_stopped, self._save, self._lower)
        measured = self._speed.measure(begun, self._evaluations.images)
        if self._learned is not None:
            point["step_size"] = self._learned.item()
        self._output.evaluated(point, point is chosen_of(self._evaluations.points), protocol, self._learned)
        self._output.tracker.measured(self._iteration, measured)
        self._run.record(evaluation=point, seconds=round(time.monotonic() - begun, 3), measured=measured)
        self._save()
        self._output.keep_best()
        if self._iteration < self.options.Iteration:  # after the last iteration `finish` writes the report
            write_report(self._run)
        self._speed.go_on()

    def _finish(self) -> dict[str, Any]:
        seconds = self._seconds + time.monotonic() - self._started
        more = {} if self._source is None else self._source.as_metadata()
        return self._output.finish(self._evaluations.points, self._protocol, seconds, more)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        state = parallel.broadcast(self._run.load_checkpoint())
        stored = {} if state is None else stored_states(state, self._kept, self._run.folder)
        if self._source is not None:
            # Processes may see files appear at different moments, so in a new run too all take the files of process 0.
            begun_with = states_of({"source": self._source})["source"] if state is None else stored["source"]
            self._source.load_state_dict(parallel.broadcast(begun_with))
            self._run.add_to_config(self._source.as_metadata())
        if self._setup.tried is not None and self._run.summary is None:
            self._run.add_to_config({"tried_n": self._setup.tried.as_metadata()})
        if state is None:
            if self._setup.tried is not None:
                self._run.log(str(self._setup.tried))
            self._run.log(self.synset.describe_budget())
            self._run.log(f"run folder {self._run.folder}")
            self._output = Output(self._setup, self._run, None)
            return
        self._run.check_content(self._setup.content, state)
        self.synset.load_state_dict(state["synset"])
        for name, each in self._kept.items():
            if name != "source":  # loaded above
                each.load_state_dict(stored[name])
        self._evaluations.load_state_dict(state)
        self._iteration, self._seconds = state["iteration"], state["seconds"]
        self._run.log(f"resumed from iteration {self._iteration} ({self._run.folder})")
        self._output = Output(self._setup, self._run, self._iteration)
        points = self._evaluations.points
        self._output.restore(state.get("files", {}), points, self._iteration, self._protocol, self._learned)

    def _restore_finished(self) -> None:
        """Give back what `keep` was given, as it was at the end of a finished run; its source has been checked."""
        state = parallel.broadcast(self._run.last_state()) if self._kept else None
        if state is not None:
            stored = stored_states(state, self._kept, self._run.folder)
            for name in stored.keys() - {"source"}:
                self._kept[name].load_state_dict(stored[name])
        elif self._kept:
            names = ", ".join(self._kept)
            self._run.log(f"{self._run.folder} has no readable checkpoint: {names} is as it was before the run")

    def _save(self) -> None:
        self._losses.look(self._iteration)
        if not self.synset.coefficients.isfinite().all():
            raise self._diverged(f"the coefficients after {counted(self._iteration, 'update')} are not finite")
        if self._step_size is not None and not self._step_size.value.isfinite():
            raise self._diverged(f"the step size after {counted(self._iteration, 'update')} is not finite")
        if not parallel.is_main():
            return
        begun = time.monotonic()
        self._run.save_checkpoint({
            "synset": self.synset.state_dict(),
            **states_of(self._kept),
            "files": self._output.files,
            "content": self._setup.content,
            "iteration": self._iteration,
            "seconds": self._seconds + begun - self._started,
            **self._evaluations.state_dict(),
        })  # fmt: skip
        self._saved = time.monotonic()
        self._saving = self._saved - begun

    def _save_if_due(self) -> None:
        if not parallel.is_main():
            return
        if self.options.checkpoint_every:
            due = self._iteration % self.options.checkpoint_every == 0
        else:
            due = time.monotonic() - self._saved > self._saving / _CHECKPOINT_SHARE
        if due:
            self._save()
