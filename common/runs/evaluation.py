"""The evaluations of a run, for which networks are trained from scratch on the current synthetic set and tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.runs.setup import Setup
from common.system.text import point_of
from common.training.pool import EvaluationNetwork, evaluate_pool
from common.training.train import Batches, EvaluationProtocol


class Evaluations:
    """The finished evaluations and the one in progress. Both are saved in checkpoints.

    `points` holds one dictionary per finished evaluation: {"iteration", "network", "mean", "std", "n", "accuracies"}
    and, with a pool of several networks, "networks". Accuracies are fractions. A network that diverged has None, and
    "diverged" counts such networks, if there are any.
    """

    def __init__(self, setup: Setup) -> None:
        self.points: list[dict[str, Any]] = []
        self._setup = setup
        self._networks = {name: EvaluationNetwork(network, setup.compile) for name, network in setup.pool.items()}
        self._unfinished: dict[str, list[float | None]] = {}  # accuracies of the evaluation in progress, by network

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
        lower: str,
    ) -> dict[str, Any]:
        """Train and test `num_eval` networks per architecture. Returns the new point and appends it to `points`.

        After a stop, finished networks are not trained again. check_stop: called between training steps; it may raise.
        after_each: called whenever a network is finished. lower: what to advise if all networks diverge, which raises
        InputError.
        """
        options, batches = self._setup.options, Batches(*self._setup.synset.get(need_copy=True))

        def keep(name: str, accuracy: float | None) -> None:
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
            check_stop=check_stop,
            on_accuracy=keep,
            lower=lower,
            title="  evaluation",
            leave=False,
        )
        point = {"iteration": iteration, **point_of(accuracies, self._setup.principal)}
        self._unfinished = {}
        self.points.append(point)
        return point

    def _tested_after(self, iteration: int) -> dict[str, EvaluationNetwork]:
        """The networks to test: with --wait_eval only the principal one until the last iteration, otherwise all."""
        if not self._setup.options.wait_eval or iteration == self._setup.options.Iteration:
            return self._networks
        return {self._setup.principal: self._networks[self._setup.principal]}

    def state_dict(self) -> dict[str, Any]:
        """The finished evaluations, and the accuracies so far of the one in progress."""
        return {"evaluations": self.points, "unfinished": self._unfinished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.points, self._unfinished = state["evaluations"], state["unfinished"]
