"""Fronts against brute force, crowding distances by hand."""

import itertools

import numpy as np
import pytest

from evomerge import pareto


def dominates(first: np.ndarray, second: np.ndarray) -> bool:
    """The definition, coordinate by coordinate."""
    better = [one > other for one, other in zip(first, second, strict=True)]
    worse = [one < other for one, other in zip(first, second, strict=True)]
    return any(better) and not any(worse)


def peeled(points: np.ndarray) -> list[int]:
    """The front of each point, by taking away the undominated ones again and again."""
    left = set(range(len(points)))
    found = [0] * len(points)
    for rank in itertools.count():
        if not left:
            return found
        now = {
            one for one in left if not any(dominates(points[other], points[one]) for other in left)
        }
        for one in now:
            found[one] = rank
        left -= now
    raise AssertionError


@pytest.mark.parametrize("objectives", [1, 2, 3, 5])
@pytest.mark.parametrize("grid", [3, 10**6])  # a coarse one has ties and equal points
def test_fronts_against_brute_force(objectives: int, grid: int) -> None:
    draw = np.random.default_rng([objectives, grid])
    for count in (1, 2, 17, 40):
        points = draw.integers(0, grid, size=(count, objectives)).astype(float)
        expected = peeled(points)
        assert pareto.ranks(points).tolist() == expected
        assert pareto.front(points) == [at for at, rank in enumerate(expected) if rank == 0]


def test_sums_that_round_alike_do_not_hide_a_domination() -> None:
    points = np.array([[1e16, 1.0], [1e16, 2.0], [1e16, 1.5]])
    assert pareto.front(points) == [1]
    assert pareto.ranks(points).tolist() == [2, 0, 1]


def test_crowding_by_hand() -> None:
    points = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 2.5], [5.0, 1.0]])
    # ranges 4 and 4: (3 − 1)/4 + (5 − 2.5)/4 and (5 − 2)/4 + (3 − 1)/4
    assert pareto.crowding(points).tolist() == [np.inf, 1.125, 1.25, np.inf]
    assert pareto.crowding(points[[2, 0, 3, 1]]).tolist() == [1.25, np.inf, np.inf, 1.125]


def test_an_objective_in_which_all_are_equal_does_not_count() -> None:
    points = np.array([[1.0, 7.0], [2.0, 7.0], [4.0, 7.0]])
    assert pareto.crowding(points).tolist() == [np.inf, 1.0, np.inf]
    assert pareto.crowding(points[:1]).tolist() == [0.0]
    assert pareto.crowding(np.full((3, 2), 7.0)).tolist() == [0.0] * 3


def test_order_is_by_front_then_by_room() -> None:
    points = np.array([[0.0, 0.0], [2.0, 3.0], [1.0, 5.0], [3.0, 2.5], [5.0, 1.0], [1.0, 1.0]])
    assert pareto.order(points) == [2, 4, 3, 1, 5, 0]


def test_nothing_has_no_front() -> None:
    nothing = pareto.as_points([])
    assert pareto.front(nothing) == []
    assert pareto.order(nothing) == []
    assert pareto.as_points([(1.0, 2.0)]).tolist() == [[1.0, 2.0]]
