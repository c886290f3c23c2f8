"""Settings resolve for every tensor as they do in mergekit."""

from collections.abc import Sequence
from typing import Any

import pytest

from evomerge.errors import RecipeError
from evomerge.recipe import parse_recipe, resolve
from evomerge.settings import ByName, line_at, parse_setting, plain, value_at
from tests.test_recipe import NAMES, PLACE, TIES, changed


def column(weight: Any, names: Sequence[str] = NAMES, shared: Any = None) -> dict[str, float]:
    models = [{"model": "org/a", "parameters": {} if weight is None else {"weight": weight}}]
    parameters = {} if shared is None else {"weight": shared}
    data = {"merge_method": "linear", "models": models, "parameters": parameters}
    table = resolve(parse_recipe(data, PLACE), names)["weight"]
    assert table.shape == (1, len(names))
    return dict(zip(names, table[0].tolist(), strict=True))


def test_a_gradient_is_piecewise_linear_over_the_layers() -> None:
    found = column([0, 1, 4, 2])
    for name, value in found.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        assert value == pytest.approx([0, 2.5, 2][layer])


def test_outside_the_layers_the_first_anchor_counts() -> None:
    found = column([0.25, 1])
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert found[name] == 0.25


def test_one_anchor_and_one_layer() -> None:
    """A single layer is at the end of a gradient, as in mergekit."""
    assert set(column([0.7]).values()) == {0.7}
    names = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    assert column([0.1, 0.9], names) == dict(zip(names, [0.9, 0.1], strict=True))


def test_every_stack_of_layers_has_its_own_depth() -> None:
    names = [f"encoder.layers.{i}.w" for i in range(5)] + [f"decoder.block.{i}.w" for i in range(2)]
    found = column([0, 1], names)
    assert [found[name] for name in names] == [0, 0.25, 0.5, 0.75, 1, 0, 1]


def test_the_first_filter_that_fits_counts() -> None:
    found = column(
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


def test_levels_are_asked_in_turn() -> None:
    own = [{"filter": "mlp", "value": 1}]
    found = column(own, shared=[{"filter": "self_attn", "value": 2}, {"value": 3}])
    assert found["model.layers.0.mlp.up_proj.weight"] == 1
    assert found["model.layers.0.self_attn.q_proj.weight"] == 2
    assert found["lm_head.weight"] == 3
    assert set(column(None, shared=0.5).values()) == {0.5}


def test_a_tensor_without_a_value() -> None:
    with pytest.raises(RecipeError, match=r"none for lm_head.weight; add a last entry without"):
        column([{"filter": "model", "value": 1}])


def test_defaults() -> None:
    tables = resolve(parse_recipe(TIES, PLACE), NAMES)
    assert {"weight", "density", "normalize", "rescale", "lambda", "int8_mask"} <= set(tables)
    assert tables["rescale"].tolist() == [0.0] * len(NAMES)
    assert tables["density"].shape == (2, len(NAMES))
    assert set(tables["density"][1].tolist()) == {0.4}


def test_truth_values_are_not_interpolated() -> None:
    data = changed(["parameters", "normalize"], [True, False, True])
    table = resolve(parse_recipe(data, PLACE), NAMES)
    found = dict(zip(NAMES, table["normalize"].tolist(), strict=True))
    layers = [found[f"model.layers.{layer}.input_layernorm.weight"] for layer in range(3)]
    assert layers == [1.0, 0.0, 1.0]


def test_the_ends_of_a_gradient_are_exact() -> None:
    declared = parse_recipe(TIES, PLACE).method.parameter("weight")
    assert declared
    setting = parse_setting([0.1, 0.7, 0.3], declared, PLACE)
    assert [value_at(setting, "x", depth) for depth in (0.0, 0.5, 1.0)] == [0.1, 0.7, 0.3]


def test_the_line_of_a_value() -> None:
    declared = parse_recipe(TIES, PLACE).method.parameter("weight")
    assert declared

    def line(value: Any, name: str = "layers.1.mlp.up") -> str:
        return line_at(parse_setting(value, declared, PLACE), name, 0.25)

    assert line(1) == line([1]) == ""
    assert line([1, 2, 3]) == " (gradient at 0.25)"
    assert line({"value": 1}) == line([{"filter": "*", "value": 1}]) == "[0]"
    both = [{"filter": "attn", "value": 1}, {"filter": "mlp", "value": [1, 2]}, {"value": 3}]
    assert line(both) == "[1] (filter mlp, gradient at 0.25)"
    assert line(both, "norm") == "[2]"


def test_resolved_values_are_taken_by_name() -> None:
    found = column(None, ["a", "b"], shared=0)
    assert found == {"a": 0, "b": 0}
    setting = ByName({"a": 0.5, "ab": 2.0})
    assert [value_at(setting, name, 0.0) for name in ("a", "ab")] == [0.5, 2.0]
    assert plain({"weight": setting}) == {"weight": {"a": 0.5, "ab": 2.0}}
