"""Early stopping of candidates: items in rungs, what the others would score being estimated.

A candidate is put a few items first, those that tell most of the mean, then twice as many, and so
on, in the manner of successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943). After each
rung its fitness on all items is estimated from candidates that have answered them all, by kriging;
one that the estimate puts below the best of those stops, and the estimate is its score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evomerge import pareto
from evomerge.estimates import Indices, Kriging, Matrix, Vector, informative
from evomerge.fitness import Fitness, TaskScores, mean_correct, mean_scores
from evomerge.proxy_tasks import ItemScores

_GROWTH = 2  # from one rung to the next
_LAST_SHARE = 4  # the last rung before all items has at most one in so many of them
_ROWS = 60  # of the candidates that have answered all items, the best so many count, ...
_FEWEST = 8  # ... and with fewer, baselines among them, nobody stops
_FIRST_CHOICE = 32  # slots after which the items are chosen again; from then on at each doubling

Places = Mapping[str, Sequence[int]]  # of items in their split, by task


class Racing(BaseModel):
    """How candidates are stopped early."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    first: int = Field(
        default=24, ge=2, description="items of each task that every candidate is put"
    )
    sigmas: float = Field(
        default=0.0,
        ge=0,
        description="standard errors by which an estimate may be below the best and still go on",
    )


@dataclass(frozen=True)
class Raced:
    """What came of a candidate; of one that was stopped early, estimates.

    `scores` has not-a-numbers for the items that it was not put; `means` and `accuracies` are of
    all items, by task. `answered` is how many items it was put, none where its weights had been
    scored before.
    """

    scores: TaskScores
    means: Mapping[str, float]
    accuracies: Mapping[str, float]
    answered: int
    stopped: bool


@dataclass(frozen=True)
class _Row:
    """A candidate that has answered all items: its scores end to end, its objectives."""

    slot: int
    weights: str
    score: Vector
    correct: Vector
    objectives: tuple[float, ...]


@dataclass(frozen=True)
class _Objectives:
    """What is maximized: the tasks' scores each on its own, or the fitness."""

    fitness: Fitness
    several: bool

    def __call__(self, means: Mapping[str, float]) -> tuple[float, ...]:
        """Return them for the tasks' means; none where these are not finite."""
        if not all(np.isfinite(one) for one in means.values()):
            return ()
        return self.fitness.normalized(means) if self.several else (self.fitness.of(means),)


class Racer:
    """Races the candidates of a study, each against what the slots below its horizon have shown.

    `sizes` are the items of each task, `known` the scores of the baselines on all of them, each
    with a key of its weights: weights that are known are not scored again. What a race does depends
    on these, the seed and the rows noted below its horizon alone.
    """

    def __init__(
        self,
        settings: Racing | None,
        sizes: Mapping[str, int],
        fitness: Fitness,
        known: Sequence[tuple[str, TaskScores]],
        several: bool = False,
        seed: int = 0,
    ) -> None:
        self._settings = settings
        self._sizes = sizes
        self._objectives = _Objectives(fitness, several)
        self._seed = seed
        self._known = [self._row(-1, *one) for one in known]
        self._rows: list[_Row] = []
        self._by_weights = {row.weights: row for row in self._known}
        self._race: tuple[int, Race] | None = None
        self._order: tuple[int, dict[str, list[int]]] | None = None

    def note(self, slot: int, weights: str, scores: TaskScores) -> None:
        """Remember the scores of a slot; those of a candidate that was stopped are of no use."""
        if all(np.isfinite(items.score).all() for items in scores.values()):
            self._rows.append(self._row(slot, weights, scores))
            self._by_weights.setdefault(weights, self._rows[-1])

    def known(self, horizon: int, weights: str) -> Raced | None:
        """Return what weights score that a baseline or a slot below the horizon has scored."""
        same = self._by_weights.get(weights)
        if same is None or same.slot >= horizon:
            return None
        return _whole(self._scores(same), 0)

    def race(self, horizon: int) -> Race:
        """Return what candidates of a horizon run; it can be sent to another process."""
        if self._race is None or self._race[0] != horizon:
            self._race = horizon, Race(self._sizes, self._prepared(horizon))
        return self._race[1]

    def _row(self, slot: int, weights: str, scores: TaskScores) -> _Row:
        score, correct = _flat(scores, self._sizes)
        return _Row(slot, weights, score, correct, self._objectives(mean_scores(scores)))

    def _scores(self, row: _Row) -> TaskScores:
        ends = np.cumsum(list(self._sizes.values()))[:-1]
        parts = zip(np.split(row.score, ends), np.split(row.correct, ends), strict=True)
        return {task: ItemScores(*part) for task, part in zip(self._sizes, parts, strict=True)}

    def _prepared(self, horizon: int) -> _Rivals | None:
        """Return what candidates of a horizon run against; None where they answer all items."""
        size = min(self._sizes.values())
        if self._settings is None or len(set(self._sizes.values())) > 1:
            return None
        rungs = []
        rung = self._settings.first
        while rung * _LAST_SHARE <= size:
            rungs.append(rung)
            rung *= _GROWTH
        rivals = [row for row in self._rows if row.slot < horizon]
        if not rungs or not rivals or len(rivals) + len(self._known) < _FEWEST:
            return None
        return _Rivals(
            (*rungs, size),
            self._chosen(horizon, size),
            self._trained(rivals),
            [row.objectives for row in rivals],
            self._settings.sigmas,
            self._objectives,
        )

    def _chosen(self, horizon: int, size: int) -> Mapping[str, list[int]]:
        """Return the order of each task's items, as it was chosen last."""
        at = min(horizon, _FIRST_CHOICE)
        while at * 2 <= horizon:
            at *= 2
        if self._order is None or self._order[0] != at:
            rows = self._trained([row for row in self._rows if row.slot < at])
            table = np.array([row.score for row in rows])
            starts = dict(zip(self._sizes, range(0, table.shape[1], size), strict=True))
            found = {
                task: informative(table[:, start : start + size], self._seed).tolist()
                for task, start in starts.items()
            }
            self._order = at, found
        return self._order[1]

    def _trained(self, rivals: Sequence[_Row]) -> list[_Row]:
        """Return the rows that estimates are made from: the baselines and the best rivals."""
        best = sorted(rivals, key=lambda row: (-sum(row.objectives), row.slot))[:_ROWS]
        return [*self._known, *best]


def _whole(scores: TaskScores, answered: int) -> Raced:
    return Raced(scores, mean_scores(scores), mean_correct(scores), answered, stopped=False)


def _flat(scores: TaskScores, tasks: Iterable[str]) -> tuple[Vector, Vector]:
    """Return the scores and the correctness of the tasks' items end to end."""
    parts = [scores[task] for task in tasks]
    return (
        np.concatenate([one.score for one in parts]),
        np.concatenate([one.correct for one in parts]),
    )


class Race:
    """What a candidate runs: items of each task in rungs, until it is stopped."""

    def __init__(self, sizes: Mapping[str, int], rivals: _Rivals | None) -> None:
        self._sizes = sizes
        self._rivals = rivals

    def run(self, score: Callable[[Places | None], TaskScores]) -> Raced:
        """Put items to a candidate until it is stopped or there are no more.

        `score` puts it the items at some places, or all of them (None); it may raise
        CandidateError.
        """
        count, rivals = sum(self._sizes.values()), self._rivals
        if rivals is None:
            return _whole(score(None), count)
        found = {
            task: ItemScores(np.full(size, np.nan), np.full(size, np.nan))
            for task, size in self._sizes.items()
        }
        before = 0
        for rung in rivals.rungs:
            places = {task: order[before:rung] for task, order in rivals.order.items()}
            for task, items in score(places).items():
                found[task].score[places[task]] = items.score
                found[task].correct[places[task]] = items.correct
            before = rung
            if rung == rivals.rungs[-1]:
                break
            estimate = rivals.estimate(rung, found)
            if rivals.hopeless(estimate):
                return Raced(
                    found,
                    estimate.means,
                    estimate.accuracies,
                    rung * len(self._sizes),
                    stopped=True,
                )
        return _whole(found, count)


@dataclass(frozen=True)
class _Estimate:
    """Estimated means and accuracies of the tasks, objectives and their standard errors."""

    means: Mapping[str, float]
    accuracies: Mapping[str, float]
    objectives: Vector
    errors: Vector


class _Rivals:
    """What candidates of one horizon are put, and what they are held against."""

    def __init__(
        self,
        rungs: tuple[int, ...],
        order: Mapping[str, list[int]],
        rows: Sequence[_Row],
        rivals: Sequence[tuple[float, ...]],
        sigmas: float,
        objectives: _Objectives,
    ) -> None:
        self.rungs = rungs
        self.order = order
        self._size = rungs[-1]
        self._score = np.array([row.score for row in rows])
        self._correct = np.array([row.correct for row in rows])
        points = pareto.as_points(rivals)
        self._best = points[pareto.front(points)]
        self._sigmas = sigmas
        self._objectives = objectives
        self._models: dict[int, _Model] = {}

    def estimate(self, rung: int, scores: TaskScores) -> _Estimate:
        """Estimate what a candidate that has answered the items of a rung would score on all."""
        if rung not in self._models:
            seen = np.array([order[:rung] for order in self.order.values()])
            self._models[rung] = _Model(self._score, self._correct, seen, self._size)
        model = self._models[rung]
        means, accuracies = (
            self._by_task(one) for one in model.estimate(*_flat(scores, self.order))
        )
        off = [
            np.subtract(
                self._objectives(self._by_task(one)), self._objectives(self._by_task(actual))
            )
            for one, actual in zip(model.left_out, model.means, strict=True)
        ]
        errors = np.sqrt(np.mean(np.square(off), axis=0))
        return _Estimate(means, accuracies, np.array(self._objectives(means)), errors)

    def _by_task(self, values: Vector) -> dict[str, float]:
        return dict(zip(self.order, values.tolist(), strict=True))

    def hopeless(self, found: _Estimate) -> bool:
        """Return whether some rival is better in every objective, by enough."""
        reach = found.objectives + self._sigmas * found.errors
        return bool((self._best > reach).all(axis=1).any())


class _Model:
    """Estimates the tasks' means over all items from those that are seen, int64 [tasks, rung]."""

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

    def _trained(self, score: Matrix, values: Matrix) -> Kriging:
        """Return a model of the unseen items' mean value less that of the seen ones."""
        tasks = len(self._seen)
        seen = values[:, self._seen].sum(2)
        whole = values.reshape(len(values), tasks, self._size).sum(2)
        targets = (whole - seen) / self._unseen - seen / self._seen.shape[1]
        return Kriging(score[:, self._seen.reshape(-1)], targets)

    def estimate(self, score: Vector, correct: Vector) -> tuple[Vector, Vector]:
        """Return the estimated means of score and correctness of each task, in [0, 1]."""
        new = score[self._seen.reshape(-1)][None]
        found = []
        for model, values in ((self._mean, score), (self._accuracy, correct)):
            seen = values[self._seen].sum(1)
            others = seen / self._seen.shape[1] + model.predict(new)[0]
            found.append(np.clip((seen + self._unseen * others) / self._size, 0.0, 1.0))
        return found[0], found[1]
