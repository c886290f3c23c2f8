"""Pareto fronts: which points no other dominates, in what order fronts come, how crowded they are.

Every coordinate is to be maximized. A point dominates another where it is nowhere worse and
somewhere better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # (points, objectives)
Indices = npt.NDArray[np.intp]


def front(points: Points) -> list[int]:
    """Return the indices of the points that none dominates, ascending; equal points all count.

    One pass in lexicographic order, in which nothing dominates what stands before it.
    """
    kept: list[int] = []
    for index in np.lexsort(-points.T[::-1]):
        others = points[kept]
        no_worse = (others >= points[index]).all(axis=1)
        if not (no_worse & (others != points[index]).any(axis=1)).any():
            kept.append(int(index))
    return sorted(kept)


def ranks(points: Points) -> Indices:
    """Return the front of each point: 0 where none dominates it, 1 where only those do, and so on.

    The fast non-dominated sort of Deb et al. 2002.
    """
    no_worse = np.all(points[:, None] >= points[None], axis=2)
    dominates = no_worse & ~no_worse.T
    above = dominates.sum(axis=0)  # how many dominate each point and have no rank yet
    found = np.full(len(points), -1, dtype=np.intp)
    rank = 0
    while (found < 0).any():
        now = (above == 0) & (found < 0)
        found[now] = rank
        above = above - dominates[now].sum(axis=0)
        rank += 1
    return found


def crowding(points: Points) -> npt.NDArray[np.float64]:
    """Return the crowding distances of a front's points: infinite at the ends of an objective.

    Elsewhere the distance between a point's two neighbours, as a share of the objective's range,
    summed over the objectives. An objective in which all are equal does not count.
    """
    found = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        spread = ordered[-1] - ordered[0] if len(ordered) else 0.0
        if spread > 0:
            found[order[1:-1]] += (ordered[2:] - ordered[:-2]) / spread
            found[order[[0, -1]]] = np.inf
    return found


def order(points: Points) -> list[int]:
    """Return all indices, best first: by front, within it the least crowded first."""
    rank = ranks(points)
    distance = np.empty(len(points))
    for one in range(int(rank.max(initial=-1)) + 1):
        distance[rank == one] = crowding(points[rank == one])
    return [int(index) for index in np.lexsort((-distance, rank))]


def as_points(rows: Sequence[Sequence[float]]) -> Points:
    """Return rows of objectives as an array, also where there are none."""
    return np.array(rows, dtype=np.float64) if rows else np.zeros((0, 1))
