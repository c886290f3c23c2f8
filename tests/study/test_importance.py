"""Which holes mattered: a regression finds those of a known function, and owns up to noise."""

from typing import Any

import numpy as np
import pytest

from evomerge.expressions import Hole
from evomerge.study.importance import importance
from evomerge.study.rows import TrialRecord


def hole(name: str, *choices: str) -> Hole:
    if choices:
        return Hole(name, "categorical", choices[0], choices[-1], choices[0], choices=choices)
    return Hole(name, "float", 0.0, 2.0, 1.0)


def trials(points: list[dict[str, Any]], fitness: Any) -> list[TrialRecord]:
    return [
        TrialRecord(n, n, n, "failed" if value is None else "complete", point, value)
        for n, (point, value) in enumerate(zip(points, fitness, strict=True))
    ]


HOLES = [hole("flat"), hole("peak"), hole("slope"), hole("kind", "a", "b", "c")]


def drawn(count: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(1)
    return [
        {**{name: draw.uniform(0, 2) for name in ("flat", "peak", "slope")},
         "kind": draw.choice(["a", "b", "c"]).item()}
        for _ in range(count)
    ]  # fmt: skip


def test_shares_follow_the_variance_of_a_known_sum() -> None:
    points = drawn(400)
    terms = {
        "peak": np.array([-((one["peak"] - 1) ** 2) for one in points]),
        "slope": np.array([0.2 * one["slope"] for one in points]),
        "kind": np.array([{"a": 0.0, "b": 0.9, "c": 0.1}[one["kind"]] for one in points]),
    }
    found = importance(HOLES, trials(points, sum(terms.values()).tolist()))
    assert found is not None
    shares = {one["name"]: one["share"] for one in found["holes"]}
    total = sum(part.var() for part in terms.values())
    for name, part in terms.items():
        assert shares[name] == pytest.approx(part.var() / total, abs=0.06)
    assert shares["flat"] < 0.01
    assert list(shares) == sorted(shares, key=lambda name: -shares[name])
    assert sum(shares.values()) == pytest.approx(1)
    assert found["explained"] > 0.9
    assert found["trials"] == 400


def test_the_error_is_that_of_leaving_each_trial_out() -> None:
    points = [{"flat": value, "peak": 0.0} for value in np.linspace(0, 2, 25)]
    ranks = np.arange(25.0)
    found = importance([hole("flat"), hole("peak")], trials(points, ranks.tolist()))
    assert found is not None
    assert found["holes"][0] == {"name": "flat", "share": pytest.approx(1.0)}
    assert found["explained"] == pytest.approx(1.0, abs=1e-3)


def test_noise_explains_nothing() -> None:
    fitness = np.random.default_rng(2).random(120).tolist()
    found = importance(HOLES, trials(drawn(120), fitness))
    assert found is not None
    assert found["explained"] < 0.1


def test_only_trials_with_the_same_holes_count() -> None:
    points = drawn(60)
    fitness: list[float | None] = [one["slope"] for one in points]
    for place in range(20):
        points[place] = {"slope": points[place]["slope"], "old": 1.0}
    fitness[20] = None
    found = importance(HOLES, trials(points, fitness))
    assert found is not None
    assert found["trials"] == 39
    assert found["holes"][0]["name"] == "slope"


@pytest.mark.parametrize("count", [0, 5, 19])
def test_of_few_trials_nothing_is_said(count: int) -> None:
    assert importance(HOLES, trials(drawn(count), range(count))) is None


def test_of_trials_that_are_all_alike_nothing_is_said() -> None:
    assert importance(HOLES, trials(drawn(30), [1.0] * 30)) is None
    assert importance(HOLES, trials([drawn(1)[0]] * 30, range(30))) is None
