"""Regression against leave-one-out loops in another form, and what it tells of related rows."""

import numpy as np
import pytest

from evomerge import estimates
from evomerge.estimates import Ridge, informative


def siblings(rows: int, items: int, seed: int) -> np.ndarray:
    """Scores of related candidates: an ability and a taste each, items of two kinds."""
    draw = np.random.default_rng(seed)
    ability = draw.normal(0, 0.5, (rows, 1)) + draw.normal(0, 0.7, (rows, 2)) @ draw.normal(
        size=(2, items)
    )
    return 1 / (
        1 + np.exp(-ability - draw.normal(0, 1, items) - draw.normal(0, 0.3, ability.shape))
    )


def solved(rows: np.ndarray, targets: np.ndarray, penalty: float, new: np.ndarray) -> float:
    """Ridge in its primal form: least squares with a constant that is not penalized."""
    design = np.vstack([rows, np.sqrt(penalty) * np.eye(rows.shape[1])])
    design = np.hstack([design, np.r_[np.ones(len(rows)), np.zeros(rows.shape[1])][:, None]])
    answer = np.linalg.lstsq(design, np.r_[targets, np.zeros(rows.shape[1])], rcond=None)[0]
    return float(new @ answer[:-1] + answer[-1])


@pytest.mark.parametrize(("rows", "items"), [(3, 5), (12, 8), (9, 15)])
def test_the_closed_form_is_that_of_loops(rows: int, items: int) -> None:
    table = siblings(rows + 1, items + 20, rows)
    known, new = table[:-1, :items] - table[:-1, :items].mean(0), table[-1, :items]
    new = new - table[:-1, :items].mean(0)
    targets = np.stack([table[:-1, items:].mean(1), table[:-1, -1]], 1)
    tried = []
    for penalty in estimates._PENALTIES * (known**2).sum() / rows:
        left = [
            [
                target[one]
                - solved(np.delete(known, one, 0), np.delete(target, one), penalty, known[one])
                for target in targets.T
            ]
            for one in range(rows)
        ]
        tried.append((float(np.sum(np.square(left))), penalty, left))
    _, penalty, left = min(tried, key=lambda one: one[0])
    found = Ridge(table[:-1, :items], targets)
    assert found.left_out == pytest.approx(np.array(left), abs=1e-9)
    expected = [solved(known, target, penalty, new) for target in targets.T]
    assert found.predict(table[-1:, :items])[0] == pytest.approx(expected, abs=1e-9)


def test_what_is_seen_of_a_related_table_tells_what_is_not() -> None:
    table = siblings(60, 200, 0)
    known, new = table[:30], table[30:]
    seen = np.random.default_rng(0).permutation(200)[:25]
    rest = np.setdiff1d(np.arange(200), seen)
    targets = known[:, rest].mean(1) - known[:, seen].mean(1)
    others = (
        new[:, seen].mean(1) + Ridge(known[:, seen], targets[:, None]).predict(new[:, seen])[:, 0]
    )
    truth, means = new.mean(1), (new[:, seen].sum(1) + 175 * others) / 200
    missed = np.sqrt(np.mean((means - truth) ** 2))
    plain = np.sqrt(np.mean((new[:, seen].mean(1) - truth) ** 2))
    difference = new[:, seen].mean(1) - known[:, seen].mean() + known.mean()
    assert missed < 0.5 * np.sqrt(np.mean((difference - truth) ** 2)) < 0.5 * plain


def test_rows_that_are_all_alike_tell_their_mean() -> None:
    table = np.tile(siblings(1, 10, 0), (6, 1))
    targets = np.arange(6.0)[:, None]
    found = Ridge(table, targets)
    assert found.predict(siblings(2, 10, 1)) == pytest.approx(np.full((2, 1), 2.5), abs=1e-9)
    assert found.left_out[:, 0] == pytest.approx((targets[:, 0] - 2.5) * 6 / 5)


def test_informative_items_come_first_each_once() -> None:
    draw = np.random.default_rng(0)
    mean = draw.normal(0, 1, (30, 1))
    table = np.hstack([draw.normal(0, 0.3, (30, 20)), 5 * mean, draw.normal(0, 0.3, (30, 20))])
    found = informative(table, seed=1)
    assert found[0] == 20
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(41))


def test_items_that_answer_alike_are_ordered_by_the_seed() -> None:
    table = np.ones((4, 30))
    assert not np.array_equal(informative(table, seed=0), informative(table, seed=1))
