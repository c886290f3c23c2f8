import math
from pathlib import Path

import pytest

from evomerge.errors import CandidateError
from tests.tiny_models import merge_vectors


def multislerp(
    folder: Path,
    *models: tuple[list[float], float],
    base: list[float] | None = None,
    **shared: object,
) -> list[float]:
    named = {
        name: (vector, {"weight": weight})
        for name, (vector, weight) in zip("abc", models, strict=False)
    }
    return merge_vectors(folder, "multislerp", named, base, **shared)


def test_the_middle_of_three_directions_at_the_mean_length(tmp_path: Path) -> None:
    found = multislerp(
        tmp_path, ([3.0, 0.0, 0.0], 1.0), ([0.0, 2.0, 0.0], 1.0), ([0.0, 0.0, 7.0], 1.0)
    )
    assert found == pytest.approx([4 / math.sqrt(3)] * 3, rel=1e-6)


def test_weights_steer_direction_and_length(tmp_path: Path) -> None:
    # direction 3·(1, 0) + 4·(0, 1), length (3·1 + 4·8)/7 = 5
    found = multislerp(tmp_path, ([1.0, 0.0], 3.0), ([0.0, 8.0], 4.0))
    assert found == pytest.approx([3.0, 4.0], rel=1e-6)
    found = multislerp(tmp_path, ([1.0, 0.0], 3.0), ([0.0, 8.0], 4.0), normalize_weights=False)
    assert found == pytest.approx([21.0, 28.0], rel=1e-6)


def test_with_a_base_task_vectors_are_merged(tmp_path: Path) -> None:
    found = multislerp(tmp_path, ([11.0, 2.0], 3.0), ([10.0, 10.0], 4.0), base=[10.0, 2.0])
    assert found == pytest.approx([13.0, 6.0], rel=1e-6)


def test_one_model_stays_as_it_is(tmp_path: Path) -> None:
    assert multislerp(tmp_path, ([1.5, -2.0], 0.3), normalize_weights=False) == [1.5, -2.0]


def test_two_opposite_ones_are_interpolated_in_a_straight_line(tmp_path: Path) -> None:
    found = multislerp(tmp_path, ([1.0, 2.0], 1.0), ([-3.0, -6.0], 1.0))
    assert found == pytest.approx([-1.0, -2.0], rel=1e-6)


def test_three_that_cancel_are_refused(tmp_path: Path) -> None:
    models = [([1.0, 2.0], 1.0), ([-1.0, -2.0], 0.5), ([-2.0, -4.0], 0.5)]
    with pytest.raises(CandidateError, match="models that cancel for x; choose other weights"):
        multislerp(tmp_path, *models)


def test_three_experts_equal_to_the_base_leave_it(tmp_path: Path) -> None:
    same = ([1.0, 2.0], 1.0)
    assert multislerp(tmp_path, same, same, same, base=[1.0, 2.0]) == [1.0, 2.0]


def test_weights_that_sum_to_zero_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="sum is not zero, got a sum of 0 for x"):
        multislerp(tmp_path, ([1.0, 0.0], 1.0), ([0.0, 8.0], -1.0))
