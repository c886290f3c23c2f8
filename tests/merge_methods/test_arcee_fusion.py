import math
from pathlib import Path

import pytest
import torch

from evomerge.errors import RecipeError
from tests.tiny_models import merge_vectors, merged, parsed, recipe_of, write_checkpoint


def fused(folder: Path, base: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    for name, tensor in (("base", base), ("a", model)):
        write_checkpoint(folder / name, {"x": tensor}, {"model_type": "matrix"})
    return merged(recipe_of(folder, "arcee_fusion", base_model="base", models={"a": {}}))["x"]


def test_one_row_is_cut_at_its_own_quantiles(tmp_path: Path) -> None:
    """Of magnitudes 1 to 9 the quartiles are 3, 5 and 7: what is below 5 + 1.5·4 goes."""
    base = [0.0] * 9
    model = [float(i + 1) for i in range(9)]
    found = merge_vectors(tmp_path, "arcee_fusion", {"a": (model, {})}, base)
    assert found == base
    model[8] = -20.0
    found = merge_vectors(tmp_path, "arcee_fusion", {"a": (model, {})}, base)
    assert found == [*base[:8], -20.0]


def test_rows_of_small_divergence_matter_less(tmp_path: Path) -> None:
    """A row that moves as a whole has the same softmax: it diverges by nothing."""
    base = torch.zeros(4, 2)
    model = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0], [0.0, 0.0]])
    # products: KL, 0, 0, 0, 0, KL, 0, 0; quartiles 0, 0, 0; all are kept
    assert torch.equal(fused(tmp_path, base, model), model)
    model = torch.tensor([[1.0, 1.5], [5.0, 5.0], [0.5, 1.0], [2.0, 0.1]])
    found = fused(tmp_path, base, model)
    assert torch.equal(found[1], base[1])
    assert found[3, 0] == 2.0


def test_the_divergence_is_exact_where_float32_is_noise(tmp_path: Path) -> None:
    """KL of two rows that differ by 1e-5 is about 1e-11, far below float32's rounding of it."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 500, generator=generator)
    delta = 1e-5 * torch.randn(6, 500, generator=generator)
    delta[0] *= 30
    found = fused(tmp_path, base, base + delta) != base
    # In float64, and without what the rows are: all of the first, few of the others.
    assert found.sum(dim=1).tolist() == [500, 1, 5, 4, 5, 4]


def test_a_model_equal_to_the_base_leaves_it(tmp_path: Path) -> None:
    base = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fused(tmp_path, base, base), base)


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 0), (2, 3, 4)])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    base, model = torch.zeros(shape), torch.ones(shape)
    assert fused(tmp_path, base, model).shape == shape


def test_one_model_beside_the_base(tmp_path: Path) -> None:
    models: dict[str, dict[str, object]] = {"a": {}, "b": {}}
    with pytest.raises(RecipeError, match="at most 1"):
        parsed(recipe_of(tmp_path, "arcee_fusion", base_model="base", models=models))
    assert math.isfinite(merge_vectors(tmp_path, "arcee_fusion", {"a": ([3.0], {})}, [1.0])[0])
