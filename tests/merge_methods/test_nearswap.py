from pathlib import Path

import pytest

from tests.tiny_models import merge_vectors


def near(folder: Path, base: list[float], model: list[float], t: float) -> list[float]:
    return merge_vectors(folder, "nearswap", {"a": (model, {})}, base, t=t)


def test_near_entries_are_taken_and_far_ones_drawn_by_t(tmp_path: Path) -> None:
    base, model = [0.0, 0.0, 1.0, 1.0, 5.0], [0.25, -0.5, 2.0, -3.0, 5.0]
    assert near(tmp_path, base, model, 0.5) == [0.25, -0.5, 1.5, 0.5, 5.0]


def test_nothing_moves_at_0(tmp_path: Path) -> None:
    assert near(tmp_path, [0.0, 1.0], [1e-7, 2.0], 0.0) == [0.0, 1.0]


def test_distances_below_a_millionth_count_as_one(tmp_path: Path) -> None:
    found = near(tmp_path, [0.0], [1e-7], 5e-7)
    assert found == pytest.approx([0.5e-7], rel=1e-6)
