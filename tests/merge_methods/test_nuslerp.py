import math
from pathlib import Path
from typing import Any

import pytest

from evomerge.errors import RecipeError
from tests.tiny_models import merge_vectors, parsed, recipe_of


def nuslerp(
    folder: Path,
    one: tuple[list[float], float],
    other: tuple[list[float], float],
    base: list[float] | None = None,
) -> list[float]:
    models = {
        name: (vector, {"weight": weight}) for name, (vector, weight) in (("a", one), ("b", other))
    }
    return merge_vectors(folder, "nuslerp", models, base)


def test_a_third_of_a_quarter_circle(tmp_path: Path) -> None:
    found = nuslerp(tmp_path, ([1.0, 0.0], 4.0), ([0.0, 1.0], 2.0))
    assert found == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)], rel=1e-6)


def test_lengths_are_not_normalized_away(tmp_path: Path) -> None:
    found = nuslerp(tmp_path, ([2.0, 0.0], 1.0), ([0.0, 6.0], 1.0))
    assert found == pytest.approx([2 * math.sqrt(0.5), 6 * math.sqrt(0.5)], rel=1e-6)


def test_with_a_base_task_vectors_turn(tmp_path: Path) -> None:
    found = nuslerp(tmp_path, ([3.0, 5.0], 1.0), ([1.0, 11.0], 1.0), [1.0, 5.0])
    assert found == pytest.approx([1 + 2 * math.sqrt(0.5), 5 + 6 * math.sqrt(0.5)], rel=1e-6)


@pytest.mark.parametrize("other", [[2.0, 4.0], [-1.0, -2.0], [0.0, 0.0]])
def test_colinear_ones_and_zeros(tmp_path: Path, other: list[float]) -> None:
    found = nuslerp(tmp_path, ([1.0, 2.0], 3.0), (other, 1.0))
    share = math.sin(0.75 * math.pi / 2) if other == [0.0, 0.0] else 0.75
    wanted = [share * a + 0.25 * b for a, b in zip([1.0, 2.0], other, strict=True)]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_weights_that_cancel_count_as_equal(tmp_path: Path) -> None:
    found = nuslerp(tmp_path, ([1.0, 0.0], 1.0), ([0.0, 1.0], -1.0))
    assert found == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("shared", "sentence"),
    [
        ({"nuslerp_row_wise": True}, "expected nuslerp_row_wise as false, got True"),
        ({"nuslerp_flatten": False}, "expected nuslerp_flatten as true, got False"),
        ({"nuslerp_flatten": [True, False]}, "expected nuslerp_flatten as true, got False"),
    ],
)
def test_angles_per_row_are_refused(tmp_path: Path, shared: dict[str, Any], sentence: str) -> None:
    models = {"a": {"weight": 1}, "b": {"weight": 1}}
    with pytest.raises(RecipeError, match=sentence):
        parsed(recipe_of(tmp_path, "nuslerp", models=models, parameters=shared))


def test_exactly_two_models(tmp_path: Path) -> None:
    models = {name: {"weight": 1} for name in "abc"}
    with pytest.raises(RecipeError, match="at most 2"):
        parsed(recipe_of(tmp_path, "nuslerp", models=models))
    assert parsed(recipe_of(tmp_path, "nuslerp", base_model="a", models=models)).base
