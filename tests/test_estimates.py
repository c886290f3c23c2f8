"""Estimates of a row's mean against leave-one-out loops, sampling theory and known answers."""

import numpy as np
import pytest

from evomerge import estimates
from evomerge.estimates import anchors, ridge, ridges, shares


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


def by_loops(table: np.ndarray, seen: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """The mean and the error of leaving out, every row left out in a loop, in the primal form."""
    unseen = [item for item in range(table.shape[1]) if item not in seen]
    rows, target = table[:, seen], table[:, unseen].mean(1) - table[:, seen].mean(1)
    rows, new = rows - rows.mean(0), values - rows.mean(0)
    tried = []
    for penalty in estimates._PENALTIES * (rows**2).sum() / len(rows):
        left = [
            target[one]
            - solved(np.delete(rows, one, 0), np.delete(target, one), penalty, rows[one])
            for one in range(len(rows))
        ]
        tried.append((float(np.mean(np.square(left))), penalty, left))
    _, penalty, left = min(tried, key=lambda one: one[0])

    def expected(rows: np.ndarray, new: np.ndarray) -> float:
        """The variance of kriging by its system with a Lagrange multiplier, over σ²."""
        size = len(rows)
        system = np.ones((size + 1, size + 1))
        system[:size, :size] = rows @ rows.T + penalty * np.eye(size)
        system[size, size] = 0
        right = np.r_[rows @ new, 1]
        return float(new @ new + penalty - right @ np.linalg.solve(system, right))

    variance = np.mean(
        [
            one**2 / expected(np.delete(rows, index, 0), rows[index])
            for index, one in enumerate(left)
        ]
    )
    share = len(unseen) / table.shape[1]
    found = solved(rows, target, penalty, new)
    mean = (values.sum() + len(unseen) * (values.mean() + found)) / table.shape[1]
    return mean, variance * expected(rows, new) * share**2


@pytest.mark.parametrize(("rows", "items", "count"), [(5, 20, 3), (12, 30, 8), (9, 40, 15)])
def test_the_closed_form_is_that_of_loops(rows: int, items: int, count: int) -> None:
    table = siblings(rows + 1, items, rows)
    seen = np.random.default_rng(1).permutation(items)[:count]
    values = table[-1, seen]
    mean, squared = by_loops(table[:-1], seen, values)
    own = values - table[:-1, seen].mean(0)
    sampling = own.var(ddof=1) / count * (1 - count / items)
    found = ridge(table[:-1], seen, values)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.error == pytest.approx(np.sqrt((rows * squared + 2 * sampling) / (rows + 2)))


def test_what_is_seen_of_a_related_table_tells_what_is_not() -> None:
    table = siblings(60, 200, 0)
    known, new = table[:30], table[30:]
    seen = np.random.default_rng(0).permutation(200)[:25]
    means, errors = ridges(known, seen, new[:, seen])
    truth = new.mean(1)
    missed = np.sqrt(np.mean((means - truth) ** 2))
    plain = np.sqrt(np.mean((new[:, seen].mean(1) - truth) ** 2))
    difference = new[:, seen].mean(1) - known[:, seen].mean() + known.mean()
    assert missed < 0.5 * np.sqrt(np.mean((difference - truth) ** 2)) < 0.5 * plain
    assert 0.6 < missed / np.sqrt(np.mean(errors**2)) < 1.5


def test_rows_at_once_are_the_rows_alone() -> None:
    table = siblings(12, 30, 3)
    seen = np.array([4, 29, 0, 11])
    means, errors = ridges(table[:8], seen, table[8:, seen])
    for row, mean, error in zip(table[8:], means, errors, strict=True):
        alone = ridge(table[:8], seen, row[seen])
        assert (alone.mean, alone.error) == pytest.approx((mean, error), rel=1e-9)


def test_all_seen_leaves_no_error() -> None:
    table = siblings(6, 9, 0)
    found = ridge(table[:5], np.arange(9), table[5])
    assert found.mean == pytest.approx(table[5].mean(), rel=1e-12)
    assert found.error == 0


def test_without_a_table_it_is_sampling() -> None:
    values = np.array([0.2, 0.4, 0.9])
    found = ridge(np.empty((0, 12)), np.array([0, 5, 7]), values)
    assert found.mean == pytest.approx(0.5)
    assert found.error == pytest.approx(np.sqrt(0.13 / 3 * (1 - 3 / 12)))


def test_few_rows_leave_the_difference_estimate() -> None:
    table = np.array([[0.0, 0.5, 1.0, 0.5], [0.2, 0.5, 0.8, 0.7]])  # means 0.1 0.5 0.9 0.6
    found = ridge(table, np.array([0, 3]), np.array([0.3, 0.7]))  # 0.2 and 0.1 above
    assert found.mean == pytest.approx(0.525 + 0.15)
    assert found.error == pytest.approx(np.sqrt(0.005 / 2 * (1 - 2 / 4)))


def test_nothing_seen_is_the_table_s_mean_and_one_item_says_little() -> None:
    table = siblings(20, 10, 5)
    nothing = ridge(table, np.array([], np.int64), np.array([]))
    assert nothing.mean == pytest.approx(table.mean())
    assert nothing.error > table.mean(1).std()
    assert ridge(table[:0], np.array([3]), np.array([1.0])).error == pytest.approx(
        0.5 * np.sqrt(0.9)
    )


def test_a_row_unlike_the_table_has_a_larger_error() -> None:
    table = siblings(20, 60, 2)
    seen = np.arange(20)
    like = ridge(table[1:], seen, table[0, seen])
    unlike = ridge(table[1:], seen, np.where(seen % 2 == 0, 1.0, 0.0))
    assert unlike.error > 2 * like.error


def test_rows_that_are_all_alike_do_not_make_an_estimate_certain() -> None:
    table = np.tile(siblings(1, 40, 0), (15, 1))
    values = siblings(1, 40, 9)[0, :10]
    found = ridge(table, np.arange(10), values)
    sampling = np.sqrt((values - table[0, :10]).var(ddof=1) / 10 * (1 - 10 / 40))
    assert found.error == pytest.approx(sampling * np.sqrt(2 / 17))


def test_anchors_are_distinct_and_every_prefix_is_that_of_fewer() -> None:
    table = siblings(15, 50, 4)
    found = anchors(table, 12, seed=3)
    assert found.dtype == np.int64
    assert len(set(found.tolist())) == 12
    assert np.array_equal(anchors(table, 5, seed=3), found[:5])
    assert np.array_equal(np.sort(anchors(table, 80, seed=3)), np.arange(50))


def test_anchors_take_one_item_of_each_group_the_largest_first() -> None:
    draw = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2], [20, 12, 5])
    table = np.array([[0.0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]])[:, kinds]
    table = table + draw.normal(0, 1e-3, table.shape)
    found = anchors(table, 3, seed=0)
    assert sorted(kinds[found]) == [0, 1, 2]
    assert shares(table, found)[np.argsort(kinds[found])] == pytest.approx(
        np.array([20, 12, 5]) / 37
    )


def test_anchors_come_near_to_the_best_of_all_sets() -> None:
    table = siblings(6, 14, 8)
    distances = ((table.T[:, None] - table.T[None]) ** 2).sum(2)
    sets = [(a, b, c) for a in range(14) for b in range(a) for c in range(b)]
    best = min(distances[:, list(one)].min(1).sum() for one in sets)
    assert distances[:, anchors(table, 3, seed=0)].min(1).sum() < 1.1 * best


def test_items_that_answer_alike_are_ordered_by_the_seed() -> None:
    table = np.ones((4, 30))
    assert not np.array_equal(anchors(table, 9, seed=0), anchors(table, 9, seed=1))
    assert shares(table, anchors(table, 9, seed=0)).sum() == pytest.approx(1)
