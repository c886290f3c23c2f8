"""Fidelity against pairs of candidates, against simulations with known spread, and in words."""

import itertools
from statistics import NormalDist

import numpy as np
import pytest

from evomerge.fidelity import (
    Fidelity,
    after,
    before,
    better_half,
    fidelity,
    stacked,
    warning,
)

ONE = {"a": 1.0}


def simulated(
    draw: np.random.Generator, rows: int, items: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers, hard and easy items, candidates of true accuracy 0.6 ± spread.

    An item is as hard for all: each is right where its own threshold is above its difficulty, and
    a tenth of all answers are thrown again, so that candidates differ by items too.
    """
    ability = 0.6 + spread * draw.standard_normal(rows)
    right = ability[:, None] > draw.random(items)
    again = draw.random((rows, items)) < 0.1
    return np.where(again, draw.random((rows, items)) < ability[:, None], right) * 1.0, ability


def test_the_noise_is_that_of_pairs() -> None:
    """2 s² is the mean over pairs of the variance of their difference, McNemar's for 0 and 1."""
    draw = np.random.default_rng(0)
    table = (draw.random((6, 40)) < 0.7) * 1.0
    variances = []
    for first, second in itertools.combinations(table, 2):
        only, other = np.mean(first > second), np.mean(second > first)
        variances.append(only + other - (only - other) ** 2)
    found = fidelity({"a": table}, ONE)
    assert found is not None
    assert found.noise**2 == pytest.approx(np.mean(variances) / 2 / (40 - 1))
    means = table.mean(1)
    assert found.spread**2 == pytest.approx(max(0, means.var(ddof=1) - found.noise**2))
    assert (found.items, found.rows) == (40, 6)


def test_tasks_are_normalized_and_averaged() -> None:
    draw = np.random.default_rng(1)
    tables = {"a": draw.random((5, 30)), "b": draw.random((5, 20))}
    reference = {"a": 0.5, "b": 0.8}
    alone = [fidelity({name: table}, reference) for name, table in tables.items()]
    both = fidelity(tables, reference)
    assert both is not None
    assert alone[0] is not None
    assert alone[1] is not None
    assert both.noise == pytest.approx(np.hypot(alone[0].noise, alone[1].noise) / 2)
    assert both.items == 20
    plain = fidelity({"a": tables["a"]}, ONE)
    assert plain is not None
    assert alone[0].noise == pytest.approx(2 * plain.noise)


def test_the_noise_and_the_spread_are_found_again() -> None:
    draw = np.random.default_rng(2)
    found, errors, spreads = [], [], []
    for _ in range(40):
        table, ability = simulated(draw, 60, 80, 0.05)
        estimate = fidelity({"a": table}, ONE)
        assert estimate is not None
        found.append((estimate.noise**2, estimate.spread**2))
        errors.append((table.mean(1) - ability - np.mean(table.mean(1) - ability)).var(ddof=1))
        spreads.append(ability.var(ddof=1))
    noise, spread = np.mean(found, axis=0)
    # Which side of an item's difficulty an ability lies on is the same draw for all candidates.
    assert noise == pytest.approx(np.mean(errors), rel=0.15)
    assert spread == pytest.approx(np.mean(spreads), rel=0.25)


@pytest.mark.parametrize(("items", "spread"), [(25, 0.04), (25, 0.1), (100, 0.04), (400, 0.1)])
def test_the_expected_correlation_is_the_measured_one(items: int, spread: float) -> None:
    draw = np.random.default_rng(3)
    expected, measured = [], []
    for _ in range(30):
        table, ability = simulated(draw, 50, items, spread)
        found = fidelity({"a": table}, ONE)
        assert found is not None
        expected.append(found.correlation)
        measured.append(np.corrcoef(table.mean(1), ability)[0, 1])
    assert np.mean(expected) == pytest.approx(np.mean(measured), abs=0.1)


def test_rows_that_lack_an_item_of_any_task_are_left_out() -> None:
    draw = np.random.default_rng(4)
    tables = {"a": draw.random((6, 10)), "b": draw.random((6, 10))}
    whole = fidelity(
        {task: table[[0, 2, 4, 5]] for task, table in tables.items()}, {"a": 1, "b": 1}
    )
    tables["a"][1, 3] = tables["b"][3, 9] = np.nan
    assert fidelity(tables, {"a": 1, "b": 1}) == whole
    tables["a"][0] = tables["b"][2, 0] = np.nan
    assert fidelity(tables, {"a": 1, "b": 1}) is None


def test_nothing_is_said_of_a_single_item() -> None:
    assert fidelity({"a": np.ones((5, 1))}, ONE) is None


def test_rows_that_are_alike_have_no_spread_and_no_noise() -> None:
    found = fidelity({"a": np.tile([0.0, 1.0, 1.0], (4, 1))}, ONE)
    assert found is not None
    assert (found.noise, found.spread, found.correlation) == (0, 0, 0)
    assert before(found) == "all baselines answer 3 items a task alike: nothing is known of noise"
    assert after(found) == "the 4 trials that answered all search items answered them alike"
    assert warning(found) is not None


def test_the_noise_of_the_worst_task_is_that_of_its_own_items() -> None:
    """By drawing other items for rows of known truth: the least of two tasks is noisier."""
    draw = np.random.default_rng(5)
    ability = np.array([[0.3, 0.9], [0.9, 0.4], [0.5, 0.8], [0.8, 0.2], [0.6, 0.9], [0.9, 0.5]])
    said, measured = [], []
    for worst in (0.0, 0.5, 1.0):
        noises, values = [], []
        for _ in range(300):
            tables = {
                task: (draw.random((6, 60)) < ability[:, [column]]) * 1.0
                for column, task in enumerate("ab")
            }
            found = fidelity(tables, {"a": 1.0, "b": 1.0}, worst)
            assert found is not None
            noises.append(found.noise**2)
            means = np.stack([table.mean(1) for table in tables.values()])
            values.append((1 - worst) * means.mean(0) + worst * means.min(0))
        said.append(np.sqrt(np.mean(noises)))
        measured.append(np.sqrt(np.mean(np.var(values, axis=0))))
    assert said == pytest.approx(measured, rel=0.07)
    assert said[2] > 1.3 * said[0]


def test_figures_by_hand() -> None:
    found = Fidelity(items=60, rows=9, noise=0.03, spread=0.04)
    assert found.correlation == pytest.approx(0.8)
    assert found.resolved == pytest.approx(
        NormalDist().inv_cdf(0.975) * np.sqrt(2) * 0.03, rel=1e-4
    )
    assert found.needed == 144  # 60 · (9/16) · 0.81/0.19 = 143.9
    again = Fidelity(144, 9, 0.03 * np.sqrt(60 / 144), 0.04)
    assert again.correlation == pytest.approx(0.9, abs=1e-3)
    assert Fidelity(60, 9, 0.03, 0.0).needed is None
    assert found.to_mapping() == {
        "items": 60,
        "rows": 9,
        "noise": 0.03,
        "spread": 0.04,
        "resolved": found.resolved,
        "correlation": found.correlation,
        "needed": 144,
    }


def test_sentences() -> None:
    good, bad = Fidelity(60, 9, 0.0112, 0.04), Fidelity(60, 9, 0.04, 0.02)
    assert before(good) == (
        "with 60 items a task, differences of fitness under 3.1 points are noise; "
        "240 would resolve 1.6"
    )
    assert after(good) == (
        "search items rank the 9 trials that answered them all with an expected "
        "correlation of 0.96: they differ by "
        "4.0 points (standard deviation), 60 items a task measure each to 1.1"
    )
    assert warning(good) is None
    assert warning(bad) == (
        "the search items cannot rank these candidates (0.45); about 1024 search items a task "
        "would rank them with 0.9"
    )
    assert warning(Fidelity(1, 9, 0.04, 0.0)) == (
        "the search items cannot rank these candidates (0.00); give more search items: "
        "no difference is seen with 1 a task"
    )


def test_the_better_half_is_that_of_the_mean_of_normalized_tasks() -> None:
    tables = {
        "a": np.array([[0.9], [0.1], [0.2], [0.3]]),
        "b": np.array([[0.0], [0.9], [0.1], [0.2]]),
    }
    found = better_half(tables, {"a": 1.0, "b": 0.5})  # 0.45, 0.95, 0.2, 0.35
    assert found["a"].tolist() == [[0.9], [0.1]]
    rows = [{"a": tables["a"][row], "b": tables["b"][row]} for row in range(4)]
    assert all(np.array_equal(stacked(rows)[task], tables[task]) for task in tables)
    assert stacked([]) == {}
