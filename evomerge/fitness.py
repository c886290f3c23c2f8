"""Scores to fitness: normalization by the experts, aggregation over tasks, confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """A normalized accuracy with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def normalized_accuracy(scores: TaskScores, experts: Sequence[TaskScores]) -> Interval:
    """Return the mean over tasks of accuracy over the best expert's accuracy, with its interval.

    The interval is a percentile bootstrap over items (Efron 1979), paired: a resample draws the
    same items for the candidate and for the best expert of the task. It is 0 wide for that expert
    alone.
    """
    generator = np.random.default_rng(0)
    value = 0.0
    resampled = np.zeros(_RESAMPLES)
    for task, items in scores.items():
        best = max((expert[task].correct for expert in experts), key=np.mean)
        # Items on which both are alike are interchangeable: draw how many come of each kind.
        kinds, counts = np.unique([items.correct, best], axis=1, return_counts=True)
        size = len(best)
        above, below = kinds @ generator.multinomial(size, counts / size, size=_RESAMPLES).T
        if best.any():
            value += items.correct.sum() / best.sum()
            resampled += above / np.where(below > 0, below, 1)  # a resample may miss every success
        else:  # nothing to normalize by, as in best_of
            value += items.correct.mean()
            resampled += above / size
    low, high = np.percentile(resampled / len(scores), [2.5, 97.5])
    return Interval(float(value) / len(scores), float(low), float(high))
