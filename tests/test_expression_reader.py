"""Mistakes in search spaces are one sentence with its place, and no point of a space is illegal."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import yaml

from evomerge.errors import SpaceError
from evomerge.genome import Genome
from evomerge.recipe import parse_recipe
from tests.mutation import mutated, refusal
from tests.test_search_space import PLACE, TIES, space_of, weight_space


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
            ({"rnge": [0, 1]}, None,
             f"unknown key 'rnge' at {HERE} in space.yaml; did you mean 'range'?"),
            ({"range": [1, 0]}, None,
             f"a range [low, high] with low < high, got [1, 0] at {HERE}.range"),
            ({"range": [0]}, None, "expected a range [low, high]"),
            ({"range": ["0", 1]}, None, "expected a range [low, high]"),
            ({"range": [0, 10**400]}, None, "expected a range [low, high]"),
            ({"range": [-1e308, 1e308]}, None, "expected a range [low, high]"),
            ({"range": [0, 1], "init": 2}, None, f"a number in [0, 1], got 2 at {HERE}.init"),
            ({"range": [0, 1], "init": True}, None, "a number in [0, 1], got True"),
            ({"range": [0, 1], "step": 0}, None, f"a step in (0, 1], got 0 at {HERE}.step"),
            ({"range": [0, 1], "step": 2}, None, "a step in (0, 1], got 2"),
            ({"range": [0, 1], "step": 1e-13}, None, "a step in (0, 1], got 1e-13"),
            ({"range": [0, 1], "log": "yes"}, None, "true or false, got 'yes'"),
            ({"range": [0, 1], "log": True}, None, "a range above 0 without a step for log"),
            ({"range": [0.1, 1], "log": True, "step": 0.1}, None, "without a step for log"),
            ("depht", {"depth": {"range": [0, 1]}},
             f"unknown hole 'depht' at {HERE} in space.yaml; did you"),
            ("depth", None, "expected a hole of the name depth, got no named holes at "),
            (None, None,
             f"a hole such as {{range: [0, 1]}}, or a hole's name, got nothing at {HERE}"),
            ([], None, "a value, a gradient or a list of {filter, value}"),
            ([{"filter": "", "value": {}}], None,
             f"a part of a tensor's name, or '*', got '' at {HERE}[0].filter"),
            ([{"filter": "mlp"}, {"value": {}}], None, f"got nothing at {HERE}[0].value"),
            ([{"value": [{"value": 1}]}], None, "unknown key 'value'"),
            ([{"value": {"curve": 2, "range": [0, 1]}}], None,
             "a number or a hole inside a gradient or filter"),
            ([{"curve": 2, "range": [0, 1]}], None,
             "a number or a hole inside a gradient or filter"),
            ({"curve": 0, "range": [0, 1]}, None,
             f"1 to 1000 knots, or `layers`, got 0 at {HERE}.curve"),
            ({"curve": "layer", "range": [0, 1]}, None, "or `layers`, got 'layer'"),
            ({"curve": 2, "over": "mlp", "range": [0, 1]}, None,
             "expected a list of module groups, got 'mlp'"),
            ({"curve": 2, "over": ["mlp"], "range": [0, 1]}, None,
             "expected groups that cover every tensor"),
            ({"curve": 2}, None, None),  # the parameter's own search range
            ({"product": [{"range": [0, 1]}]}, None,
             f"at least two factors, got [{{'range': [0, 1]}}] at {HERE}.product"),
            ({"product": [1, {}]}, None,
             f"a range [low, high] with low < high, got nothing at {HERE}.product[1].range"),
            ({"product": [1, True, {"range": [0, 1]}]}, None,
             f"a number as a factor, got True at {HERE}.product[1]"),
            ({"product": [1, {"choice": [True, False]}]}, None, "a number as a factor"),
            ({"product": [1, {"product": [1, 2]}]}, None,
             "list the factors of both products together"),
            ({"product": ["p", 1]}, {"p": {"product": [1, {"range": [0, 1]}]}},
             "a factor that is no product itself"),
            ("p", {"p": {"product": ["p", 1]}}, "a hole that does not contain itself"),
            ("p", {"p": {"product": ["q", 1]}, "q": {"product": ["p", 1]}},
             "does not contain itself"),
            ("p", {"p": "p"}, "does not contain itself"),
            ({"product": ["a", "b"]},
             {"a": {"curve": 2, "range": [0, 1]}, "b": {"curve": 3, "range": [0, 1]}},
             f"curves of one shape in a product, got 'b' at {HERE}.product[1]"),
            ({"choice": [1]}, None, f"a list of at least two values, got [1] at {HERE}.choice"),
            ({"choice": [1, 1.0]}, None, f"each value once, got 1.0 at {HERE}.choice[1]"),
            ({"choice": [1, "x"]}, None, f"a number or a truth value, got 'x' at {HERE}.choice[1]"),
            ({"choice": [1, 2], "init": 3}, None, f"one of [1, 2], got 3 at {HERE}.init"),
            ({"choice": [1, True, 2]}, None, "each value once, got True"),
            ({"choice": [3, True, 2]}, None, f"weight as a number, got what can be True at {HERE}"),
            ("c", {"c": {"choice": [3, True, 2]}},
             f"weight as a number, got what can be True at {HERE}"),
            (1, {"depth": {"range": [0, 1]}},
             "a hole that is used, got one that nothing names at holes.depth"),
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
            (
                1.5,
                "expected density as a number in (0, 1], got 1.5 at models[0].parameters.density",
            ),
            (
                {"range": [0, 1]},
                "in (0, 1], got what can be 0.0 at models[0].parameters.density in",
            ),
            ({"range": [0.5, 1.5]}, "got what can be 1.5"),
            ("wide", "got what can be 2"),
            ({"product": ["wide", 0.6]}, "got what can be 1.2"),
            ({"product": ["both", "both"]}, "got what can be -0.5"),  # legal at both ends
            ({"curve": 2, "over": ["other"], "range": [0.5, 1.01]}, "got what can be 1.0"),
            ([0.1, {"range": [0.1, 3]}], "got what can be 3.0 at models[0].parameters.density[1]"),
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
            (["models", 0, "parameters", "densty"], 1,
             "unknown parameter 'densty' at models[0].parameters"),
            (["models", 0, "parameters", "lambda"], 1,
             "unknown parameter 'lambda' at models[0].parameters"),
            (["models", 0, "parameters", "weight"], None, "a hole that is used"),
            (["parameters", "lamda"], 1,
             "unknown parameter 'lamda' at parameters in space.yaml; did you mean 'lambda'?"),
            (["parameters", "normalize"], {"range": [0, 1]},
             "normalize as true or false, got what can be 0"),
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
        with pytest.raises(SpaceError, match=r"none for code at models in .*; add it or use `each"):
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
            ({"range": [0, 2**33]}, "got what can be 8589934592"),
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
        said = refusal(partial(space_of, data))
        if said is not None:
            assert "\n" not in said
            assert len(said) < 500
            continue
        accepted += 1
        space = space_of(data)
        genome = Genome(space.holes)
        for _ in range(3):
            vector = [draw.choice([0.0, 1.0, draw.random()]) for _ in space.holes]
            recipe = space.decode(genome.from_unit(vector))
            assert parse_recipe(recipe.to_mapping(), PLACE) == recipe
    assert accepted < 40
