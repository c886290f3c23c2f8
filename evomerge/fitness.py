"""Scores to fitness: normalization by the experts, aggregation over tasks, confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from evomerge.errors import CandidateError
from evomerge.proxy_tasks import ItemScores

Vector = npt.NDArray[np.float64]
TaskScores = Mapping[str, ItemScores]
_RESAMPLES = 2000


@dataclass(frozen=True)
class Fitness:
    """How the normalized scores of the tasks make one number, higher being better.

    `reference` holds, for each task, the best expert's mean score on the same items. The fitness is
    (1 − worst) · mean + worst · least of `score / reference`.
    """

    reference: Mapping[str, float]
    worst: float = 0.0

    def of(self, means: Mapping[str, float]) -> float:
        """Return the fitness of the tasks' mean scores.

        Raises CandidateError where a score is not a finite number, which fails the trial.
        """
        ratios = self.normalized(means)
        value = (1 - self.worst) * float(np.mean(ratios)) + self.worst * min(ratios)
        if not np.isfinite(value):
            raise CandidateError("the merged model gives scores that are not finite numbers")
        return value

    def normalized(self, means: Mapping[str, float]) -> tuple[float, ...]:
        """Return each task's mean score over the best expert's: the study's several objectives."""
        return tuple(means[task] / reference for task, reference in self.reference.items())


def mean_scores(scores: TaskScores) -> dict[str, float]:
    """Return each task's mean smooth score."""
    return {task: float(items.score.mean()) for task, items in scores.items()}


def mean_correct(scores: TaskScores) -> dict[str, float]:
    """Return each task's accuracy."""
    return {task: float(items.correct.mean()) for task, items in scores.items()}


def best_of(experts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return, for each task, the best expert's score, by which others are normalized.

    Where every expert scores 0 there is nothing to normalize by, and the task counts as it is.
    """
    best = {task: max(expert[task] for expert in experts) for task in experts[0]}
    return {task: value if value > 0 else 1.0 for task, value in best.items()}


@dataclass(frozen=True)
class Interval:
    """A normalized accuracy, or a difference of two, with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def to_mapping(self) -> dict[str, float]:
        """Return it as a report has it."""
        return asdict(self)


def normalized_accuracy(scores: TaskScores, experts: Sequence[TaskScores]) -> Interval:
    """Return the mean over tasks of accuracy over the best expert's accuracy, with its interval.

    The interval is a percentile bootstrap over items (Efron 1979), paired: a resample draws the
    same items for the candidate and for the best expert of the task. It is 0 wide for that expert
    alone.
    """
    values, resampled = _resampled([scores], experts, seed=0)
    return _interval(values[0], resampled[0])


def gain(scores: TaskScores, other: TaskScores, experts: Sequence[TaskScores]) -> Interval:
    """Return how much higher the normalized accuracy of `scores` is than the other's.

    The interval is paired as that of `normalized_accuracy`: a resample draws the same items for
    both candidates and the best expert.
    """
    values, resampled = _resampled([scores, other], experts, seed=0)
    return _interval(values[0] - values[1], resampled[0] - resampled[1])


def optimism(
    scores: TaskScores,
    experts: Sequence[TaskScores],
    fresh: TaskScores,
    fresh_experts: Sequence[TaskScores],
) -> Interval:
    """Return how much higher a normalized accuracy is than the same candidate's on fresh items.

    Above 0 it is what choosing by the first items has flattered the candidate by. The two sets of
    items are resampled apart.
    """
    seen, first = _resampled([scores], experts, seed=0)
    true, second = _resampled([fresh], fresh_experts, seed=1)
    return _interval(seen[0] - true[0], first[0] - second[0])


def _resampled(
    rows: Sequence[TaskScores], experts: Sequence[TaskScores], seed: int
) -> tuple[Vector, Vector]:
    """Return the normalized accuracies of k rows, [k], and of resamples of items, [k, resamples].

    A resample draws the same items for all rows and for the best expert of the task.
    """
    generator = np.random.default_rng(seed)
    values, resampled = np.zeros(len(rows)), np.zeros((len(rows), _RESAMPLES))
    for task in rows[0]:
        best = max((expert[task].correct for expert in experts), key=np.mean)
        # Items on which all are alike are interchangeable: draw how many come of each kind.
        columns = [row[task].correct for row in rows]
        kinds, counts = np.unique([*columns, best], axis=1, return_counts=True)
        size = len(best)
        sums = kinds @ generator.multinomial(size, counts / size, size=_RESAMPLES).T
        if best.any():
            values += [column.sum() / best.sum() for column in columns]
            resampled += sums[:-1] / np.where(sums[-1] > 0, sums[-1], 1)  # may miss every success
        else:  # nothing to normalize by, as in best_of
            values += [column.mean() for column in columns]
            resampled += sums[:-1] / size
    return values / len(rows[0]), resampled / len(rows[0])


def _interval(value: float, resampled: Vector) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))
