from pathlib import Path

import numpy as np
import pytest

from tests.reference_masks import dare_mask
from tests.tiny_models import merge_vectors

N = 5000
BASE = [0.0] * N
ONES = [1.0] * N


def one(folder: Path, density: float, **shared: object) -> list[float]:
    models = {"a": (ONES, {"weight": 1, "density": density})}
    return merge_vectors(folder, "dare_ties", models, BASE, **shared)


def test_what_is_kept_is_rescaled_to_the_l1_norm(tmp_path: Path) -> None:
    found = np.array(one(tmp_path, 0.3))
    kept = found != 0
    assert np.array_equal(kept, dare_mask(0, 0, "x", N, 0.3))
    assert abs(kept.mean() - 0.3) < 4 * (0.3 * 0.7 / N) ** 0.5
    assert found.sum() == pytest.approx(N, rel=1e-6)
    assert np.unique(found[kept]) == pytest.approx([N / kept.sum()], rel=1e-6)


def test_without_rescale_entries_stay_as_they_are(tmp_path: Path) -> None:
    assert set(one(tmp_path, 0.3, rescale=False)) == {0.0, 1.0}


def test_masks_are_nested_as_the_density_grows(tmp_path: Path) -> None:
    kept = [np.array(one(tmp_path, density)) != 0 for density in (0.1, 0.4, 0.9)]
    assert not (kept[0] & ~kept[1]).any()
    assert not (kept[1] & ~kept[2]).any()
    assert np.array(one(tmp_path, 1.0)).all()


def test_seeds_draw_other_masks(tmp_path: Path) -> None:
    found = [np.array(one(tmp_path, 0.5, seed=seed)) != 0 for seed in (0, 1, 2**32 - 1)]
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert abs((found[first] == found[second]).mean() - 0.5) < 4 * 0.5 / N**0.5


def test_models_draw_other_masks_and_signs_are_elected(tmp_path: Path) -> None:
    models = {
        "a": (ONES, {"weight": 1, "density": 0.5}),
        "b": ([-2.0] * N, {"weight": 1, "density": 0.5}),
    }
    found = np.array(merge_vectors(tmp_path, "dare_ties", models, BASE, rescale=False))
    masks = [dare_mask(0, position, "x", N, 0.5) for position in (0, 1)]
    expected = np.where(masks[1], -2.0, np.where(masks[0], 1.0, 0.0))
    assert np.array_equal(found, expected)


def test_rescaling_by_density_comes_before_the_election(tmp_path: Path) -> None:
    """Where both are kept, 1/0.25 outvotes 2/0.8."""
    models = {
        "a": (ONES, {"weight": 1, "density": 0.25}),
        "b": ([-2.0] * N, {"weight": 1, "density": 0.8}),
    }
    found = np.array(merge_vectors(tmp_path, "dare_ties", models, BASE, rescale_by_density=True))
    masks = [dare_mask(0, position, "x", N, d) for position, d in ((0, 0.25), (1, 0.8))]
    expected = np.where(masks[0], 4.0, np.where(masks[1], -2.5, 0.0))
    assert np.array_equal(found, expected)
