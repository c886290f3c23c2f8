"""Scores along the lines between a study's models, and the barriers on them.

A barrier is how far the score on the way between two models falls below what lies straight between
their own scores: Frankle et al. 2020 (arXiv:1912.05671, §2) of errors, Neyshabur et al. 2020
(arXiv:2008.11687) of models tuned from one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from evomerge.checkpoints import ModelRef
from evomerge.errors import Place, RecipeError
from evomerge.fitness import Fitness, best_of, mean_correct, mean_scores
from evomerge.merger import Progress
from evomerge.recipe import Recipe, parse_recipe
from evomerge.study.scorer import Scorer

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # from the base to an expert
HALF = (0.0, 0.5, 1.0)  # between two experts
_PLACE = Place("a line between two models", RecipeError)


@dataclass(frozen=True)
class Line:
    """Scores on the straight line from one model to another, by their names.

    `fitness` and each task's `scores` and `accuracies` are at `steps`, 0 being the first model.
    """

    ends: tuple[str, str]
    steps: tuple[float, ...]
    fitness: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    accuracies: Mapping[str, tuple[float, ...]]

    @property
    def barrier(self) -> float:
        """The largest fall of the fitness below the straight line between its ends; ≥ 0."""
        return barrier(self.steps, self.fitness)

    @property
    def relative_barrier(self) -> float:
        """The barrier over the mean fitness of the ends; 0 where that is 0."""
        mean = (self.fitness[0] + self.fitness[-1]) / 2
        return self.barrier / mean if mean else 0.0

    def as_data(self) -> dict[str, Any]:
        """Return the line as plain data."""
        return {
            "ends": list(self.ends),
            "steps": list(self.steps),
            "fitness": list(self.fitness),
            "barrier": self.barrier,
            "tasks": {
                task: {"score": list(scores), "accuracy": list(self.accuracies[task])}
                for task, scores in self.scores.items()
            },
        }


def barrier(steps: Sequence[float], values: Sequence[float]) -> float:
    """Return max (1 − t)·v(0) + t·v(1) − v(t), by Frankle et al. for errors; higher is better."""
    first, last = values[0], values[-1]
    return max((1 - t) * first + t * last - value for t, value in zip(steps, values, strict=True))


def score_lines(
    scorer: Scorer, refs: Mapping[str, ModelRef], worst: float, progress: Progress
) -> list[Line]:
    """Score the lines from the base to every expert, and from each expert to each other.

    `refs` are the models by name, the base first. Accuracies are read from margins; nothing is
    generated. Raises CandidateError where a merge cannot be scored.
    """
    base, *experts = refs
    scorer.fit_temperatures()
    ways: list[tuple[tuple[str, str], tuple[float, ...]]]
    ways = [((base, one), STEPS) for one in experts]
    ways += [(pair, HALF) for pair in combinations(experts, 2)]
    points = dict.fromkeys(_weights(pair, t) for pair, steps in ways for t in steps)
    found = {}
    for done, point in enumerate(points):
        progress("scoring", done, len(points))
        found[point] = scorer.recipe(_recipe(refs, dict(point)), "search", exact=False)
    progress("scoring", len(points), len(points))
    means = {point: mean_scores(one) for point, one in found.items()}
    fitness = Fitness(best_of([means[_weights((base, one), 1.0)] for one in experts]), worst)
    lines = []
    for pair, steps in ways:
        on_it = [_weights(pair, t) for t in steps]
        correct = [mean_correct(found[point]) for point in on_it]
        lines.append(
            Line(
                pair,
                steps,
                tuple(fitness.of(means[point]) for point in on_it),
                {task: tuple(means[point][task] for point in on_it) for task in correct[0]},
                {task: tuple(one[task] for one in correct) for task in correct[0]},
            )
        )
    return lines


def _weights(pair: tuple[str, str], t: float) -> tuple[tuple[str, float], ...]:
    """Return the models' weights at a point of a line, those of weight 0 left out."""
    return tuple((name, w) for name, w in zip(pair, (1 - t, t), strict=True) if w)


def _recipe(refs: Mapping[str, ModelRef], weights: Mapping[str, float]) -> Recipe:
    models = [
        {"model": str(refs[name]), "parameters": {"weight": weight}}
        for name, weight in weights.items()
    ]
    return parse_recipe(
        {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}, _PLACE
    )
