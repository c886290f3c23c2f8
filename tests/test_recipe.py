"""Recipes: every mistake is one sentence with its place; settings resolve as in mergekit."""

import copy
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.checkpoints import ModelRef
from evomerge.errors import EvomergeError, Place, RecipeError
from evomerge.recipe import load_recipe, parse_recipe, resolve
from evomerge.settings import Conditional, parse_setting, value_at
from tests.mutation import mutated
from tests.tiny_models import llama_shapes

PLACE = Place("ties.yaml", RecipeError)
NAMES = sorted(llama_shapes())
TIES: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "org/base",
    "models": [
        {"model": "org/a", "parameters": {"weight": 0.5, "density": [0.1, 0.9]}},
        {"model": "org/b@v2", "parameters": {"weight": [{"filter": "mlp", "value": 1}, {"value": 0}]}},
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
            (["merge_method"], "tise", "unknown merge method 'tise' at merge_method in ties.yaml; did"),
            (["merge_method"], None, "expected a merge_method, got nothing at the top of ties.yaml"),
            (["merge_method"], 3, "expected the name of a merge method, got 3 at merge_method"),
            (["paramters"], {}, "unknown key 'paramters' at the top of ties.yaml; did you mean 'parameters'?"),
            (["base_model"], None, "expected a base_model, which ties needs, got nothing"),
            (["base_model"], ["x"], "expected a model: a folder or a Hub id"),
            (["models"], None, "expected a list of models, got nothing at models in ties.yaml"),
            (["models"], [], "expected a list of models, got [] at models"),
            (["models"], {"a": 1}, "expected a list of models"),
            (["models", 1], "org/b", "expected a mapping, got 'org/b' at models[1] in ties.yaml"),
            (["models", 1, "model"], None, "got nothing at models[1].model in ties.yaml"),
            (["models", 1, "model"], "org/a", "expected each model once, got 'org/a' at models[1].model"),
            (["models", 1, "wieght"], 1, "unknown key 'wieght' at models[1]"),
            (["models", 1, "parameters"], [1], "expected a mapping, got [1] at models[1].parameters"),
            (["models", 1, "parameters", "densty"], 1,
             "unknown parameter 'densty' at models[1].parameters in ties.yaml; did you mean 'density'?"),
            (["models", 1, "parameters", "lambda"], 1, "unknown parameter 'lambda' at models[1]"),
            (["models", 1, "parameters", "density"], 1.5,
             "expected density as a number in (0, 1], got 1.5 at models[1].parameters.density in ties.yaml"),
            (["models", 1, "parameters", "density"], 0, "in (0, 1], got 0 at"),
            (["models", 1, "parameters", "density"], [0.5, 0], "got 0 at models[1].parameters.density[1] in"),
            (["models", 1, "parameters", "density"], [{"filter": "x", "value": [1, 2]}],
             "got 2 at models[1].parameters.density[0].value[1] in ties.yaml"),
            (["models", 1, "parameters", "density"], [{"value": 0.1}, 0.2],
             "expected a mapping, got 0.2 at models[1].parameters.density[1]"),
            (["models", 1, "parameters", "density"], [], "a value, a gradient or a list of {filter, value}"),
            (["models", 1, "parameters", "density"], {"filter": "mlp"}, "expected a value, got nothing"),
            (["models", 1, "parameters", "density"], [{"filtre": "mlp", "value": 1}], "did you mean 'filter'?"),
            (["models", 1, "parameters", "density"], [{"filter": "", "value": 1}], "a part of a tensor's name"),
            (["models", 1, "parameters", "density"], [{"filter": 3, "value": 1}], "a part of a tensor's name"),
            (["models", 1, "parameters", "density"], [{"value": [{"value": 1}]}], "density as a number in"),
            (["models", 1, "parameters", "weight"], None, "expected weight, which ties needs of every model"),
            (["models", 1, "parameters", "weight"], "1e-5", "write it without quotes, and 1.0e-5"),
            (["models", 1, "parameters", "weight"], True, "expected weight as a number, got True"),
            (["models", 1, "parameters", "weight"], float("nan"), "expected weight as a number, got nan"),
            (["models", 1, "parameters", "weight"], float("inf"), "expected weight as a number, got inf"),
            (["models", 1, "parameters", "weight"], 10**400, "expected weight as a number, got 1000"),
            (["parameters", "normalize"], 1, "expected normalize as true or false, got 1"),
            (["parameters", "normalise"], True, "did you mean 'normalize'?"),
            (["dtype"], "float8", "expected one of float32, bfloat16, float16, got 'float8' at dtype"),
            (["out_dtype"], ["float32"], "expected one of float32"),
            (["slices"], [], "expected no slices, got one at the top of ties.yaml; slices is not supported"),
            (["tokenizer"], {}, "tokenizer is not supported yet"),
        ],
    )  # fmt: skip
    def test_mistakes(self, path: Sequence[Any], value: Any, words: str) -> None:
        with pytest.raises(RecipeError) as caught:
            parse_recipe(changed(path, value), PLACE)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("data", [None, [], "ties", 3, {}, {3: 4}, {None: 1}])
    def test_no_recipe_at_all(self, data: object) -> None:
        with pytest.raises(RecipeError, match="at the top of ties.yaml"):
            parse_recipe(data, PLACE)

    def test_the_seed_is_one_whole_number(self) -> None:
        data = changed(["merge_method"], "dare_ties")
        for good in (0, 2**32 - 1):
            data["parameters"]["seed"] = good
            assert parse_recipe(data, PLACE).parameters["seed"] == good
        for bad in (-1, 2**32, 1.0, True, "1", [1, 2], [{"filter": "mlp", "value": 1}], {"value": 1}):
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
        for inner in ("&x [{value: *x}]", "&x [*x]", "&x {value: *x}", "&x {filter: a, value: [*x]}"):
            path.write_text(
                "merge_method: linear\nmodels: [{model: org/a, parameters: {weight: " + inner + "}}]\n"
            )
            with pytest.raises(RecipeError, match="weight as a number"):
                load_recipe(path)


@pytest.mark.parametrize("seed", range(600))
def test_mutated_recipes_are_refused_or_legal(seed: int) -> None:
    """Odd types anywhere give an error for the user, and what is accepted can be resolved."""
    data = mutated(TIES, random.Random(seed))
    try:
        recipe = parse_recipe(data, PLACE)
        tables = resolve(recipe, NAMES)
    except EvomergeError as problem:
        assert "\n" not in str(problem)
        assert len(str(problem)) < 400
        return
    assert all(np.isfinite(table).all() for table in tables.values())
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), PLACE) == recipe


class TestResolve:
    def column(
        self, weight: Any, names: Sequence[str] = NAMES, shared: Any = None
    ) -> dict[str, float]:
        models = [{"model": "org/a", "parameters": {} if weight is None else {"weight": weight}}]
        parameters = {} if shared is None else {"weight": shared}
        data = {"merge_method": "linear", "models": models, "parameters": parameters}
        table = resolve(parse_recipe(data, PLACE), names)["weight"]
        assert table.shape == (1, len(names))
        return dict(zip(names, table[0].tolist(), strict=True))

    def test_a_gradient_is_piecewise_linear_over_the_layers(self) -> None:
        found = self.column([0, 1, 4, 2])
        for name, value in found.items():
            layer = int(name.split(".")[2]) if ".layers." in name else 0
            assert value == pytest.approx([0, 2.5, 2][layer])

    def test_outside_the_layers_the_first_anchor_counts(self) -> None:
        found = self.column([0.25, 1])
        for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
            assert found[name] == 0.25

    def test_one_anchor_and_one_layer(self) -> None:
        assert set(self.column([0.7]).values()) == {0.7}
        names = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
        assert self.column([0.1, 0.9], names) == dict.fromkeys(names, 0.1)

    def test_every_stack_of_layers_has_its_own_depth(self) -> None:
        names = [f"encoder.layers.{i}.w" for i in range(5)] + [f"decoder.block.{i}.w" for i in range(2)]
        found = self.column([0, 1], names)
        assert [found[name] for name in names] == [0, 0.25, 0.5, 0.75, 1, 0, 1]

    def test_the_first_filter_that_fits_counts(self) -> None:
        found = self.column(
            [
                {"filter": "mlp.up", "value": 1},
                {"filter": "mlp", "value": [2, 3]},
                {"filter": "*", "value": 4},
                {"filter": "lm_head", "value": 5},
            ]
        )
        assert found["model.layers.2.mlp.up_proj.weight"] == 1
        assert found["model.layers.1.mlp.down_proj.weight"] == 2.5
        assert found["lm_head.weight"] == 4

    def test_levels_are_asked_in_turn(self) -> None:
        own = [{"filter": "mlp", "value": 1}]
        found = self.column(own, shared=[{"filter": "self_attn", "value": 2}, {"value": 3}])
        assert found["model.layers.0.mlp.up_proj.weight"] == 1
        assert found["model.layers.0.self_attn.q_proj.weight"] == 2
        assert found["lm_head.weight"] == 3
        assert set(self.column(None, shared=0.5).values()) == {0.5}

    def test_a_tensor_without_a_value(self) -> None:
        with pytest.raises(RecipeError, match="none for lm_head.weight; add a last entry without"):
            self.column([{"filter": "model", "value": 1}])

    def test_defaults(self) -> None:
        tables = resolve(parse_recipe(TIES, PLACE), NAMES)
        assert set(tables) == {"weight", "density", "normalize", "rescale", "lambda", "int8_mask"}
        assert tables["rescale"].tolist() == [0.0] * len(NAMES)
        assert tables["density"].shape == (2, len(NAMES))
        assert set(tables["density"][1].tolist()) == {0.4}

    def test_truth_values_are_not_interpolated(self) -> None:
        data = changed(["parameters", "normalize"], [True, False, True])
        table: Mapping[str, np.ndarray[Any, Any]] = resolve(parse_recipe(data, PLACE), NAMES)
        found = dict(zip(NAMES, table["normalize"].tolist(), strict=True))
        layers = [found[f"model.layers.{layer}.input_layernorm.weight"] for layer in range(3)]
        assert layers == [1.0, 0.0, 1.0]

    def test_the_ends_of_a_gradient_are_exact(self) -> None:
        declared = parse_recipe(TIES, PLACE).method.parameter("weight")
        assert declared
        setting = parse_setting([0.1, 0.7, 0.3], declared, PLACE)
        assert [value_at(setting, "x", depth) for depth in (0.0, 0.5, 1.0)] == [0.1, 0.7, 0.3]
