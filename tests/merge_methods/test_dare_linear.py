from pathlib import Path

import numpy as np
import pytest

from tests.reference_masks import dare_mask
from tests.tiny_models import merge_vectors

N = 4000
ONES = [1.0] * N
BASE = [10.0] * N


def test_kept_entries_of_both_signs_are_added_up(tmp_path: Path) -> None:
    models = {
        "a": ([11.0] * N, {"weight": 1, "density": 0.5}),
        "b": ([8.0] * N, {"weight": 0.5, "density": 0.25}),
    }
    found = np.array(merge_vectors(tmp_path, "dare_linear", models, BASE, rescale=False))
    masks = [dare_mask(0, position, "x", N, d) for position, d in ((0, 0.5), (1, 0.25))]
    assert np.array_equal(found, 10.0 + masks[0] - masks[1])
    assert set(found) == {9.0, 10.0, 11.0}


def test_what_is_kept_is_rescaled_to_the_l1_norm(tmp_path: Path) -> None:
    models = {"a": (ONES, {"weight": 1, "density": 0.3})}
    found = np.array(merge_vectors(tmp_path, "dare_linear", models, [0.0] * N))
    assert abs((found != 0).mean() - 0.3) < 4 * (0.3 * 0.7 / N) ** 0.5
    assert found.sum() == pytest.approx(N, rel=1e-6)


def test_lambda_and_the_divisor(tmp_path: Path) -> None:
    models = {name: (ONES, {"weight": 2}) for name in "ab"}
    shared = {"normalize": True, "lambda": 0.5}
    assert set(merge_vectors(tmp_path, "dare_linear", models, [0.0] * N, **shared)) == {0.5}


def test_rescaling_by_density_is_the_papers(tmp_path: Path) -> None:
    models = {"a": (ONES, {"weight": 1, "density": 0.3})}
    shared = {"rescale_by_density": True}
    found = np.array(merge_vectors(tmp_path, "dare_linear", models, [0.0] * N, **shared))
    assert set(found) == {0.0, np.float32(1 / 0.3)}
    off = merge_vectors(tmp_path, "dare_linear", models, [0.0] * N, rescale=False, **shared)
    assert set(off) == {0.0, 1.0}
