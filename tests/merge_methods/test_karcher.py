import math
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import merge_vectors


def karcher(folder: Path, *models: list[float], **shared: object) -> list[float]:
    named = {name: (model, {}) for name, model in zip("abc", models, strict=False)}
    return merge_vectors(folder, "karcher", named, **shared)


def on_the_circle(degrees: float, length: float = 1.0) -> list[float]:
    angle = math.radians(degrees)
    return [length * math.cos(angle), length * math.sin(angle)]


def test_on_a_circle_it_is_the_mean_of_the_angles_at_the_mean_length(tmp_path: Path) -> None:
    models = [on_the_circle(0, 2), on_the_circle(10, 3), on_the_circle(80, 7)]
    assert karcher(tmp_path, *models) == pytest.approx(on_the_circle(30, 4), rel=1e-6)


def test_no_step_leaves_the_mean_of_the_directions(tmp_path: Path) -> None:
    models = [on_the_circle(0), on_the_circle(10), on_the_circle(80)]
    mean = np.mean(models, axis=0)
    found = karcher(tmp_path, *models, max_iter=0)
    assert found == pytest.approx(list(mean / np.linalg.norm(mean)), rel=1e-6)
    assert karcher(tmp_path, *models, tol=0.5) == pytest.approx(found, rel=1e-6)
    assert found != pytest.approx(on_the_circle(30), rel=1e-4)


def test_the_sum_of_logarithms_at_the_mean_is_zero(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    models = generator.normal(size=(3, 6)) + 1
    found = np.array(karcher(tmp_path, *models.tolist(), max_iter=100))
    mean = found / np.linalg.norm(found)
    total = np.zeros(6)
    for model in models / np.linalg.norm(models, axis=1, keepdims=True):
        theta = math.acos(model @ mean)
        total += theta / math.sin(theta) * (model - math.cos(theta) * mean)
    assert np.linalg.norm(total) < 3e-5
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(models, axis=1).mean(), rel=1e-6)


def test_zeros_have_no_direction_but_shorten(tmp_path: Path) -> None:
    assert karcher(tmp_path, [0.0, 0.0], [3.0, 4.0]) == pytest.approx([1.5, 2.0], rel=1e-6)
    assert karcher(tmp_path, [0.0, 0.0], [0.0, 0.0]) == [0.0, 0.0]


def test_opposite_ones_fall_to_the_first(tmp_path: Path) -> None:
    assert karcher(tmp_path, [1.0, 0.0], [-3.0, 0.0]) == pytest.approx([2.0, 0.0], rel=1e-6)


def test_one_model_stays_as_it_is(tmp_path: Path) -> None:
    assert karcher(tmp_path, [1.5, -1e-9]) == [1.5, np.float32(-1e-9)]
