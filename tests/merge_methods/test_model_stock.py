import math
from pathlib import Path

import pytest

from evomerge.errors import RecipeError
from tests.tiny_models import merge_vectors, parsed, recipe_of


def stock(folder: Path, base: list[float], *models: list[float]) -> list[float]:
    named = {name: (model, {}) for name, model in zip("abcd", models, strict=False)}
    return merge_vectors(folder, "model_stock", named, base)


def test_two_task_vectors_at_60_degrees(tmp_path: Path) -> None:
    # cos θ = 1/2, t = 2·½ / (1 + ½) = 2/3 of the way to the mean
    high = math.sqrt(3)
    found = stock(tmp_path, [1.0, 0.0], [3.0, 0.0], [2.0, high])
    assert found == pytest.approx([1 + 2 / 3 * 1.5, 2 / 3 * high / 2], rel=1e-6)


def test_three_task_vectors(tmp_path: Path) -> None:
    # cosines 0, 1/√2, 1/√2; their mean c = √2/3, t = 3c / (1 + 2c)
    cosine = math.sqrt(2) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    found = stock(tmp_path, [0.0, 0.0], [3.0, 0.0], [0.0, 6.0], [3.0, 3.0])
    assert found == pytest.approx([t * 2, t * 3], rel=1e-6)


def test_right_angles_leave_the_base(tmp_path: Path) -> None:
    assert stock(tmp_path, [1.0, 1.0], [3.0, 1.0], [1.0, 0.0]) == [1.0, 1.0]


def test_opposite_task_vectors_leave_the_base(tmp_path: Path) -> None:
    assert stock(tmp_path, [1.0, 1.0], [3.0, 1.0], [0.0, 1.0]) == [1.0, 1.0]


def test_parallel_task_vectors_give_their_mean(tmp_path: Path) -> None:
    assert stock(tmp_path, [1.0, 1.0], [3.0, 1.0], [2.0, 1.0]) == pytest.approx([2.5, 1.0])


def test_one_ratio_per_row_is_refused(tmp_path: Path) -> None:
    fields = {"base_model": "base", "models": {"a": {}, "b": {}}}
    data = recipe_of(tmp_path, "model_stock", **fields, parameters={"filter_wise": True})
    with pytest.raises(RecipeError, match="expected filter_wise as false, got True at param"):
        parsed(data)


def test_two_models_are_needed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least 2 model"):
        parsed(recipe_of(tmp_path, "model_stock", base_model="base", models={"a": {}}))
