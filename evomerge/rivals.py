"""What the candidates of a search are held against before they have answered every item.

The fitness of a candidate on all items is estimated from those that it has answered, by ridge
regression on the candidates that have answered them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge import pareto
from evomerge.estimates import Indices, Matrix, Ridge, Vector
from evomerge.fitness import Fitness, TaskScores


@dataclass(frozen=True)
class Objectives:
    """What is maximized: the tasks' scores each on its own, or the fitness."""

    fitness: Fitness
    several: bool

    def __call__(self, means: Mapping[str, float]) -> tuple[float, ...]:
        """Return them for the tasks' means; none where these are not finite."""
        if not all(np.isfinite(one) for one in means.values()):
            return ()
        return self.fitness.normalized(means) if self.several else (self.fitness.of(means),)


def flat(scores: TaskScores, tasks: Iterable[str]) -> tuple[Vector, Vector]:
    """Return the scores and the correctness of the tasks' items end to end."""
    parts = [scores[task] for task in tasks]
    return (
        np.concatenate([one.score for one in parts]),
        np.concatenate([one.correct for one in parts]),
    )


@dataclass(frozen=True)
class Estimate:
    """Estimated means and accuracies of the tasks, objectives and their standard errors."""

    means: Mapping[str, float]
    accuracies: Mapping[str, float]
    objectives: Vector
    errors: Vector


class Rivals:
    """What candidates of one horizon are put, and what they are held against.

    They are put items in the `order` of each task, up to each of the `rungs`, the last of which is
    all of them. `score` and `correct`, float64 [rows, tasks * items], are of the candidates that
    estimates are made from, `rivals` the objectives of those that have answered all items,
    `exact` the errors of the objectives that are small enough.
    """

    def __init__(
        self,
        rungs: tuple[int, ...],
        order: Mapping[str, list[int]],
        score: Matrix,
        correct: Matrix,
        rivals: Sequence[tuple[float, ...]],
        objectives: Objectives,
        sigmas: float,
        exact: Vector,
    ) -> None:
        self.rungs = rungs
        self.order = order
        self._size = rungs[-1]
        self._score = score
        self._correct = correct
        points = pareto.as_points(rivals)
        self._best = points[pareto.front(points)]
        self._objectives = objectives
        self._sigmas = sigmas
        self._exact = exact
        self._models: dict[int, tuple[Estimator, Vector]] = {}

    def estimate(self, rung: int, scores: TaskScores) -> Estimate:
        """Estimate what a candidate that has answered the items of a rung would score on all."""
        if rung not in self._models:
            self._models[rung] = self._trained(rung)
        model, errors = self._models[rung]
        means, accuracies = map(self._by_task, model.estimate(*flat(scores, self.order)))
        return Estimate(means, accuracies, np.array(self._objectives(means)), errors)

    def _trained(self, rung: int) -> tuple[Estimator, Vector]:
        """Return what estimates from the items of a rung, and its errors in the objectives."""
        seen = np.array([order[:rung] for order in self.order.values()])
        model = Estimator(self._score, self._correct, seen, self._size)
        left_out, means = (
            np.array([self._objectives(self._by_task(one)) for one in rows])
            for rows in (model.left_out, model.means)
        )
        return model, np.sqrt(np.mean(np.square(left_out - means), axis=0))

    def _by_task(self, values: Vector) -> dict[str, float]:
        return dict(zip(self.order, values.tolist(), strict=True))

    def settle(self, found: Estimate) -> bool:
        """Return whether an estimate is exact enough, or some rival better in every objective."""
        exact = found.errors <= self._exact
        reach = found.objectives + self._sigmas * found.errors
        return bool(exact.all() or (self._best > reach).all(axis=1).any())


class Estimator:
    """Estimates the tasks' means over all items from those that are seen, int64 [tasks, rung].

    It is trained on rows that have answered all, float64 [rows, tasks * size].
    """

    def __init__(self, score: Matrix, correct: Matrix, seen: Indices, size: int) -> None:
        tasks, rung = seen.shape
        self._size = size
        self._unseen = size - rung
        self._seen = seen + size * np.arange(tasks)[:, None]
        self._accuracy = self._trained(score, correct)
        self._mean = self._trained(score, score)
        self.means = score.reshape(len(score), tasks, size).mean(2)
        # By task and row: what leaving the row out would have made of its mean.
        self.left_out = self.means - self._mean.left_out * (self._unseen / size)

    def _trained(self, score: Matrix, values: Matrix) -> Ridge:
        """Return a model of the unseen items' mean value less that of the seen ones."""
        tasks = len(self._seen)
        seen = values[:, self._seen].sum(2)
        whole = values.reshape(len(values), tasks, self._size).sum(2)
        targets = (whole - seen) / self._unseen - seen / self._seen.shape[1]
        return Ridge(score[:, self._seen.reshape(-1)], targets)

    def estimate(self, score: Vector, correct: Vector) -> tuple[Vector, Vector]:
        """Return the estimated means of score and correctness of each task, in [0, 1].

        Of the row's items, float64 [tasks * size], those that are not seen count for nothing.
        """
        new = score[self._seen.reshape(-1)][None]
        found = []
        for model, values in ((self._mean, score), (self._accuracy, correct)):
            seen = values[self._seen].sum(1)
            others = seen / self._seen.shape[1] + model.predict(new)[0]
            found.append(np.clip((seen + self._unseen * others) / self._size, 0.0, 1.0))
        return found[0], found[1]
