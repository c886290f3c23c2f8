"""Recipes: what they say, and every mistake is one sentence with its place."""

import copy
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.checkpoints import ModelRef
from evomerge.errors import Place, RecipeError
from evomerge.recipe import load_recipe, parse_recipe, resolve
from evomerge.settings import Conditional
from tests.mutation import mutated, refusal
from tests.tiny_models import llama_shapes

PLACE = Place("ties.yaml", RecipeError)
NAMES = sorted(llama_shapes())
TIES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [
        {"model": "org/a", "parameters": {"weight": 0.5, "density": [0.1, 0.9]}},
        {
            "model": "org/b@v2",
            "parameters": {"weight": [{"filter": "mlp", "value": 1}, {"value": 0}]},
        },
    ],
    "parameters": {"normalize": False, "lambda": 1, "density": 0.4},
    "dtype": "float32",
    "out_dtype": "bfloat16",
}


def changed(path: Sequence[Any], value: Any) -> dict[str, Any]:
    """The recipe with one thing set; None as the value takes it away."""
    data: Any = copy.deepcopy(TIES)
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    if value is None:
        inner.pop(path[-1])
    else:
        inner[path[-1]] = value
    assert isinstance(data, dict)
    return data


class TestParse:
    def test_what_a_recipe_says(self) -> None:
        recipe = parse_recipe(TIES, PLACE)
        assert recipe.merge_method == "ties"
        assert recipe.base == recipe.donor == ModelRef("org/base")
        assert recipe.inputs == (
            ModelRef("org/base"), ModelRef("org/a"), ModelRef("org/b", "v2"),
        )  # fmt: skip
        assert recipe.models[0].parameters == {"weight": 0.5, "density": (0.1, 0.9)}
        assert recipe.models[1].parameters["weight"] == (
            Conditional("mlp", 1), Conditional(None, 0),
        )  # fmt: skip
        assert recipe.result_dtype == "bfloat16"

    def test_round_trip(self, tmp_path: Path) -> None:
        recipe = parse_recipe(TIES, PLACE)
        assert recipe.to_mapping() == TIES
        (tmp_path / "r.yaml").write_text(recipe.to_yaml("one\ntwo"))
        assert load_recipe(tmp_path / "r.yaml") == recipe
        assert recipe.to_yaml("one\ntwo").startswith("# one\n# two\nmerge_method: ties\n")
        assert yaml.safe_load(recipe.to_yaml()) == TIES

    def test_references_as_mappings(self) -> None:
        model = {"path": "org/a", "revision": "v1"}
        adapter = ModelRef("org/lora", "v2")
        for value, ref in (
            ({"model": model}, ModelRef("org/a", "v1")),
            ({"model": "org/a@v1", "lora": "org/lora@v2"}, ModelRef("org/a", "v1", adapter)),
            (
                {"model": model, "lora": {"path": "org/lora", "revision": "v2"}},
                ModelRef("org/a", "v1", adapter),
            ),
        ):
            recipe = parse_recipe(changed(["models", 0, "model"], value), PLACE)
            assert recipe.models[0].model == ref
            assert recipe.to_mapping()["models"][0]["model"] == str(ref)

    def test_the_base_among_the_models_is_not_merged(self) -> None:
        data = changed(["models"], [{"model": "org/base"}, *TIES["models"]])
        recipe = parse_recipe(data, PLACE)
        assert [str(entry.model) for entry in recipe.entries] == ["org/a", "org/b@v2"]
        assert len(recipe.models) == 3

    def test_a_method_without_base(self) -> None:
        models = [{"model": "org/a", "parameters": {"weight": 1}}]
        recipe = parse_recipe({"merge_method": "linear", "models": models}, PLACE)
        assert (recipe.base, recipe.donor) == (None, ModelRef("org/a"))
        with_base = {"merge_method": "linear", "base_model": "org/a", "models": models}
        assert parse_recipe(with_base, PLACE).inputs == (ModelRef("org/a"),)

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            (["merge_method"], "tise",
             "unknown merge method 'tise' at merge_method in ties.yaml; did"),
            (["merge_method"], None,
             "expected a merge_method, got nothing at the top of ties.yaml"),
            (["merge_method"], 3, "expected the name of a merge method, got 3 at merge_method"),
            (["paramters"], {},
             "unknown key 'paramters' at the top of ties.yaml; did you mean 'parameters'?"),
            (["base_model"], None, "expected a base_model, which ties needs, got nothing"),
            (["base_model"], ["x"], "expected a model: a folder or a Hub id"),
            (["models"], None, "expected a list of models, got nothing at models in ties.yaml"),
            (["models"], [], "expected a list of models, got [] at models"),
            (["models"], {"a": 1}, "expected a list of models"),
            (["models", 1], "org/b", "expected a mapping, got 'org/b' at models[1] in ties.yaml"),
            (["models", 1, "model"], None, "got nothing at models[1].model in ties.yaml"),
            (["models", 1, "model"], "org/a",
             "expected each model once, got 'org/a' at models[1].model"),
            (["models", 1, "wieght"], 1, "unknown key 'wieght' at models[1]"),
            (["models", 1, "parameters"], [1],
             "expected a mapping, got [1] at models[1].parameters"),
            (["models", 1, "parameters", "densty"], 1,
             "'densty' at models[1].parameters in ties.yaml; did you mean 'density'?"),
            (["models", 1, "parameters", "lambda"], 1, "unknown parameter 'lambda' at models[1]"),
            (["models", 1, "parameters", "density"], 1.5,
             "density as a number in (0, 1], got 1.5 at models[1].parameters.density in ties.yaml"),
            (["models", 1, "parameters", "density"], 0, "in (0, 1], got 0 at"),
            (["models", 1, "parameters", "density"], [0.5, 0],
             "got 0 at models[1].parameters.density[1] in"),
            (["models", 1, "parameters", "density"], [{"filter": "x", "value": [1, 2]}],
             "got 2 at models[1].parameters.density[0].value[1] in ties.yaml"),
            (["models", 1, "parameters", "density"], [{"value": 0.1}, 0.2],
             "expected a mapping, got 0.2 at models[1].parameters.density[1]"),
            (["models", 1, "parameters", "density"], [],
             "a value, a gradient or a list of {filter, value}"),
            (["models", 1, "parameters", "density"], {"filter": "mlp"},
             "expected a value, got nothing"),
            (["models", 1, "parameters", "density"], [{"filtre": "mlp", "value": 1}],
             "did you mean 'filter'?"),
            (["models", 1, "parameters", "density"], [{"filter": "", "value": 1}],
             "a part of a tensor's name"),
            (["models", 1, "parameters", "density"], [{"filter": 3, "value": 1}],
             "a part of a tensor's name"),
            (["models", 1, "parameters", "density"], [{"value": [{"value": 1}]}],
             "density as a number in"),
            (["models", 1, "parameters", "weight"], None,
             "expected weight, which ties needs of every model"),
            (["models", 1, "parameters", "weight"], "1e-5", "write it without quotes, and 1.0e-5"),
            (["models", 1, "parameters", "weight"], True, "expected weight as a number, got True"),
            (["models", 1, "parameters", "weight"], float("nan"),
             "expected weight as a number, got nan"),
            (["models", 1, "parameters", "weight"], float("inf"),
             "expected weight as a number, got inf"),
            (["models", 1, "parameters", "weight"], 10**400,
             "expected weight as a number, got 1000"),
            (["parameters", "normalize"], 1, "expected normalize as true or false, got 1"),
            (["parameters", "normalise"], True, "did you mean 'normalize'?"),
            (["dtype"], "float8",
             "expected one of float32, bfloat16, float16, got 'float8' at dtype"),
            (["out_dtype"], ["float32"], "expected one of float32"),
            (["slices"], [],
             "expected a recipe of models, got slices at the top of ties.yaml; only merge and"),
            (["base_model"], {"model": {"path": "x", "revison": "y"}},
             "unknown key 'revison' at base_model.model in ties.yaml; did you mean 'revision'?"),
            (["base_model"], {"model": {"path": 3}}, "expected a text, got 3 at base_model.model"),
            (["base_model"], {"lora": "x"}, "expected a model: a folder or a Hub id"),
            (["base_model"], {"model": "a+b", "lora": "c"},
             "expected a model without an adapter, got 'a+b' at base_model.model"),
            (["tokenizer"], {"sorce": "base"}, "unknown key 'sorce' at tokenizer in ties.yaml"),
        ],
    )  # fmt: skip
    def test_mistakes(self, path: Sequence[Any], value: Any, words: str) -> None:
        with pytest.raises(RecipeError) as caught:
            parse_recipe(changed(path, value), PLACE)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("data", [None, [], "ties", 3, {}, {3: 4}, {None: 1}])
    def test_no_recipe_at_all(self, data: object) -> None:
        with pytest.raises(RecipeError, match=r"at the top of ties.yaml"):
            parse_recipe(data, PLACE)

    def test_the_seed_is_one_whole_number(self) -> None:
        data = changed(["merge_method"], "dare_ties")
        for good in (0, 2**32 - 1):
            data["parameters"]["seed"] = good
            assert parse_recipe(data, PLACE).parameters["seed"] == good
        for bad in (
            -1,
            2**32,
            1.0,
            True,
            "1",
            [1, 2],
            [{"filter": "mlp", "value": 1}],
            {"value": 1},
        ):
            data["parameters"]["seed"] = bad
            with pytest.raises(RecipeError, match=r"seed as a whole number in \[0, 4294967295\]"):
                parse_recipe(data, PLACE)

    def test_numbers_of_models(self) -> None:
        data: dict[str, Any] = {
            "merge_method": "slerp", "base_model": "org/a", "parameters": {"t": 0.5},
            "models": [{"model": "org/a"}],
        }  # fmt: skip
        with pytest.raises(RecipeError, match=r"at least 1 model\(s\) beside the base for slerp"):
            parse_recipe(data, PLACE)
        data["models"] += [{"model": "org/b"}, {"model": "org/c"}]
        with pytest.raises(RecipeError, match=r"at most 1 model\(s\) beside the base .* got 2"):
            parse_recipe(data, PLACE)
        data["models"].pop()
        assert len(parse_recipe(data, PLACE).entries) == 1
        data["parameters"] = {}
        with pytest.raises(RecipeError, match="expected t, which slerp needs"):
            parse_recipe(data, PLACE)

    def test_yaml_that_contains_itself(self, tmp_path: Path) -> None:
        path = tmp_path / "r.yaml"
        for inner in (
            "&x [{value: *x}]",
            "&x [*x]",
            "&x {value: *x}",
            "&x {filter: a, value: [*x]}",
        ):
            path.write_text(
                "merge_method: linear\nmodels: [{model: org/a, parameters: {weight: "
                + inner
                + "}}]\n"
            )
            with pytest.raises(RecipeError, match="weight as a number"):
                load_recipe(path)


def resolved(data: Any) -> object:
    return resolve(parse_recipe(data, PLACE), NAMES)


@pytest.mark.parametrize("chunk", range(20))
def test_mutated_recipes_are_refused_or_legal(chunk: int) -> None:
    """Odd types anywhere give an error for the user, and what is accepted can be resolved."""
    accepted = 0
    for number in range(40):
        data = mutated(TIES, random.Random(40 * chunk + number))
        said = refusal(partial(resolved, data))
        if said is not None:
            assert "\n" not in said
            assert len(said) < 400
            continue
        accepted += 1
        recipe = parse_recipe(data, PLACE)
        assert all(np.isfinite(table).all() for table in resolve(recipe, NAMES).values())
        assert parse_recipe(yaml.safe_load(recipe.to_yaml()), PLACE) == recipe
    assert accepted < 40
