from pathlib import Path

import pytest

from tests.tiny_models import merge_vectors

A = [3.0, 1.0, -2.0, 0.0]
B = [1.0, 1.0, 4.0, -2.0]


def sce(folder: Path, topk: float, *models: list[float]) -> list[float]:
    named = {name: (model, {}) for name, model in zip("abc", models, strict=False)}
    return merge_vectors(folder, "sce", named, [0.0] * len(models[0]), select_topk=topk)


def test_energies_weigh_what_agrees(tmp_path: Path) -> None:
    # mean squares 14/4 and 22/4: weights 14/36 and 22/36; in the third entry b's sign wins
    found = sce(tmp_path, 1.0, A, B)
    assert found == pytest.approx([(14 * 3 + 22) / 36, 1.0, 4.0, -2.0], rel=1e-6)


def test_the_largest_variances_are_selected(tmp_path: Path) -> None:
    # variances 1, 0, 9, 1: int(0.34·3) = 1 of those that are not zero
    assert sce(tmp_path, 0.34, A, B) == pytest.approx([0.0, 0.0, 4.0, 0.0])
    assert sce(tmp_path, 0.3, A, B) == [0.0] * 4
    assert sce(tmp_path, 0.0, A, B) == [0.0] * 4


def test_variances_equal_to_the_last_all_stay(tmp_path: Path) -> None:
    # int(0.7·3) = 2 of the variances 9, 1, 1; mean squares 13/4 and 21/4
    found = sce(tmp_path, 0.7, A, B)
    assert found == pytest.approx([(13 * 3 + 21) / 34, 0.0, 4.0, -2.0], rel=1e-6)


def test_faint_task_vectors_weigh_the_same(tmp_path: Path) -> None:
    found = sce(tmp_path, 1.0, [1e-4, 0.0], [3e-4, 0.0])
    assert found == pytest.approx([2e-4, 0.0], rel=1e-6)


def test_one_expert_alone(tmp_path: Path) -> None:
    assert sce(tmp_path, 1.0, A) == A
    assert sce(tmp_path, 0.9, A) == [0.0] * 4  # one model has no variance
