"""Search spaces: holes, curves, products, names; every mistake is one sentence with its place."""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import EvomergeError, InputError, Place, SpaceError
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.recipe import parse_recipe, resolve
from evomerge.search_space import (
    Inputs,
    SearchSpace,
    load_space,
    parse_space,
    space_folder,
    space_names,
)
from tests.mutation import mutated
from tests.tiny_models import llama_shapes

PLACE = Place("space.yaml", SpaceError)
NAMES = tuple(sorted(llama_shapes()))
INPUTS = Inputs("org/base", {"math": "org/math", "code": "org/code"})
TIES = """
merge_method: ties
base_model: base
models:
  - each: experts
    parameters:
      weight: {product: [{range: [0, 2], init: 0.5}, depth]}
      density: {range: [0.05, 1], init: 0.3}
parameters: {normalize: false, lambda: 1}
holes:
  depth: {curve: 2, over: [attention, mlp, other], range: [0.5, 2], init: 1}
"""


def space_of(source: str | dict[str, Any], inputs: Inputs = INPUTS, seed: int = 3) -> SearchSpace:
    data = yaml.safe_load(source) if isinstance(source, str) else source
    return parse_space(data, inputs, Architecture(NAMES), "bfloat16", seed, PLACE)


def weight_space(weight: Any, holes: Any = None, method: str = "task_arithmetic") -> SearchSpace:
    """A space in which the experts' weight is what is given."""
    data: dict[str, Any] = {
        "merge_method": method,
        "base_model": "base",
        "models": [{"each": "experts", "parameters": {"weight": weight}}],
    }
    return space_of(data | ({} if holes is None else {"holes": holes}))


class TestHoles:
    def test_the_space_for_ties(self) -> None:
        space = space_of(TIES)
        depth = [f"depth.{group}.{knot}" for group in ("attention", "mlp", "other") for knot in (0, 1)]
        assert [hole.name for hole in space.holes] == [
            "math.weight", *depth, "math.density", "code.weight", "code.density",
        ]  # fmt: skip
        by_name = {hole.name: hole for hole in space.holes}
        assert by_name["math.weight"] == Hole("math.weight", "float", 0, 2, 0.5)
        assert by_name["depth.mlp.1"] == Hole("depth.mlp.1", "float", 0.5, 2, 1)
        assert by_name["math.density"] == Hole("math.density", "float", 0.05, 1.0, 0.3, 0.01)

    def test_decoding(self) -> None:
        space = space_of(TIES)
        values = space.initial | {
            "math.weight": 0.8, "code.weight": 1.5, "math.density": 0.25,
            "depth.attention.0": 0.5, "depth.mlp.1": 2.0, "depth.other.0": 0.75,
        }  # fmt: skip
        recipe = space.decode(values)
        assert recipe.to_mapping() == {
            "merge_method": "ties",
            "base_model": "org/base",
            "models": [
                {"model": "org/math", "parameters": {
                    "weight": curves(0.8, [0.5, 1], [1, 2], [0.75, 1]), "density": 0.25}},
                {"model": "org/code", "parameters": {
                    "weight": curves(1.5, [0.5, 1], [1, 2], [0.75, 1]), "density": 0.3}},
            ],
            "parameters": {"normalize": False, "lambda": 1},
            "dtype": "float32",
            "out_dtype": "bfloat16",
        }  # fmt: skip
        weight = dict(zip(NAMES, resolve(recipe, NAMES)["weight"][0], strict=True))
        assert weight["model.embed_tokens.weight"] == 0.8 * 0.75
        assert weight["lm_head.weight"] == 0.8 * 1
        assert weight["model.layers.0.self_attn.q_proj.weight"] == 0.8 * 0.5
        assert weight["model.layers.1.mlp.up_proj.weight"] == pytest.approx(0.8 * 1.5)
        assert weight["model.layers.2.input_layernorm.weight"] == 0.8 * 1

    def test_defaults_of_a_hole(self) -> None:
        assert weight_space({"range": [0.5, 1]}).holes[0] == Hole("math.weight", "float", 0.5, 1, 0.75)
        log = weight_space({"range": [0.01, 1], "log": True}).holes[0]
        assert log.log
        assert log.init == pytest.approx(0.1)
        assert weight_space({}).holes[0] == Hole("math.weight", "float", 0.0, 1.5, 0.75)
        assert weight_space({"init": 1}).holes[0].init == 1

    def test_grids_end_on_a_step(self) -> None:
        hole = weight_space({"range": [0, 1], "step": 0.3, "init": 1}).holes[0]
        assert (hole.low, hole.high, hole.init) == (0, 0.9, 0.9)

    def test_density_steps(self) -> None:
        def density(hole: Any) -> Hole:
            data = yaml.safe_load(TIES)
            data["models"][0]["parameters"]["density"] = hole
            return next(one for one in space_of(data).holes if one.name == "math.density")

        assert density({}).step == 0.01
        assert density({"range": [0.2, 0.205]}).step is None
        assert density({"range": [0.2, 0.4], "log": True}).step is None
        assert density({"range": [0.2, 0.4], "step": 0.1}).step == 0.1

    def test_choices(self) -> None:
        data = yaml.safe_load(TIES)
        data["parameters"]["normalize"] = {"choice": [True, False], "init": False}
        data["parameters"]["lambda"] = {"choice": [0.5, 1, 2]}
        holes = {hole.name: hole for hole in space_of(data).holes}
        assert holes["normalize"] == Hole(
            "normalize", "categorical", True, False, False, choices=(True, False)
        )
        assert holes["lambda"].init == 0.5

    def test_whole_numbers(self) -> None:
        data = yaml.safe_load(TIES) | {"merge_method": "dare_ties"}
        data["parameters"]["seed"] = {"range": [0, 7], "init": 2}
        space = space_of(data)
        hole = space.holes[-1]
        assert (hole.kind, hole.low, hole.high, hole.init, hole.step) == ("int", 0, 7, 2, 1.0)
        values = Genome(space.holes).from_unit([0.999] * len(space.holes))
        assert space.decode(values).parameters["seed"] == 7

    def test_gradients_and_filters(self) -> None:
        space = weight_space([{"filter": "mlp", "value": [{}, 0.5, "own"]}, {"value": {"init": 0.2}}],
                             {"own": {"range": [0, 1]}})  # fmt: skip
        assert [hole.name for hole in space.holes] == [
            "math.weight[mlp].0", "own", "math.weight[*]", "code.weight[mlp].0", "code.weight[*]",
        ]  # fmt: skip
        recipe = space.decode(space.initial)
        assert recipe.to_mapping()["models"][0]["parameters"]["weight"] == [
            {"filter": "mlp", "value": [0.75, 0.5, 0.5]}, {"value": 0.2},
        ]  # fmt: skip

    def test_a_named_hole_is_shared(self) -> None:
        space = weight_space("scale", {"scale": {"range": [0, 1]}})
        assert [hole.name for hole in space.holes] == ["scale"]
        weights = [model.parameters["weight"] for model in space.decode({"scale": 0.3}).models]
        assert weights == [0.3, 0.3]

    def test_products_of_curves_and_constants(self) -> None:
        curve = {"curve": 2, "over": ["mlp", "other"], "range": [0, 2], "init": 1}
        space = weight_space({"product": [2, "one", "two", {"range": [0, 1], "init": 0.5}]},
                             {"one": curve, "two": curve})  # fmt: skip
        values = space.initial | {"one.mlp.0": 2.0, "two.mlp.0": 1.5, "code.weight": 1.0}
        recipe = space.decode(values)
        weight = resolve(recipe, NAMES)["weight"]
        row = NAMES.index("model.layers.0.mlp.up_proj.weight")
        assert weight[:, row].tolist() == [2 * 2 * 1.5 * 0.5, 2 * 2 * 1.5]

    def test_a_curve_with_a_knot_per_layer(self) -> None:
        space = weight_space({"curve": "layers", "over": ["other"], "range": [0, 1]})
        assert [hole.name for hole in space.holes][:3] == [f"math.weight.other.{k}" for k in range(3)]

    def test_groups_without_layers_have_one_knot(self) -> None:
        over = ["embeddings", "head", "other"]
        space = weight_space({"curve": 3, "over": over, "range": [0, 1]})
        assert [hole.name.removeprefix("math.weight.") for hole in space.holes][:5] == [
            "embeddings", "head", "other.0", "other.1", "other.2",
        ]  # fmt: skip

    def test_stochastic_methods_get_the_seed_of_the_study(self) -> None:
        data = yaml.safe_load(TIES) | {"merge_method": "dare_ties"}
        space = space_of(data, seed=17)
        assert space.decode(space.initial).parameters["seed"] == 17
        data["parameters"]["seed"] = 5
        space = space_of(data, seed=17)
        assert space.decode(space.initial).parameters["seed"] == 5


def curves(scale: float, *knots: Sequence[float]) -> list[dict[str, Any]]:
    attention, mlp, other = ([scale * knot for knot in one] for one in knots)
    return [
        {"filter": "model.embed_tokens.weight", "value": other[0]},
        {"filter": "model.norm.weight", "value": other[-1]},
        {"filter": "lm_head.weight", "value": other[-1]},
        {"filter": "self_attn", "value": attention},
        {"filter": "mlp", "value": mlp},
        {"value": other},
    ]


class TestInputs:
    def test_names_and_positions(self) -> None:
        for alias, name in (
            ("base", "base"), ("math", "math"), ("inputs[0]", "base"), ("inputs[2]", "code"),
            ("inputs[-1]", "code"), ("inputs[-3]", "base"),
        ):  # fmt: skip
            assert INPUTS.ref(alias, PLACE) == (name, f"org/{name}")

    @pytest.mark.parametrize(
        ("alias", "words"),
        [
            ("maht", "unknown model 'maht' at the top of space.yaml; did you mean 'math'?"),
            ("inputs[3]", "expected one of the study's 3 inputs, got 'inputs[3]'"),
            ("inputs[-4]", "expected one of the study's 3 inputs"),
            ("inputs[99999999999999999999]", "unknown model"),
            (3, "expected base, the name of an expert, or inputs[-1], got 3"),
            (None, "expected base"),
        ],
    )
    def test_mistakes(self, alias: Any, words: str) -> None:
        with pytest.raises(SpaceError) as caught:
            INPUTS.ref(alias, PLACE)
        assert words in str(caught.value)


class TestWeighted:
    """Points of the space that are weighted merges, from which searches start."""

    def test_a_scale_times_a_curve(self) -> None:
        space = space_of(TIES)
        values = space.weighted({"math": 0.4, "code": 1.2})
        assert values == space.initial | {"math.weight": 0.4, "code.weight": 1.2}
        assert space.weighted({"math": 0.4, "code": 2.5}) is None

    def test_the_other_factors_are_made_up_for(self) -> None:
        curve = {"curve": 2, "over": ["mlp", "other"], "range": [0, 2], "init": 0.5}
        for factors in (["depth", {"range": [0, 2]}], [{"range": [0, 2]}, "depth"]):
            space = weight_space({"product": [*factors, 0.8]}, {"depth": curve})
            values = space.weighted({"math": 0.4, "code": 0.2})
            assert values
            assert values["depth.mlp.0"] == 0.5
            found = resolve(space.decode(values), NAMES)["weight"]
            assert found[0] == pytest.approx(0.4)
            assert found[1] == pytest.approx(0.2)

    def test_curves_and_shared_holes(self) -> None:
        per_layer = weight_space({"curve": 3, "over": ["other"], "range": [0, 1], "init": 0.4})
        values = per_layer.weighted({"math": 0.9, "code": 0.1})
        assert values
        assert {values[f"math.weight.other.{knot}"] for knot in range(3)} == {0.9}
        shared = weight_space("scale", {"scale": {"range": [0, 1]}})
        assert shared.weighted({"math": 0.3, "code": 0.3}) == {"scale": 0.3}
        assert shared.weighted({"math": 0.3, "code": 0.4}) is None

    def test_points_that_the_space_does_not_hold(self) -> None:
        stepped = weight_space({"range": [0, 1], "step": 0.25})
        assert stepped.weighted({"math": 0.5, "code": 0.25}) is not None
        assert stepped.weighted({"math": 0.4, "code": 0.25}) is None
        filtered = weight_space([{"filter": "mlp", "value": {}}, {"value": 1}])
        assert filtered.weighted({"math": 1, "code": 1}) is None
        zero = weight_space({"product": [{"range": [0, 1]}, {"range": [0, 1], "init": 0}]})
        assert zero.weighted({"math": 0.5, "code": 0.5}) is None
        data = yaml.safe_load(TIES)
        data["models"][0]["parameters"]["weight"] = 1
        assert space_of(data).weighted({"math": 1, "code": 1}) == space_of(data).initial
        assert space_of(data).weighted({"math": 1, "code": 0.5}) is None


def with_weight(weight: Any, holes: Any = None) -> dict[str, Any]:
    data: Any = yaml.safe_load(TIES)
    data["models"][0]["parameters"]["weight"] = weight
    if holes is not None:
        data["holes"] = holes
    else:
        data.pop("holes")
    assert isinstance(data, dict)
    return data


HERE = "models[0].parameters.weight"


class TestMistakes:
    @pytest.mark.parametrize(
        ("weight", "holes", "words"),
        [
            ({"rnge": [0, 1]}, None, f"unknown key 'rnge' at {HERE} in space.yaml; did you mean 'range'?"),
            ({"range": [1, 0]}, None, f"a range [low, high] with low < high, got [1, 0] at {HERE}.range"),
            ({"range": [0]}, None, "expected a range [low, high]"),
            ({"range": ["0", 1]}, None, "expected a range [low, high]"),
            ({"range": [0, 10**400]}, None, "expected a range [low, high]"),
            ({"range": [-1e308, 1e308]}, None, "expected a range [low, high]"),
            ({"range": [0, 1], "init": 2}, None, f"a number in [0, 1], got 2 at {HERE}.init"),
            ({"range": [0, 1], "init": True}, None, "a number in [0, 1], got True"),
            ({"range": [0, 1], "step": 0}, None, f"a step in (0, 1], got 0 at {HERE}.step"),
            ({"range": [0, 1], "step": 2}, None, "a step in (0, 1], got 2"),
            ({"range": [0, 1], "step": 1e-12}, None, "a step in (0, 1], got 1e-12"),
            ({"range": [0, 1], "log": "yes"}, None, "true or false, got 'yes'"),
            ({"range": [0, 1], "log": True}, None, "a range above 0 without a step for log"),
            ({"range": [0.1, 1], "log": True, "step": 0.1}, None, "without a step for log"),
            ("depht", {"depth": {"range": [0, 1]}}, f"unknown hole 'depht' at {HERE} in space.yaml; did you"),
            ("depth", None, "unknown hole 'depth' at"),
            (None, None, f"expected a number, a hole such as {{range: [0, 1]}}, or a hole's name, got nothing at {HERE}"),
            ([], None, "a value, a gradient or a list of {filter, value}"),
            ([{"filter": "", "value": {}}], None, f"a part of a tensor's name, or '*', got '' at {HERE}[0].filter"),
            ([{"filter": "mlp"}, {"value": {}}], None, f"got nothing at {HERE}[0].value"),
            ([{"value": [{"value": 1}]}], None, "unknown key 'value'"),
            ([{"value": {"curve": 2, "range": [0, 1]}}], None, "a number or a hole inside a gradient or filter"),
            ([{"curve": 2, "range": [0, 1]}], None, "a number or a hole inside a gradient or filter"),
            ({"curve": 0, "range": [0, 1]}, None, f"1 to 1000 knots, or `layers`, got 0 at {HERE}.curve"),
            ({"curve": "layer", "range": [0, 1]}, None, "or `layers`, got 'layer'"),
            ({"curve": 2, "over": "mlp", "range": [0, 1]}, None, "expected a list of module groups, got 'mlp'"),
            ({"curve": 2, "over": ["mlp"], "range": [0, 1]}, None, "expected groups that cover every tensor"),
            ({"curve": 2}, None, None),  # the parameter's own search range
            ({"product": [{"range": [0, 1]}]}, None, f"at least two factors, got [{{'range': [0, 1]}}] at {HERE}.product"),
            ({"product": [1, {}]}, None, f"a range [low, high] with low < high, got nothing at {HERE}.product[1].range"),
            ({"product": [1, True, {"range": [0, 1]}]}, None, f"a number as a factor, got True at {HERE}.product[1]"),
            ({"product": [1, {"choice": [True, False]}]}, None, "a number as a factor"),
            ({"product": [1, {"product": [1, 2]}]}, None, "list the factors of both products together"),
            ({"product": ["p", 1]}, {"p": {"product": [1, {"range": [0, 1]}]}}, "a factor that is no product itself"),
            ("p", {"p": {"product": ["p", 1]}}, "a hole that does not contain itself"),
            ("p", {"p": {"product": ["q", 1]}, "q": {"product": ["p", 1]}}, "does not contain itself"),
            ("p", {"p": "p"}, "does not contain itself"),
            ({"product": ["a", "b"]}, {"a": {"curve": 2, "range": [0, 1]}, "b": {"curve": 3, "range": [0, 1]}},
             f"curves of one shape in a product, got 'b' at {HERE}.product[1]"),
            ({"choice": [1]}, None, f"a list of at least two values, got [1] at {HERE}.choice"),
            ({"choice": [1, 1.0]}, None, f"each value once, got 1.0 at {HERE}.choice[1]"),
            ({"choice": [1, "x"]}, None, f"a number or a truth value, got 'x' at {HERE}.choice[1]"),
            ({"choice": [1, 2], "init": 3}, None, f"one of [1, 2], got 3 at {HERE}.init"),
            ({"choice": [1, True, 2]}, None, "each value once, got True"),
            ({"choice": [3, True, 2]}, None, f"weight as a number, got what can be True at {HERE}"),
            ("c", {"c": {"choice": [3, True, 2]}}, f"weight as a number, got what can be True at {HERE}"),
            (1, {"depth": {"range": [0, 1]}}, "a hole that is used, got one that nothing names at holes.depth"),
            ("c", {"c": 3}, "expected a hole, got 3 at holes.c"),
            ("c", {"c": [1, 2]}, "expected a number, a hole such as"),
            ("c", {"c": {}}, "a range [low, high] with low < high, got nothing at holes.c.range"),
            ("c", [], "expected a mapping, got [] at holes"),
            ({"product": [{"range": [0, 1]}, "math.weight"]}, {"math.weight": {"range": [0, 1]}},
             "expected holes with different names, got 'math.weight'"),
        ],
    )  # fmt: skip
    def test_what_stands_for_a_number(self, weight: Any, holes: Any, words: str | None) -> None:
        data = with_weight(weight, holes)
        if words is None:
            assert space_of(data).holes
            return
        with pytest.raises(SpaceError) as caught:
            space_of(data)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("density", "words"),
        [
            (1.5, "expected density as a number in (0, 1], got 1.5 at models[0].parameters.density"),
            ({"range": [0, 1]}, "in (0, 1], got what can be 0 at models[0].parameters.density in"),
            ({"range": [0.5, 1.5]}, "got what can be 1.5"),
            ("wide", "got what can be 2"),
            ({"product": ["wide", 0.6]}, "got what can be 1.2"),
            ({"product": ["both", "both"]}, "got what can be -0.5"),  # legal at both ends
            ({"curve": 2, "over": ["other"], "range": [0.5, 1.01]}, "got what can be 1.0"),
            ([0.1, {"range": [0.1, 3]}], "got what can be 3 at models[0].parameters.density[1]"),
        ],
    )
    def test_no_point_of_a_space_is_illegal(self, density: Any, words: str) -> None:
        data = with_weight(
            {"product": ["wide", "both"]},
            {"wide": {"range": [0.2, 2]}, "both": {"range": [-1, 0.5], "init": 0.4}},
        )
        data["models"][0]["parameters"]["density"] = density
        with pytest.raises(SpaceError) as caught:
            space_of(data)
        assert words in str(caught.value)

    @pytest.mark.parametrize(
        ("path", "value", "words"),
        [
            (["merge_method"], "tie", "unknown merge method 'tie' at merge_method"),
            (["merge_method"], None, "expected a merge_method"),
            (["base_model"], "bse", "unknown model 'bse' at base_model"),
            (["base_model"], None, "expected a base_model, which ties needs"),
            (["models"], None, "expected a list of models, got nothing at models"),
            (["models", 0], 3, "expected a mapping, got 3 at models[0]"),
            (["models", 0, "each"], "expert", "expected experts, got 'expert' at models[0].each"),
            (["models", 0, "each"], None, "expected either model or each"),
            (["models", 0, "model"], "math", "expected either model or each"),
            (["models", 0, "parameters", "densty"], 1, "unknown parameter 'densty' at models[0].parameters"),
            (["models", 0, "parameters", "lambda"], 1, "unknown parameter 'lambda' at models[0].parameters"),
            (["models", 0, "parameters", "weight"], None, "a hole that is used"),
            (["parameters", "lamda"], 1, "unknown parameter 'lamda' at parameters in space.yaml; did you mean 'lambda'?"),
            (["parameters", "normalize"], {"range": [0, 1]}, "normalize as true or false, got what can be 0"),
            (["parameters", "lambda"], True, "lambda as a number, got True at parameters.lambda"),
            (["dtype"], "float32", "unknown key 'dtype'"),
        ],
    )  # fmt: skip
    def test_around_the_numbers(self, path: Sequence[Any], value: Any, words: str) -> None:
        data: Any = yaml.safe_load(TIES)
        inner = data
        for step in path[:-1]:
            inner = inner[step]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        with pytest.raises(SpaceError) as caught:
            space_of(data)
        assert words in str(caught.value)

    def test_every_expert_is_used(self) -> None:
        data = yaml.safe_load(TIES)
        data["models"][0] = {"model": "math", "parameters": data["models"][0]["parameters"]}
        with pytest.raises(SpaceError, match="none for code at models in .*; add it or use `each"):
            space_of(data)
        data["models"].append({"each": "experts", "parameters": {"weight": 1}})
        with pytest.raises(SpaceError, match="each model once"):
            space_of(data)

    def test_a_space_has_holes(self) -> None:
        with pytest.raises(SpaceError, match="a recipe with at least one hole, got none"):
            weight_space(0.5)

    def test_whole_numbers(self) -> None:
        data = yaml.safe_load(TIES) | {"merge_method": "dare_ties"}
        for seed, words in (
            ({"range": [0.5, 3]}, "expected a range of whole numbers"),
            ({"range": [0, 3], "step": 0.5}, "expected a whole number, got 0.5"),
            ({"range": [0, 2**40]}, "got what can be 1099511627776"),
            ({"curve": 2, "over": ["other"], "range": [0, 3]}, "seed as a whole number"),
            ([0, 1], "seed as a whole number"),
            ("depth", "seed as a whole number"),
        ):
            data["parameters"]["seed"] = seed
            with pytest.raises(SpaceError) as caught:
                space_of(data)
            assert words in str(caught.value)


@pytest.mark.parametrize("chunk", range(20))
def test_mutated_spaces_are_refused_or_legal_everywhere(chunk: int) -> None:
    """Odd types anywhere give an error for the user; no point of an accepted space is refused."""
    source = yaml.safe_load(TIES)
    source["parameters"]["rescale"] = {"choice": [True, False]}
    source["models"][0]["parameters"]["density"] = [{"filter": "mlp", "value": {"range": [0.1, 1]}},
                                                    {"value": ["own", 0.5]}]  # fmt: skip
    source["holes"]["own"] = {"range": [0.1, 0.9], "log": True}
    accepted = 0
    for number in range(40):
        draw = random.Random(40 * chunk + number)
        data = mutated(source, draw)
        try:
            space = space_of(copy.copy(data))
        except EvomergeError as problem:
            assert "\n" not in str(problem)
            assert len(str(problem)) < 500
            continue
        accepted += 1
        genome = Genome(space.holes)
        for _ in range(3):
            vector = [draw.choice([0.0, 1.0, draw.random()]) for _ in space.holes]
            recipe = space.decode(genome.from_unit(vector))
            assert parse_recipe(recipe.to_mapping(), PLACE) == recipe
    assert accepted < 40


class TestLoad:
    place = Place("study.yaml", InputError, "space")

    def test_by_name_path_and_as_itself(self, tmp_path: Path) -> None:
        data, place = load_space("ties", tmp_path, self.place)
        assert data["merge_method"] == "ties"
        assert place.document.endswith("search_spaces/ties.yaml")
        (tmp_path / "mine.yaml").write_text("merge_method: linear")
        assert load_space("mine.yaml", tmp_path, self.place)[0] == {"merge_method": "linear"}
        data, place = load_space({"a": 1}, tmp_path, self.place)
        assert (data, str(place)) == ({"a": 1}, "space in study.yaml")
        assert place.error is SpaceError

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("tie", "unknown search space 'tie' at space in study.yaml; did you mean 'ties'?"),
            ("no.yaml", "no.yaml, which does not exist at space in study.yaml"),
            ("x" * 3000 + ".yaml", "which does not exist"),
            ("a\0.yaml", "which does not exist"),
            (3, "the name of a search space, a path, or a mapping, got 3"),
            (["ties"], "the name of a search space"),
            ("list.yaml", "expected a mapping, got [1, 2] at the top of"),
            ("broken.yaml", "expected YAML"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, source: Any, words: str) -> None:
        (tmp_path / "list.yaml").write_text("[1, 2]")
        (tmp_path / "broken.yaml").write_text("a: [")
        with pytest.raises(InputError) as caught:
            load_space(source, tmp_path, self.place)
        assert words in str(caught.value)

    def test_the_folder(self) -> None:
        assert space_names() == sorted(path.stem for path in space_folder().glob("*.yaml"))
