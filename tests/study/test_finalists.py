"""Which candidates are scored again: best trials, the front, the average of the best."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from evomerge.expressions import Hole
from evomerge.study.finalists import average, best_trials, candidates, front_trials
from evomerge.study.rows import TrialRecord

HOLES = (
    Hole("x", "float", 0.0, 2.0, 1.0),
    Hole("y", "float", 0.01, 1.0, 0.1, log=True),
    Hole("n", "int", 0, 10, 5, step=1.0),
    Hole("c", "categorical", "a", "c", "a", choices=("a", "b", "c")),
)
POINTS: list[Mapping[str, Any]] = [
    {"x": 0.2, "y": 0.01, "n": 1, "c": "b"},
    {"x": 0.4, "y": 1.0, "n": 2, "c": "c"},
    {"x": 1.2, "y": 0.1, "n": 6, "c": "c"},
]


def trial(number: int, fitness: float | None, values: Mapping[str, Any] | None = None) -> Any:
    state = "failed" if fitness is None else "complete"
    return TrialRecord(100 + number, number, number, state, values or {"x": number}, fitness)


def test_average_by_hand() -> None:
    """Of a logarithm the geometric mean, of a grid its nearest value, of a choice the majority."""
    found = average(HOLES, POINTS)
    assert found == {"x": pytest.approx(0.6), "y": pytest.approx(0.1), "n": 3, "c": "c"}
    assert type(found["n"]) is int
    assert average(HOLES, POINTS[:2])["c"] == "b"  # the first of equals


def test_only_the_branch_of_most_is_averaged() -> None:
    either = Hole("either", "categorical", "one", "two", "one", choices=("one", "two"))
    names = ("one", "two", "two")
    points = [{"either": name, **one} for name, one in zip(names, POINTS, strict=True)]
    found = average((either, *HOLES), points)
    assert found["either"] == "two"
    assert found["x"] == pytest.approx(0.8)


def test_the_front_is_of_trials_that_succeeded_each_point_once() -> None:
    trials = [trial(0, 1.0), trial(1, None), trial(2, 0.5), trial(3, 0.9), trial(4, 1.0)]
    objectives = {0: (1.0, 3.0), 2: (1.0, 2.0), 3: (3.0, 1.0), 4: (1.0, 3.0)}
    assert [one.number for one in front_trials(trials, objectives)] == [0, 3]
    assert front_trials(trials, {}) == []
    assert front_trials([trial(0, None)], {0: (1.0, 3.0)}) == []


def test_of_a_long_front_the_ends_and_the_least_crowded_stay() -> None:
    at = [0.0, 0.1, 0.2, 0.5, 1.0]  # crowding: ends, 0.2 + 0.2, 0.4 + 0.4, 0.8 + 0.8
    trials = [trial(number, 1.0) for number in range(5)]
    objectives = {number: (one, 1 - one) for number, one in enumerate(at)}
    assert [one.number for one in front_trials(trials, objectives, 4)] == [0, 2, 3, 4]
    assert [one.number for one in front_trials(trials, objectives, 3)] == [0, 3, 4]


def test_candidates_are_the_best_the_recommended_the_front_and_an_average() -> None:
    draw = np.random.default_rng(0)
    trials = [
        trial(number, float(number), {"x": float(draw.random()), "y": 0.5, "n": 4, "c": "a"})
        for number in range(12)
    ]
    found = candidates(trials, HOLES, 3, [trials[2], trials[11]])
    assert [one.trial for one in found] == [11, 10, 9, 8, 7, 3, 2, None]
    assert found[0].name == "trial 11"
    assert found[-1].name == "average of the best 5"
    mean = np.mean([one.values["x"] for one in trials[7:]])
    assert found[-1].values == {"x": pytest.approx(mean), "y": pytest.approx(0.5), "n": 4, "c": "a"}


def test_the_best_of_the_starting_slots_is_a_candidate() -> None:
    """So that the winner is not below a baseline that the space contains, on the select split."""
    trials = [trial(0, None), *(trial(number, float(number)) for number in range(1, 12))]

    def beside_the_best(recommended: int | None, starting: list[int]) -> list[int | None]:
        return [one.trial for one in candidates(trials, (), recommended, [], starting)][5:]

    assert beside_the_best(None, [0, 1, 2, 3]) == [3]
    assert beside_the_best(3, [0, 1, 2, 3]) == [3]
    assert beside_the_best(2, [0, 1]) == [2, 1]
    assert beside_the_best(None, [0]) == beside_the_best(None, [11]) == []


def test_no_average_of_one_or_where_it_is_a_trial() -> None:
    alone = [trial(0, 1.0, POINTS[0]), trial(1, None, POINTS[1])]
    assert [one.trial for one in candidates(alone, HOLES, None, [])] == [0]
    ends = [{"n": 0}, {"n": 4}, {"n": 2}]
    three = [trial(number, 1.0, values) for number, values in enumerate(ends)]
    assert [one.trial for one in candidates(three, HOLES[2:3], None, [])] == [0, 1, 2]


def test_trials_of_another_stage_are_not_averaged() -> None:
    trials = [trial(0, 3.0, {"z": 1.0}), trial(1, 2.0, POINTS[0]), trial(2, 1.0, POINTS[1])]
    found = candidates(trials, HOLES, None, [])
    assert found[-1].name == "average of the best 2"
    assert found[-1].values["x"] == pytest.approx(0.3)


def test_the_best_trials_are_different_ones() -> None:
    trials = [trial(0, 1.0), trial(1, 2.0), trial(2, 2.0, {"x": 1}), trial(3, None)]
    assert [one.number for one in best_trials(trials)] == [1, 0]
