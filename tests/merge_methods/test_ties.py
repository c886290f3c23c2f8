"""TIES by hand: trim, elect, merge."""

from pathlib import Path

import pytest

from tests.tiny_models import merge_vectors

BASE = [0.0, 0.0, 0.0, 0.0]


def test_the_worked_example(tmp_path: Path) -> None:
    """Two task vectors, half kept; the elected signs are +, −, and + for an exact zero sum."""
    models = {
        "a": ([4.0, -3.0, 1.0, 0.5], {"weight": 1, "density": 0.5}),  # kept: 4, −3
        "b": ([-1.0, -5.0, 2.0, 0.0], {"weight": 1, "density": 0.5}),  # kept: −5, 2
    }
    assert merge_vectors(tmp_path, "ties", models, BASE) == [4.0, -4.0, 2.0, 0.0]
    summed = merge_vectors(tmp_path, "ties", models, BASE, normalize=False)
    assert summed == [4.0, -8.0, 2.0, 0.0]


def test_a_zero_sum_elects_plus(tmp_path: Path) -> None:
    models = {
        "a": ([2.0, -2.0, 0.0, 1.0], {"weight": 1}),
        "b": ([-2.0, 2.0, 0.0, 1.0], {"weight": 1}),
    }
    assert merge_vectors(tmp_path, "ties", models, BASE) == [2.0, 2.0, 0.0, 1.0]


def test_the_divisor_counts_only_agreeing_weights(tmp_path: Path) -> None:
    models = {
        "a": ([1.0, 1.0, 1.0, 1.0], {"weight": 2}),
        "b": ([1.0, -1.0, 3.0, 0.0], {"weight": 1}),
    }
    found = merge_vectors(tmp_path, "ties", models, BASE)
    assert found == pytest.approx([1.0, 1.0, 5 / 3, 1.0], rel=1e-6)


def test_negative_weights_turn_the_vote_and_count_negatively(tmp_path: Path) -> None:
    models = {
        "a": ([1.0, 2.0, 1.0, 1.0], {"weight": -1}),  # D: −1, −2, −1, −1
        "b": ([-3.0, 1.0, 1.0, 0.0], {"weight": 1}),  # D: −3, 1, 1, 0
    }
    # d is 0 in the first column (−1 + 1), so 1; −1 in the second; in the third a sum of 0 elects +.
    assert merge_vectors(tmp_path, "ties", models, BASE) == [-4.0, 2.0, 1.0, 1.0]


def test_rescale_restores_the_l1_norm(tmp_path: Path) -> None:
    models = {"a": ([4.0, -3.0, 2.0, 1.0], {"weight": 1, "density": 0.5})}
    found = merge_vectors(tmp_path, "ties", models, BASE, rescale=True)
    assert found == pytest.approx([40 / 7, -30 / 7, 0, 0], rel=1e-6)


def test_rescale_counts_k_entries_where_more_are_equal(tmp_path: Path) -> None:
    """mergekit keeps k of the equal ones, so that the others are scaled the same here and there."""
    models = {"a": ([4.0, -1.0, 1.0, 1.0], {"weight": 1, "density": 0.5})}
    found = merge_vectors(tmp_path, "ties", models, BASE, rescale=True)
    assert found == pytest.approx([4 * 7 / 5, -7 / 5, 7 / 5, 7 / 5], rel=1e-6)


def test_lambda_scales_what_is_added(tmp_path: Path) -> None:
    models = {"a": ([1.5, 3.0, 1.0, 2.0], {"weight": 1})}
    found = merge_vectors(tmp_path, "ties", models, [1.0] * 4, **{"lambda": 0.5})
    assert found == [1.25, 2.0, 1.0, 1.5]


def test_at_least_one_entry_is_kept(tmp_path: Path) -> None:
    models = {"a": ([1.0, -3.0, 2.0, 1.0], {"weight": 1, "density": 0.01})}
    assert merge_vectors(tmp_path, "ties", models, BASE) == [0.0, -3.0, 0.0, 0.0]
