"""benchmarks/fronts.py measures what it says: hypervolumes by hand and by counting points."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def fronts() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("fronts")


def test_hypervolume_by_hand(fronts: ModuleType) -> None:
    assert fronts.hypervolume(np.array([[2.0], [3.0]])) == 3.0
    assert fronts.hypervolume(np.array([[3.0, 1.0], [1.0, 2.0], [0.5, 0.5]])) == 4.0
    # Two boxes of volume 4 that share one of volume 1, and a third within the first.
    boxes = np.array([[4.0, 1.0, 1.0], [1.0, 1.0, 4.0], [3.0, 1.0, 0.5]])
    assert fronts.hypervolume(boxes) == 7.0
    assert fronts.hypervolume(np.array([[-1.0, 2.0, 3.0]])) == 0.0


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_against_counting_cells(fronts: ModuleType, objectives: int) -> None:
    draw = np.random.default_rng(objectives)
    points = draw.integers(0, 6, size=(12, objectives)).astype(float)
    cells = np.stack(np.meshgrid(*[np.arange(6)] * objectives), -1).reshape(-1, objectives) + 1
    covered = (cells[:, None] <= points[None]).all(axis=2).any(axis=1)
    assert fronts.hypervolume(points) == covered.sum()
