"""Compares the fronts that searches find on a synthetic landscape of three tasks.

    python benchmarks/fronts.py [--seeds 5]

benchmarks/README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core is faster than more threads

import numpy as np
from landscapes import LINE, Array, Weights, space_problem
from rich.console import Console
from rich.table import Table

from evomerge import optimizers, pareto
from evomerge.errors import InputError, Place
from evomerge.optimizers import Evaluated, OptimizerSettings

PLACE = Place("the benchmark", InputError)
BUDGETS = (100, 300, 1000)
LIMITS = {"gp": 100, "tpe": 300}  # evaluations; models of many trials take minutes
# Searches by name: the optimizer, and whether it is told each task for itself.
SEARCHES = {
    "gp, three objectives": ("gp", True),
    "tpe, three objectives": ("tpe", True),
    "nsga2, three objectives": ("nsga2", True),
    "nsga2, the mean": ("nsga2", False),
    "gp, the mean": ("gp", False),
    "cma_es, the mean": ("cma_es", False),
    "random_search": ("random_search", False),
}


def hypervolume(points: Array) -> float:
    """Return the volume that points dominate above the origin, in any number of dimensions.

    The last objective is cut into slices; in each the volume is that of the points that reach it.
    """
    points = np.maximum(points, 0)
    if points.shape[1] == 1:
        return float(points.max(initial=0.0))
    points = points[pareto.front(points)]
    volume, below = 0.0, 0.0
    for level in np.unique(points[:, -1]):
        reach = points[points[:, -1] >= level, :-1]
        volume += (level - below) * hypervolume(reach)
        below = level
    return float(volume)


def objectives_of(landscape: Weights, name: str, several: bool, seed: int, most: int) -> Array:
    """Search a landscape; returns the tasks' true scores of all trials, in order."""
    problem = space_problem(landscape, "task_arithmetic")
    points = [problem.measure(values, draw) for draw, values in enumerate(problem.starts)]
    start = [
        Evaluated(values, point.measured, point.tasks if several else ())
        for values, point in zip(problem.starts, points, strict=True)
    ]
    found = optimizers.create(name, OptimizerSettings(), problem.genome, seed, start, PLACE)
    for slot in range(most - len(start) - problem.spent):
        values = found.ask(slot)
        points.append(problem.measure(values, len(points)))
        found.tell(slot, values, points[-1].measured, points[-1].tasks if several else ())
    return np.array([point.tasks for point in points])


def reached(seed: int, name: str, several: bool, budgets: Sequence[int]) -> list[float]:
    """Return the hypervolume that a search reaches with each budget; 1 is that of the line."""
    landscape = Weights(seed, experts=3, layers=8, tasks=3)
    line = np.array([landscape.scores(np.full(landscape.shape, one)) for one in LINE])
    scores = objectives_of(landscape, name, several, seed, max(budgets))
    spent = max(budgets) - len(scores)
    return [
        hypervolume(np.vstack([line, scores[: budget - spent]])) / hypervolume(line)
        for budget in budgets
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    table = Table(title="Hypervolume, three tasks (the line is 1)")
    for column in ("search", *(f"{budget} evaluations" for budget in BUDGETS)):
        table.add_column(column)
    for title, (name, several) in SEARCHES.items():
        budgets = [one for one in BUDGETS if one <= LIMITS.get(name, one)]
        found = [reached(seed, name, several, budgets) for seed in range(options.seeds)]
        cells = [f"{one:.2f}" for one in np.mean(found, axis=0)]
        table.add_row(title, *cells, *["–"] * (len(BUDGETS) - len(cells)))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
