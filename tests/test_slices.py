"""Recipes of slices and modules: what they say; a mistake is one sentence with its place."""

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.assembly import assemble
from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.errors import Place, RecipeError
from evomerge.recipe import Recipe, parse_recipe
from evomerge.slices import SlicedRecipe, as_sliced, load_any_recipe, parse_any_recipe
from tests.mutation import mutated, refusal
from tests.test_recipe import TIES
from tests.tiny_models import opened, write_family

PLACE = Place("r.yaml", RecipeError)
SLERP: dict[str, Any] = {
    "merge_method": "slerp",
    "base_model": "base",
    "slices": [
        {
            "sources": [
                {"model": "base", "layer_range": [0, 2]},
                {"model": "a", "layer_range": [1, 3]},
            ],
            "parameters": {"t": [{"filter": "mlp", "value": [0.1, 0.9]}]},
        },
        {
            "sources": [
                {"model": "a", "layer_range": [0, 1]},
                {"model": "b", "layer_range": [2, 3]},
            ],
            "base_model": "b",
        },
    ],
    "parameters": {"t": 0.5},
    "dtype": "float32",
    "out_dtype": "bfloat16",
}
MODULES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "modules": {
        "model.layers": {
            "slices": [
                {
                    "sources": [
                        {"model": "base", "layer_range": [0, 3]},
                        {"model": "a", "layer_range": [0, 3], "parameters": {"weight": 0.2}},
                    ],
                    "parameters": {"lambda": 2},
                }
            ],
            "parameters": {"density": [0.1, 0.9]},
        },
        "default": {"models": [{"model": "b", "parameters": {"weight": 1}}]},
    },
    "dtype": "float32",
}


def sliced(data: object) -> SlicedRecipe:
    recipe = parse_any_recipe(data, PLACE)
    assert isinstance(recipe, SlicedRecipe)
    return recipe


def changed(data: Any, path: Sequence[Any], value: Any) -> Any:
    """The recipe with one thing set; None as the value takes it away."""
    data = copy.deepcopy(data)
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        inner.pop(path[-1])
    else:
        inner[path[-1]] = value
    return data


def test_what_a_recipe_of_slices_says() -> None:
    recipe = sliced(SLERP)
    assert recipe.donor == ModelRef("base")
    assert recipe.inputs == (ModelRef("base"), ModelRef("a"), ModelRef("b"))
    (module,) = recipe.modules
    first, second = module.slices
    assert (module.name, module.whole) == ("default", False)
    assert [(str(one.model), one.layers) for one in first.sources] == [
        ("base", range(2)), ("a", range(1, 3)),
    ]  # fmt: skip
    assert (first.base_model, second.base_model) == (ModelRef("base"), ModelRef("b"))
    assert second.sources[1].place.path == "slices[1].sources[1]"
    assert recipe.result_dtype == "bfloat16"


def test_the_donor_without_a_base_is_the_first_source() -> None:
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in "ba"]
    recipe = sliced({"merge_method": "passthrough", "slices": slices})
    assert recipe.donor == ModelRef("b")
    assert recipe.base_of(recipe.modules[0].slices[0]) is None


@pytest.mark.parametrize("data", [SLERP, MODULES], ids=["slices", "modules"])
def test_round_trip(data: dict[str, Any], tmp_path: Path) -> None:
    recipe = sliced(data)
    assert recipe.to_mapping() == data
    (tmp_path / "r.yaml").write_text(recipe.to_yaml("one"))
    assert load_any_recipe(tmp_path / "r.yaml") == recipe
    assert recipe.to_yaml("one").startswith("# one\nmerge_method: ")


def test_a_recipe_of_models_is_read_as_before() -> None:
    recipe = parse_any_recipe({**TIES, "slices": None}, PLACE)
    assert isinstance(recipe, Recipe)
    assert recipe == parse_recipe(TIES, PLACE)
    same = as_sliced(recipe, PLACE)
    assert same.to_mapping() == TIES
    assert (same.inputs, same.donor) == (recipe.inputs, recipe.donor)
    assert next(iter(same.settings)) == recipe.parameters
    assert {id(one) for one in recipe.settings} == {id(one) for one in same.settings if one}


S = ["slices", 0, "sources"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["models"], [{"model": "a"}],
         "expected one of models, slices and modules, got models and slices at the top of r.yaml"),
        (["tokenizer_source"], "a+b", "got 'a+b' at tokenizer_source in r.yaml"),
        (["slice"], [], "unknown key 'slice' at the top of r.yaml; did you mean 'slices'?"),
        (["slices"], [], "expected a list of slices, got [] at slices in r.yaml"),
        (["slices"], {"a": 1}, "expected a list of slices"),
        (["slices", 1], 3, "expected a mapping, got 3 at slices[1] in r.yaml"),
        (["slices", 1, "residual_weight"], 1, "unknown key 'residual_weight' at slices[1]"),
        (["slices", 1, "parametres"], {}, "did you mean 'parameters'?"),
        (S, [], "expected a list of sources, got [] at slices[0].sources in r.yaml"),
        ([*S, 1], "a", "expected a mapping, got 'a' at slices[0].sources[1]"),
        ([*S, 1, "model"], None, "got nothing at slices[0].sources[1].model in r.yaml"),
        ([*S, 1, "model"], "base",
         "expected each model once in a slice, got 'base' at slices[0].sources[1].model"),
        ([*S, 1, "layer_rnge"], [0, 1], "did you mean 'layer_range'?"),
        ([*S, 1, "layer_range"], None,
         "expected layer_range as [first, end], whole numbers with 0 <= first < end, got nothing"),
        ([*S, 1, "layer_range"], [1, 1], "got [1, 1] at slices[0].sources[1].layer_range in"),
        ([*S, 1, "layer_range"], [3, 1], "0 <= first < end, got [3, 1]"),
        ([*S, 1, "layer_range"], [-1, 1], "0 <= first < end, got [-1, 1]"),
        ([*S, 1, "layer_range"], [0, 10**400], "0 <= first < end"),
        ([*S, 1, "layer_range"], [0, 1, 2], "0 <= first < end, got [0, 1, 2]"),
        ([*S, 1, "layer_range"], [True, 2], "0 <= first < end, got [True, 2]"),
        ([*S, 1, "layer_range"], [0.0, 2], "0 <= first < end, got [0.0, 2]"),
        ([*S, 1, "layer_range"], "0-2", "0 <= first < end, got '0-2'"),
        ([*S, 1, "layer_range"], [0, 3],
         "expected 2 layers, as many as of the first source, got 3 at slices[0].sources[1]"),
        ([*S, 1, "parameters"], {"t": 1}, "unknown parameter 't' at slices[0].sources[1].param"),
        (["slices", 0, "parameters", "t"], "x", "expected t as a number"),
        (["slices", 0, "parameters", "tt"], 1, "did you mean 't'?"),
        (["base_model"], None, "a base_model, which slerp needs, got nothing at slices[0] in r"),
        (["base_model"], "c",
         "expected the base model c among the sources, got base, a at slices[0].sources in r.yaml;"
         " add it with the layer_range"),
        (["slices", 1, "base_model"], "c", "the base model c among the sources, got a, b at"),
        (["slices", 1, "base_model"], "", "a folder or a Hub id"),
        (["slices", 0, "sources", 1], None,
         "expected at least 1 model(s) beside the base for slerp, got 0 at slices[0].sources"),
        (["parameters"], None, "t, which slerp needs, got nothing at slices[1].parameters in r"),
    ],
)  # fmt: skip
def test_mistakes_in_slices(path: Sequence[Any], value: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_any_recipe(changed(SLERP, path, value), PLACE)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


M = ["modules", "model.layers"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["modules"], {}, "expected modules by name, got {} at modules in r.yaml"),
        (["modules"], [], "expected a mapping, got [] at modules in r.yaml"),
        (["modules", "default"], {}, "either models or slices, got neither at modules.default in"),
        ([*M, "models"], [], "expected either models or slices, got models and slices at modules"),
        (["modules", "default", "model"], [], "did you mean 'models'?"),
        (["modules", "default", "models"], [], "expected a list of models, got []"),
        (["modules", "default", "models", 0, "layer_range"], [0, 1], "unknown key 'layer_range'"),
        (["modules", "default", "models", 0, "parameters"], {},
         "expected weight, which ties needs of every model, got nothing at modules.default.models[0"
         "].parameters in r.yaml"),
        ([*M, "slices", 0, "sources", 1, "parameters"], None,
         "got nothing at modules.model.layers.slices[0].sources[1].parameters in r.yaml"),
        ([*M, "parameters", "density"], 2, "got 2 at modules.model.layers.parameters.density in"),
    ],
)  # fmt: skip
def test_mistakes_in_modules(path: Sequence[Any], value: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_any_recipe(changed(MODULES, path, value), PLACE)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", ["source", "slice", "module", "recipe"])
def test_a_parameter_without_default_may_stand_at_any_level(level: str) -> None:
    data = copy.deepcopy(MODULES)
    module = data["modules"]["model.layers"]
    one = module["slices"][0]
    del one["sources"][1]["parameters"]
    where = {"source": one["sources"][1], "slice": one, "module": module, "recipe": data}[level]
    where.setdefault("parameters", {})["weight"] = 0.3
    assert len(sliced(data).modules) == 2


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))


def _assembled(data: Any, family: Path) -> object:
    recipe = parse_any_recipe(data, PLACE)
    if isinstance(recipe, Recipe):
        return recipe
    names = [str(ref) for ref in dict.fromkeys([recipe.donor, *recipe.inputs])]
    if not set(names) <= {"base", "a", "b", "c"}:
        raise RecipeError("another model")
    return assemble(recipe, [_renamed(one) for one in opened(family, *names)])


def _renamed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint by the name that it has in the recipe."""
    return replace(checkpoint, ref=ModelRef(Path(checkpoint.ref.path).name))


@pytest.mark.parametrize("chunk", range(16))
def test_mutated_recipes_are_refused_or_legal(chunk: int, family: Path) -> None:
    """Odd types anywhere give an error for the user, and what is accepted can be assembled."""
    accepted = 0
    for number in range(40):
        data = mutated([SLERP, MODULES][number % 2], random.Random(40 * chunk + number))
        said = refusal(partial(_assembled, data, family))
        if said is not None:
            assert "\n" not in said
            assert len(said) < 500
            continue
        accepted += 1
        recipe = parse_any_recipe(data, PLACE)
        assert parse_any_recipe(yaml.safe_load(recipe.to_yaml()), PLACE) == recipe
    assert accepted < 40
