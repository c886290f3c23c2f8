"""DELLA: which entries are kept, by rank; the linear variant shares all but the election."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.errors import CandidateError
from tests.reference_masks import della_mask
from tests.tiny_models import merge_vectors, merged, recipe_of, write_checkpoint

N = 20_000
RISING = [float(i + 1) for i in range(N)]
EQUAL = [3.0] * N


def kept(folder: Path, vector: list[float], density: float, epsilon: float) -> np.ndarray:
    models = {"a": (vector, {"weight": 1, "density": density, "epsilon": epsilon})}
    found = np.array(merge_vectors(folder, "della", models, [0.0] * N, rescale=False))
    assert set(found[found != 0]) <= set(vector)
    return found != 0


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.3, 0.29), (0.5, 0.499)])
def test_the_probability_rises_with_the_rank(
    tmp_path: Path, density: float, epsilon: float
) -> None:
    """In each tenth of the ranks to within five standard deviations."""
    found = kept(tmp_path, RISING, density, epsilon).reshape(10, -1)
    middle = (np.arange(10) + 0.5) / 10
    probability = density - epsilon + 2 * epsilon * middle
    deviation = (probability * (1 - probability) / found.shape[1]) ** 0.5
    assert (np.abs(found.mean(axis=1) - probability) <= 5 * deviation).all()


def test_equal_magnitudes_are_kept_at_the_mean_probability(tmp_path: Path) -> None:
    """Wherever they stand in the row: their ranks are random."""
    found = kept(tmp_path, EQUAL, 0.4, 0.3).reshape(10, -1).mean(axis=1)
    assert (np.abs(found - 0.4) <= 5 * (0.4 * 0.6 / (N / 10)) ** 0.5).all()


def test_masks_are_those_of_the_definition_and_nested(tmp_path: Path) -> None:
    masks = [kept(tmp_path, RISING, density, 0.1) for density in (0.2, 0.5, 0.85)]
    delta = np.float32(RISING)
    for density, mask in zip((0.2, 0.5, 0.85), masks, strict=True):
        assert np.array_equal(mask, della_mask(0, 0, "x", delta, density, 0.1))
    assert not (masks[0] & ~masks[1]).any()
    assert not (masks[1] & ~masks[2]).any()


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_what_is_kept_is_rescaled_to_the_l1_norm(tmp_path: Path, method: str) -> None:
    models = {"a": (RISING, {"weight": 2, "density": 0.3})}
    found = np.array(merge_vectors(tmp_path, method, models, [0.0] * N, normalize=True))
    assert found.sum() == pytest.approx(sum(RISING), rel=1e-6)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_density_1_keeps_all_whatever_epsilon_is(tmp_path: Path, method: str) -> None:
    models = {"a": ([1.0, -2.0, 0.0], {"weight": 0.5, "density": 1.0, "epsilon": 0.3})}
    found = merge_vectors(tmp_path, method, models, [1.0] * 3, normalize=False)
    assert found == [1.0, -0.5, 0.5]


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.1), (0.9, 0.1), (0.95, 0.15)])
def test_probabilities_outside_0_and_1_are_refused(
    tmp_path: Path, method: str, density: float, epsilon: float
) -> None:
    models = {"a": ([1.0], {"weight": 1, "density": density, "epsilon": epsilon})}
    with pytest.raises(CandidateError, match=rf"in \(0, 1\), got {density} ± {epsilon} .* for x"):
        merge_vectors(tmp_path, method, models, [0.0])


def test_signs_are_elected_or_not(tmp_path: Path) -> None:
    models = {
        "a": ([4.0, 1.0], {"weight": 1}),
        "b": ([-2.0, 6.0], {"weight": 3}),
    }
    assert merge_vectors(tmp_path, "della", models, [0.0] * 2) == [-2.0, 4.75]
    assert merge_vectors(tmp_path, "della_linear", models, [0.0] * 2) == [-2.0, 19.0]


def test_rows_are_along_the_second_dimension(tmp_path: Path) -> None:
    """As mergekit sorts them; whether or not it is the last, and where it has one entry alone."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (6, 50, 4), (1, 1200), (1200, 1), (3, 1, 400), (2, 0), (0, 2), ()]
    tensors = {f"x{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}
    write_checkpoint(tmp_path / "a", tensors)
    write_checkpoint(tmp_path / "base", {name: one * 0 for name, one in tensors.items()})
    own = {"weight": 1, "density": 0.5, "epsilon": 0.4}
    data = recipe_of(tmp_path, "della", base_model="base", models={"a": own},
                     parameters={"rescale": False, "seed": 5})  # fmt: skip
    for name, found in merged(data).items():
        mask = della_mask(5, 0, name, tensors[name].numpy(), 0.5, 0.4)
        assert np.array_equal(found.numpy() != 0, mask), name
