"""TIES by hand: trim, elect, merge."""

from pathlib import Path

import pytest
import torch

from tests.tiny_models import merge_vectors, merged, recipe_of, write_checkpoint

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


def two_tensors(folder: Path, **shared: object) -> dict[str, list[float]]:
    """Merge a model of two tensors, of which the first changed more; half of 8 entries is kept."""
    model = {"x": torch.tensor([9.0, -8.0, 7.0, 1.0]), "y": torch.tensor([6.0, -5.0, 4.0, 3.0])}
    write_checkpoint(folder / "a", model)
    write_checkpoint(folder / "base", {name: one * 0 for name, one in model.items()})
    data = recipe_of(folder, "ties", base_model="base",
                     models={"a": {"weight": 1, "density": 0.5}}, parameters=shared)  # fmt: skip
    return {name: one.tolist() for name, one in merged(data).items()}


def test_trimming_the_whole_model_ranks_all_tensors_together(tmp_path: Path) -> None:
    found = two_tensors(tmp_path, trim_whole_model=True)
    assert found == {"x": [9.0, -8.0, 7.0, 0.0], "y": [6.0, 0.0, 0.0, 0.0]}
    each = two_tensors(tmp_path)
    assert each == {"x": [9.0, -8.0, 0.0, 0.0], "y": [6.0, -5.0, 0.0, 0.0]}
    one = two_tensors(tmp_path, trim_whole_model=[{"filter": "y", "value": True}, {"value": False}])
    assert one == {"x": each["x"], "y": found["y"]}


def test_trimming_the_whole_model_rescales_by_its_norm(tmp_path: Path) -> None:
    found = two_tensors(tmp_path, trim_whole_model=True, rescale=True)
    assert found["x"][0] == pytest.approx(9 * 43 / 30)
    assert found["y"][0] == pytest.approx(6 * 43 / 30)


def test_signs_elected_before_weighing(tmp_path: Path) -> None:
    models = {
        "a": ([4.0, 1.0, 2.0, 0.0], {"weight": 1}),
        "b": ([-2.0, -3.0, 2.0, 0.0], {"weight": 5}),
    }
    found = merge_vectors(tmp_path, "ties", models, BASE, elect_unweighted=True, normalize=False)
    assert found == [4.0, -15.0, 12.0, 0.0]
    found = merge_vectors(tmp_path, "ties", models, BASE, elect_unweighted=True)
    assert found == [4.0, -3.0, 2.0, 0.0]
    found = merge_vectors(tmp_path, "ties", models, BASE, normalize=False)
    assert found == [-10.0, -15.0, 12.0, 0.0]


def test_negative_weights_after_the_election(tmp_path: Path) -> None:
    models = {
        "a": ([4.0, 1.0, 2.0, 0.0], {"weight": -1}),
        "b": ([-2.0, -3.0, 2.0, 0.0], {"weight": 1}),
    }
    found = merge_vectors(tmp_path, "ties", models, BASE, elect_unweighted=True)
    assert found == [4.0, -3.0, 0.0, 0.0]  # (−4)/(−1); the third divides 0 by 1 for 0
