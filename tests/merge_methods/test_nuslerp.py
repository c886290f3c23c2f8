import math
from pathlib import Path

import pytest
import torch

from evomerge.errors import RecipeError
from tests.tiny_models import merge_vectors, merged, parsed, recipe_of, write_checkpoint


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


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("row_wise", [False, True])
def test_an_angle_per_row_or_column(tmp_path: Path, row_wise: bool, based: bool) -> None:
    """Every line turns as it would alone; `nuslerp_row_wise` is mergekit's name for columns."""
    generator = torch.Generator().manual_seed(0)
    names = ("base", "a", "b")
    every = {name: torch.randn(4, 3, generator=generator) for name in names}
    for name, matrix in every.items():
        write_checkpoint(tmp_path / name, {"x": matrix}, {"model_type": "matrix"})
    own = {"a": {"weight": 0.2}, "b": {"weight": 0.7}}
    fields = {"base_model": "base"} if based else {}
    shared = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
    data = recipe_of(tmp_path, "nuslerp", models=own, parameters=shared, **fields)
    found = merged(data)["x"]
    lines = [matrix.T if row_wise else matrix for matrix in every.values()]
    for line, (base, one, other) in zip(
        found.T if row_wise else found, zip(*lines, strict=True), strict=True
    ):
        alone = nuslerp(
            tmp_path / "alone", (one.tolist(), 0.2), (other.tolist(), 0.7),
            base.tolist() if based else None,
        )  # fmt: skip
        assert line.tolist() == pytest.approx(alone, rel=1e-6, abs=1e-7)


def test_some_tensors_by_row_and_others_whole(tmp_path: Path) -> None:
    for name, matrix in (("a", [[1.0, 0.0], [0.0, 5.0]]), ("b", [[0.0, 1.0], [0.0, 7.0]])):
        tensors = {key: torch.tensor(matrix) for key in ("rows", "columns", "whole")}
        write_checkpoint(tmp_path / name, tensors, {"model_type": "matrix"})
    shared = {
        "nuslerp_flatten": [{"filter": "whole", "value": True}, {"value": False}],
        "nuslerp_row_wise": [{"filter": "columns", "value": True}, {"value": False}],
    }
    data = recipe_of(tmp_path, "nuslerp", models={name: {"weight": 1} for name in "ab"},
                     parameters=shared)  # fmt: skip
    found = merged(data)
    half = math.sqrt(0.5)
    assert torch.allclose(found["rows"], torch.tensor([[half, half], [0.0, 6.0]]))
    first = 0.5 * half * math.sqrt(2)  # a's first column turns to zeros, at a right angle
    assert found["columns"][0, 0] == pytest.approx(first * math.sqrt(2))
    assert not torch.equal(found["whole"], found["rows"])


def test_exactly_two_models(tmp_path: Path) -> None:
    models = {name: {"weight": 1} for name in "abc"}
    with pytest.raises(RecipeError, match="at most 2"):
        parsed(recipe_of(tmp_path, "nuslerp", models=models))
    assert parsed(recipe_of(tmp_path, "nuslerp", base_model="a", models=models)).base
