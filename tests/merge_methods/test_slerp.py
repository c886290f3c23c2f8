import math
from pathlib import Path

import pytest

from tests.tiny_models import merge_vectors


def slerp(folder: Path, base: list[float], model: list[float], t: float) -> list[float]:
    return merge_vectors(folder, "slerp", {"a": (model, {})}, base, t=t)


def test_a_quarter_circle(tmp_path: Path) -> None:
    found = slerp(tmp_path, [1.0, 0.0], [0.0, 1.0], 1 / 3)
    assert found == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)], rel=1e-6)


def test_lengths_are_not_normalized_away(tmp_path: Path) -> None:
    found = slerp(tmp_path, [2.0, 0.0], [0.0, 6.0], 0.5)
    assert found == pytest.approx([2 * math.sqrt(0.5), 6 * math.sqrt(0.5)], rel=1e-6)


def test_the_ends(tmp_path: Path) -> None:
    assert slerp(tmp_path, [1.0, 2.0], [-3.0, 1.0], 0.0) == [1.0, 2.0]
    assert slerp(tmp_path, [1.0, 2.0], [-3.0, 1.0], 1.0) == [-3.0, 1.0]


@pytest.mark.parametrize("other", [[1.0, 2.001], [-1.0, -2.0], [2.0, 4.0]])
def test_nearly_parallel_ones_are_interpolated_in_a_straight_line(
    tmp_path: Path, other: list[float]
) -> None:
    found = slerp(tmp_path, [1.0, 2.0], other, 0.25)
    wanted = [0.75 * a + 0.25 * b for a, b in zip([1.0, 2.0], other, strict=True)]
    assert found == pytest.approx(wanted, rel=1e-6)


def test_zeros_have_no_angle(tmp_path: Path) -> None:
    assert slerp(tmp_path, [0.0, 0.0], [3.0, 4.0], 0.5) == pytest.approx(
        [3 * math.sqrt(0.5), 4 * math.sqrt(0.5)], rel=1e-6
    )
    assert slerp(tmp_path, [0.0, 0.0], [0.0, 0.0], 0.5) == [0.0, 0.0]
