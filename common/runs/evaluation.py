"""The evaluations of a run: networks trained from scratch on the synthetic set as it is at a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from common.networks import Network
from common.runs.setup import Setup
from common.system import parallel
from common.system.devices import precision
from common.system.text import point_of
from common.training.evaluate import evaluate, networks_at_once, trained_here
from common.training.train import Batches, EvaluationProtocol


class Evaluations:
    """The evaluations made so far, and the one under way; both are part of a checkpoint.

    `points` holds {"iteration", "network", "mean", "std", "n", "accuracies"} of each and, with a pool, "networks".
    Accuracies are fractions.
    """

    def __init__(self, setup: Setup, compiled: Callable[[Network], Any], compiler: Callable[..., Any] | None) -> None:
        self.points: list[dict[str, Any]] = []
        self._setup, self._compiler = setup, compiler
        self._forwards = {name: compiled(network) for name, network in setup.pool.items()}
        self._unfinished: dict[str, list[float]] = {}  # accuracies of the evaluation under way, by network

    def are_due(self, iteration: int) -> bool:
        """Whether the set is to be evaluated after so many updates, and has not been yet."""
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
    ) -> dict[str, Any]:
        """Train and test `num_eval` networks of each kind; returns the new point, the last of `points`.

        Networks that are finished are not trained again after a stop. check_stop may raise between steps; after_each is
        called when a network is finished.
        """
        setup, options = self._setup, self._setup.options
        batches, pool = Batches(*setup.synset.get(need_copy=True)), self._tested_after(iteration)
        protocols = {name: protocol.for_network(options.dataset, name) for name in pool}
        numbers = {name: range(len(self._unfinished.get(name, [])), options.num_eval) for name in pool}
        together = networks_at_once(options.networks_at_once, setup.device)
        here = {name: trained_here(network, len(numbers[name]), together) for name, network in pool.items()}
        epochs = tqdm(
            total=sum(here[name] * each.epochs_of_training for name, each in protocols.items()),
            desc="  evaluation",
            unit="epoch",
            leave=False,
            dynamic_ncols=True,
            disable=not parallel.is_main(),
        )
        with epochs, precision(options.precision, setup.device):
            for name, network in pool.items():
                for accuracy in evaluate(
                    network,
                    lambda number: batches,
                    setup.test,
                    protocols[name],
                    numbers[name],
                    options.seed,
                    point=iteration,
                    forward=self._forwards[name],
                    check_stop=check_stop,
                    on_epoch=epochs.update,
                    together=together,
                    compiler=self._compiler,
                ):
                    self._unfinished.setdefault(name, []).append(accuracy)
                    after_each()
        point = {"iteration": iteration, **point_of(self._unfinished, setup.principal)}
        self._unfinished = {}
        self.points.append(point)
        return point

    def _tested_after(self, iteration: int) -> dict[str, Network]:
        """All networks or, with --wait_eval before the last update, the principal one alone."""
        setup = self._setup
        if not setup.options.wait_eval or iteration == setup.options.Iteration:
            return setup.pool
        return {setup.principal: setup.pool[setup.principal]}

    @property
    def best(self) -> dict[str, Any]:
        """The point with the highest mean, the first of equals."""
        return max(self.points, key=lambda point: point["mean"])

    @property
    def best_by_network(self) -> dict[str, dict[str, Any]]:
        """For each network its figures at its highest mean, the first of equals, and the iteration."""
        best: dict[str, dict[str, Any]] = {}
        for point in self.points:
            for name, figures in point.get("networks", {point["network"]: point}).items():
                if name not in best or figures["mean"] > best[name]["mean"]:
                    best[name] = {key: figures[key] for key in ("mean", "std", "n", "accuracies")}
                    best[name]["iteration"] = point["iteration"]
        return best

    def state_dict(self) -> dict[str, Any]:
        """Points and the accuracies of an evaluation under way."""
        return {"evaluations": self.points, "unfinished": self._unfinished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.points, self._unfinished = state["evaluations"], state["unfinished"]
