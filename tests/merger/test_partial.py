"""Models that lack tensors, and integers: what is merged, what is copied, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.errors import CheckpointError, RecipeError
from evomerge.merger import Merger
from tests.tiny_models import Tensors, merged, opened, parsed, recipe_of, write_checkpoint

ALL, SOME, BASE_ONLY = "model.all", "model.some", "model.base_only"
ALL_NAMES = (ALL, SOME, BASE_ONLY)
OWN = {"weight": 0.5, "density": 0.5}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    """The experts a and b lack one tensor and two; c lacks all that b lacks."""
    generator = torch.Generator().manual_seed(0)
    held = {"base": ALL_NAMES, "a": (ALL, SOME), "b": (ALL,), "c": (ALL,)}
    for name, tensors in held.items():
        stored = {one: torch.randn(40, 30, generator=generator) for one in tensors}
        write_checkpoint(tmp_path / name, stored)
    return tmp_path


def of(folder: Path, *names: str, method: str = "ties", **fields: Any) -> Tensors:
    models = dict.fromkeys(names, OWN)
    return merged(recipe_of(folder, method, base_model="base", models=models, **fields))


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs", "dare_linear"])
@pytest.mark.parametrize("memory", ["device", "disk"])
def test_a_tensor_is_merged_from_the_models_that_have_it(
    family: Path, method: str, memory: Any
) -> None:
    """As by a recipe of those models alone; masks are those of the position in the recipe."""
    shared: dict[str, Any] = {"normalize": True}
    data = recipe_of(family, method, base_model="base", models=dict.fromkeys("abc", OWN),
                     parameters=shared)  # fmt: skip
    found = merged(data, memory=memory)
    assert set(found) == set(ALL_NAMES)
    alone = of(family, "a", method=method, parameters=shared)
    assert torch.equal(found[SOME], alone[SOME])
    assert not torch.equal(found[ALL], alone[ALL])
    base = Merger(opened(family, "base")).input(opened(family, "base")[0].ref)
    assert torch.equal(found[BASE_ONLY], base[BASE_ONLY])
    assert not torch.equal(found[SOME], base[SOME])


def test_masks_are_by_position_in_the_recipe(family: Path) -> None:
    """Also where the models before lack the tensor, so that a mask never moves to another model."""
    last = of(family, "b", "c", "a", method="dare_linear")
    first = of(family, "a", "b", "c", method="dare_linear")
    assert not torch.equal(last[SOME], first[SOME])
    swapped = of(family, "c", "b", "a", method="dare_linear")
    assert torch.equal(last[SOME], swapped[SOME])


def test_what_only_the_base_has_is_copied_and_rounded(family: Path) -> None:
    found = of(family, "b", "c", out_dtype="bfloat16")
    base = Merger(opened(family, "base")).input(opened(family, "base")[0].ref)
    for name in (SOME, BASE_ONLY):
        assert torch.equal(found[name], base[name].bfloat16())
    for method, fields in (("slerp", {"t": 0.5}), ("nearswap", {"t": 0.5}), ("arcee_fusion", {})):
        data = recipe_of(family, method, base_model="base", models={"b": {}}, parameters=fields)
        assert torch.equal(merged(data)[BASE_ONLY], base[BASE_ONLY])


def test_thresholds_of_the_whole_model_are_those_of_what_it_has(family: Path) -> None:
    shared = {"trim_whole_model": True}
    assert torch.equal(
        of(family, "b", "c", parameters=shared)[ALL], of(family, "c", "b", parameters=shared)[ALL]
    )
    only = of(family, "b", parameters=shared)[ALL]
    base = Merger(opened(family, "base")).input(opened(family, "base")[0].ref)
    assert int((only != base[ALL]).sum()) == 600


def test_without_a_base_the_models_that_have_it_are_merged(family: Path) -> None:
    models = {"a": {"weight": 3}, "b": {"weight": 1}, "c": {"weight": 1}}
    found = merged(recipe_of(family, "linear", models=models))
    assert set(found) == {ALL, SOME}
    a = Merger(opened(family, "a")).input(opened(family, "a")[0].ref)
    assert torch.equal(found[SOME], a[SOME])


def test_a_base_that_lacks_a_tensor_is_refused(family: Path) -> None:
    merger = Merger(opened(family, "a", "b", "c"))
    data = recipe_of(family, "ties", base_model="b", models=dict.fromkeys("ac", OWN))
    with pytest.raises(RecipeError, match=f"ties cannot merge {SOME}, which the base .*/b lacks"):
        merger.materialize(parsed(data))


def test_too_few_models_that_have_a_tensor_are_refused(family: Path) -> None:
    data = recipe_of(family, "model_stock", base_model="base", models={"a": {}, "b": {}})
    with pytest.raises(RecipeError, match=f"cannot merge {SOME}, which only 1 of the models have"):
        merged(data)
    models = {"a": {"weight": 1}, "b": {"weight": 1}}
    with pytest.raises(RecipeError, match=f"nuslerp cannot merge {SOME}"):
        merged(recipe_of(family, "nuslerp", models=models))


def test_layers_must_be_the_same(family: Path) -> None:
    write_checkpoint(family / "d", {ALL: torch.ones(40, 30), "model.layers.0.x": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"got model.layers.0.x in .*/d and not in"):
        Merger(opened(family, "base", "d"))


@pytest.mark.parametrize("memory", ["device", "host", "disk"])
def test_integers_are_those_of_the_first(tmp_path: Path, memory: Any) -> None:
    numbers = {"ids": torch.arange(7), "flags": torch.tensor([True, False]), "x": torch.ones(3)}
    write_checkpoint(tmp_path / "a", numbers)
    write_checkpoint(tmp_path / "b", numbers | {"ids": torch.arange(1, 8)})
    write_checkpoint(tmp_path / "c", {"x": torch.ones(3)})
    models = {name: {"weight": 1} for name in "abc"}
    data = recipe_of(tmp_path, "linear", models=models, out_dtype="bfloat16")
    found = merged(data, memory=memory)
    assert torch.equal(found["ids"], torch.arange(7))
    assert found["flags"].dtype == torch.bool
    assert found["x"].dtype == torch.bfloat16
    based = recipe_of(tmp_path, "linear", base_model="b", models=models)
    assert torch.equal(merged(based, memory=memory)["ids"], torch.arange(1, 8))
