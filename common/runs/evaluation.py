"""The evaluations of a run, for which networks are trained from scratch on the current synthetic set and tested."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.runs.setup import Setup
from common.system.devices import peak_memory
from common.system.text import point_of
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol


class Evaluations:
    """The finished evaluations and the one in progress. Both are saved in checkpoints.

    `points` holds one dictionary per finished evaluation: {"iteration", "network", "mean", "std", "n", "accuracies"}
    and, with a pool of several networks, "networks". Accuracies are fractions. A network that diverged has None, and
    "diverged" counts such networks, if there are any. With training images held back, "validation" holds the same
    figures on them.
    """

    def __init__(self, setup: Setup) -> None:
        self.points: list[dict[str, Any]] = []
        self.images = 0
        """Images that the networks of the last evaluation were trained and tested on, in this process."""
        self._setup = setup
        self._networks = {
            name: EvaluationNetwork(network, setup.compile, setup.graphs) for name, network in setup.pool.items()
        }
        # Accuracies of the evaluation in progress, by network: on the test images, and on those held back.
        self._unfinished: dict[str, list[float | None]] = {}
        self._unfinished_on_held: dict[str, list[float | None]] = {}

    def are_due(self, iteration: int) -> bool:
        """Whether the set has to be evaluated after this many iterations and has not been yet."""
        options = self._setup.options
        ends = iteration in (0, options.Iteration)
        seen = bool(self.points) and self.points[-1]["iteration"] == iteration
        return (ends or (options.eval_it > 0 and iteration % options.eval_it == 0)) and not seen

    def make(
        self,
        iteration: int,
        protocol: EvaluationProtocol,
        check_stop: Callable[[], None],
        after_each: Callable[[], None],
        lower: Callable[[Tensor], str],
    ) -> dict[str, Any]:
        """Train and test `num_eval` networks per architecture. Returns the new point and appends it to `points`.

        After a stop, finished networks are not trained again. check_stop: called after every batch of training and
        testing; it may raise. after_each: called whenever a network is finished. lower: asked what to advise if all
        networks diverge, which raises InputError; its argument is the images that they were trained on.
        """
        options, batches = self._setup.options, Batches(*self._setup.synset.stored().get(need_copy=True))
        validation = self._setup.validation
        tested = len(self._setup.test) + (0 if validation is None else len(validation))
        self.images = 0

        def keep_held(name: str, accuracy: float | None) -> None:
            self._unfinished_on_held.setdefault(name, []).append(accuracy)

        def keep(name: str, accuracy: float | None) -> None:
            epochs = protocol.for_network(options.dataset, name).epochs_of_training
            self.images += epochs * len(batches.labels) + tested
            self._unfinished.setdefault(name, []).append(accuracy)
            after_each()

        accuracies = evaluate_pool(
            self._tested_after(iteration),
            lambda number: batches,
            self._setup.test,
            protocol,
            options.num_eval,
            options.seed,
            dataset=options.dataset,
            point=iteration,
            together=options.networks_at_once,
            precision=options.precision,
            finished=self._unfinished,
            validation=validation,
            on_validation=keep_held,
            check_stop=check_stop,
            on_accuracy=keep,
            lower=lambda: lower(batches.images),
            title="  evaluation",
            leave=False,
        )
        point = {"iteration": iteration, **point_of(accuracies, self._setup.principal)}
        if validation is not None:
            point["validation"] = point_of(self._unfinished_on_held, self._setup.principal)
        self._unfinished, self._unfinished_on_held = {}, {}
        self.points.append(point)
        return point

    def _tested_after(self, iteration: int) -> dict[str, EvaluationNetwork]:
        """The networks to test: with --wait_eval only the principal one until the last iteration, otherwise all."""
        if not self._setup.options.wait_eval or iteration == self._setup.options.Iteration:
            return self._networks
        return {self._setup.principal: self._networks[self._setup.principal]}

    def state_dict(self) -> dict[str, Any]:
        """The finished evaluations, and the accuracies so far of the one in progress."""
        held = {} if self._setup.validation is None else {"unfinished_on_held": self._unfinished_on_held}
        return {"evaluations": self.points, "unfinished": self._unfinished, **held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.points, self._unfinished = state["evaluations"], state["unfinished"]
        self._unfinished_on_held = state.get("unfinished_on_held", {})


class Speed:
    """How fast a run is and what share of its time evaluations take, since this process began the loop.

    Everything comes from clocks and counts of the CPU, read where the device has finished: before an evaluation the
    losses have been fetched, and after it the accuracies. So nothing waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = self._since = time.monotonic()
        self._updates, self._evaluating = 0, 0.0

    def count_update(self) -> None:
        """Count an update of the synthetic set."""
        self._updates += 1

    def measure(self, begun: float, images: int) -> dict[str, Any]:
        """The figures at the end of an evaluation, for metrics.jsonl.

        updates_per_second: since the evaluation before, if there was an update. images_per_second: of the evaluation,
        in training and testing. evaluation_share: of the time since the loop began. peak_memory_bytes: as in
        summary.json.
        begun: when the evaluation began, by time.monotonic. images: how many the evaluation put through networks.
        """
        now = time.monotonic()
        rates = {}
        if self._updates:
            rates["updates_per_second"] = self._updates / (begun - self._since)
        if images:  # none, if the evaluation was stopped after its last network
            rates["images_per_second"] = images / (now - begun)
        rates["evaluation_share"] = (self._evaluating + now - begun) / (now - self._begun)
        self._since = begun
        return {
            **{key: float(f"{rate:.4g}") for key, rate in rates.items()},
            "peak_memory_bytes": peak_memory(self._device),
        }

    def go_on(self) -> None:
        """Return to updates, once the evaluation and its pictures are finished."""
        now = time.monotonic()
        self._evaluating += now - self._since
        self._updates, self._since = 0, now
