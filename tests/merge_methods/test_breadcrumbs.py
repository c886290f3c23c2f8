from pathlib import Path

import pytest

from tests.tiny_models import merge_vectors

BASE = [1.0] * 10
MODEL = [1.0 + (-1) ** i * (i + 1) for i in range(10)]  # magnitudes 1 to 10


def crumbs(folder: Path, density: float, gamma: float, **shared: object) -> list[float]:
    models = {"a": (MODEL, {"weight": 1, "density": density, "gamma": gamma})}
    found = merge_vectors(folder, "breadcrumbs", models, BASE, **shared)
    return [value - 1.0 for value in found]


@pytest.mark.parametrize(
    ("density", "gamma", "magnitudes"),
    [
        (0.5, 0.2, [4, 5, 6, 7, 8]),  # int(0.2·10) at the top go, 5 stay, 3 at the bottom go
        (0.5, 0.0, [6, 7, 8, 9, 10]),
        (0.5, 0.01, [6, 7, 8, 9, 10]),  # int(0.01·10) is none
        (0.5, 0.5, [1, 2, 3, 4, 5]),
        (0.5, 0.9, [1, 2, 3, 4, 5]),  # the density is kept before gamma is
        (0.123, 0.3, [7]),  # off the grid of densities
        (0.05, 0.1, []),  # int(0.05·10) is none
        (0.05, 0.0, []),
        (1.0, 0.5, list(range(1, 11))),
    ],
)
def test_both_ends_are_dropped(
    tmp_path: Path, density: float, gamma: float, magnitudes: list[int]
) -> None:
    found = crumbs(tmp_path, density, gamma)
    assert found == [delta - 1.0 if abs(delta - 1.0) in magnitudes else 0.0 for delta in MODEL]


def test_rescale_restores_the_l1_norm(tmp_path: Path) -> None:
    found = crumbs(tmp_path, 0.5, 0.2, rescale=True)
    assert found[3] == pytest.approx(-4 * 55 / 30, rel=1e-6)
    assert crumbs(tmp_path, 0.05, 0.0, rescale=True) == [0.0] * 10


def test_entries_equal_to_a_bound_all_stay(tmp_path: Path) -> None:
    models = {"a": ([1.0, -2.0, 2.0, 2.0, 3.0], {"weight": 1, "density": 0.4, "gamma": 0.2})}
    found = merge_vectors(tmp_path, "breadcrumbs", models, [0.0] * 5)
    assert found == [0.0, -2.0, 2.0, 2.0, 0.0]


def test_opposite_signs_add_up_and_are_normalized(tmp_path: Path) -> None:
    models = {
        "a": ([4.0, 0.0], {"weight": 1}),
        "b": ([-2.0, 6.0], {"weight": 3}),
    }
    found = merge_vectors(tmp_path, "breadcrumbs", models, [0.0, 0.0])
    assert found == [-2.0, 18.0]
    found = merge_vectors(tmp_path, "breadcrumbs", models, [0.0, 0.0], normalize=True)
    assert found == [-0.5, 4.5]
