"""Recipes as mergekit-evolve writes them are read, and give the models that mergekit makes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.errors import RecipeError
from evomerge.slices import parse_any_recipe
from tests.mergekit_oracle import MOST_RELATIVE, relative_error, run_mergekit
from tests.sliced_recipes import read, write
from tests.tiny_models import PLACE, parsed, recipe_of, write_family

pytestmark = pytest.mark.filterwarnings("ignore")  # mergekit's own
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))


def evolved(folder: Path, method: str, layers: int, smooth: bool) -> dict[str, Any]:
    """A recipe of mergekit-evolve, in float32; `layers` have numbers of their own together."""
    from mergekit.evo.genome import ModelGenome, ModelGenomeDefinition

    among = method in ("linear", "slerp")  # its slerp takes two of the models, its linear no base
    definition = ModelGenomeDefinition(
        models=[str(folder / name) for name in (("base", "a") if among else ("a", "b"))],
        merge_method=method,
        base_model=str(folder / "base") if method != "linear" else None,
        layer_granularity=layers,
        smooth=smooth,
        filters=None if method == "slerp" else ["self_attn", "mlp"],
    )
    genome = ModelGenome(definition)
    torch.manual_seed(0)
    made = genome.genotype_merge_config(genome.initial_genotype(random=True))
    return yaml.safe_load(made.to_yaml()) | {"dtype": "float32"}


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_its_recipes_are_read(folder: Path, method: str, layers: int, smooth: bool) -> None:
    smooth = smooth and method != "slerp"
    data = evolved(folder, method, layers, smooth)
    assert data["parameters"]["int8_mask"] is True
    recipe = parse_any_recipe(data, PLACE)
    assert recipe.merge_method == method
    again = yaml.safe_load(recipe.to_yaml())
    assert again == yaml.safe_load(parse_any_recipe(again, PLACE).to_yaml())


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_its_models_are_the_same(folder: Path, tmp_path: Path, method: str) -> None:
    data = evolved(folder, method, 1, False)
    write(data, tmp_path / "ours")
    ours, theirs = read(tmp_path / "ours"), run_mergekit(data, tmp_path / "theirs")
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert relative_error(tensor, theirs[name]) <= MOST_RELATIVE, name


@pytest.mark.parametrize("method", ["linear", "karcher", "model_stock"])
def test_what_has_no_effect_is_a_truth_value_at_the_top(folder: Path, method: str) -> None:
    base = {} if method != "model_stock" else {"base_model": "base"}
    own = {"weight": 1} if method == "linear" else {}

    def given(model: dict[str, Any], **parameters: Any) -> Any:
        models = {"a": own | model, "b": own}
        return parsed(recipe_of(folder, method, **base, models=models, parameters=parameters))

    for value in (True, False):
        assert "int8_mask" not in given({}, int8_mask=value).to_mapping().get("parameters", {})
    for value in (1, "true", None, [True]):
        with pytest.raises(RecipeError, match="unknown parameter 'int8_mask' at parameters"):
            given({}, int8_mask=value)
    with pytest.raises(RecipeError, match="unknown parameter 'int8_mask' at models"):
        given({"int8_mask": True})
    if method != "linear":
        given({}, normalize=False)
        with pytest.raises(RecipeError, match="unknown parameter 'normalize' at parameters"):
            given({}, normalize=True)
