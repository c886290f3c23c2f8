import math
from pathlib import Path

import pytest
import torch

from evomerge.errors import RecipeError
from tests.tiny_models import merge_vectors, merged, parsed, recipe_of, write_checkpoint


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


def test_one_ratio_per_row(tmp_path: Path) -> None:
    """Rows at 60 degrees, parallel, at a right angle, opposite; a vector is one row."""
    high = math.sqrt(3)
    rows = [
        ([0.0, 0.0], [2.0, 0.0], [1.0, high], [2 / 3 * 1.5, 2 / 3 * high / 2]),
        ([1.0, 1.0], [3.0, 1.0], [2.0, 1.0], [2.5, 1.0]),
        ([1.0, 1.0], [3.0, 1.0], [1.0, 0.0], [1.0, 1.0]),
        ([1.0, 1.0], [3.0, 1.0], [0.0, 1.0], [1.0, 1.0]),
    ]
    for name, place in (("base", 0), ("a", 1), ("b", 2)):
        matrix = torch.tensor([row[place] for row in rows])
        tensors = {"x": matrix, "row": matrix[0].clone(), "cube": matrix.reshape(2, 2, 2).clone()}
        write_checkpoint(tmp_path / name, tensors, {"model_type": "matrix"})
    found = merged(
        recipe_of(tmp_path, "model_stock", base_model="base", models={"a": {}, "b": {}},
                  parameters={"filter_wise": True})
    )  # fmt: skip
    wanted = torch.tensor([row[3] for row in rows])
    assert torch.allclose(found["x"], wanted, rtol=1e-6, atol=1e-7)
    assert torch.equal(found["row"], found["x"][0])
    assert torch.equal(found["cube"].view(4, 2), found["x"])


def test_two_models_are_needed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at least 2 model"):
        parsed(recipe_of(tmp_path, "model_stock", base_model="base", models={"a": {}}))
