"""Which candidates are scored again: best and recommended trials, the front, the best's average."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge import pareto
from evomerge.expressions import Hole, Values
from evomerge.fitness import Fitness
from evomerge.genome import Genome
from evomerge.search_space import EITHER
from evomerge.study.rows import TrialRecord
from evomerge.study.store import Store

TOP = 5  # best trials on the search split that are scored again
MOST = 20  # trials of the front that are

Objectives = Mapping[int, tuple[float, ...]]  # by trial


@dataclass(frozen=True)
class Candidate:
    """What may win: a trial, or the average of some, which is none."""

    name: str
    trial: int | None
    values: Values


def recorded_objectives(store: Store, fitness: Fitness) -> Objectives:
    """Return the objectives of every trial that succeeded, from the scores in the database."""
    return {number: fitness.normalized(means) for number, means in store.scores().items()}


def candidates(
    trials: Sequence[TrialRecord],
    holes: Sequence[Hole],
    recommended: int | None,
    front: Sequence[TrialRecord],
    starting: Collection[int] = (),
) -> list[Candidate]:
    """Return what is scored again, each trial once, the best of the search split first.

    The trial that the optimizer recommends is one: noise misleads it less than the best of many.
    The best of the `starting` slots is one too: of the baselines that the space contains, the
    winner is then never below that one on the select split.
    """
    best = best_trials(trials)
    others = [one for one in trials if one.slot == recommended]
    others += best_trials([one for one in trials if one.slot in starting], 1)
    chosen = {one.number: one for one in [*best, *others, *front]}
    found = [Candidate(f"trial {one.number}", one.number, one.values) for one in chosen.values()]
    names = {hole.name for hole in holes}
    alike = [one for one in best if one.values.keys() == names]  # others are of other stages
    if len(alike) > 1:
        values = average(holes, [one.values for one in alike])
        if all(values != one.values for one in found):
            found.append(Candidate(f"average of the best {len(alike)}", None, values))
    return found


def best_trials(trials: Sequence[TrialRecord], count: int = TOP) -> list[TrialRecord]:
    """Return the best different trials on the search split, best first."""
    done = [one for one in trials if one.fitness is not None]
    order = sorted(done, key=lambda one: (-(one.fitness or 0.0), one.slot))
    found: list[TrialRecord] = []
    for one in order:
        if len(found) == count:
            break
        if all(one.values != other.values for other in found):
            found.append(one)
    return found


def front_trials(
    trials: Sequence[TrialRecord], objectives: Objectives, most: int = MOST
) -> list[TrialRecord]:
    """Return the trials that none dominates, in their order; of many, the least crowded ones."""
    done = [one for one in trials if one.fitness is not None and one.number in objectives]
    if not done:
        return []
    points = pareto.as_points([objectives[one.number] for one in done])
    _, first = np.unique(points, axis=0, return_index=True)  # of equal ones, the first
    done = [done[index] for index in sorted(first)]
    points = points[sorted(first)]
    kept = pareto.front(points)
    if len(kept) > most:
        widest = np.argsort(-pareto.crowding(points[kept]), kind="stable")[:most]
        kept = sorted(kept[index] for index in widest)
    return [done[index] for index in kept]


def average(holes: Sequence[Hole], points: Sequence[Values]) -> dict[str, Any]:
    """Return the mean of points in [0, 1]^d; of a choice what most have, else what is first.

    Where a space has branches, only points of the branch that most have chosen count.
    """
    branches = [one.get(EITHER) for one in points]
    points = [one for one in points if one.get(EITHER) == max(branches, key=branches.count)]
    genome = Genome(tuple(holes))
    found = genome.from_unit(np.mean([genome.to_unit(one) for one in points], axis=0))
    for hole in holes:
        if hole.choices:
            given = [one[hole.name] for one in points]
            found[hole.name] = max(given, key=given.count)
    return found
