"""A recipe layer by layer: means of what its tensors are given, in rows that say something."""

from typing import Any

import pytest

from evomerge.errors import Place, RecipeError
from evomerge.recipe import parse_recipe, resolve
from evomerge.report.heat import heat_maps
from tests.report.pages import recipe, tensors

NAMES = {"org/math": "math", "org/code": "code"}


def maps(layers: int, data: Any = None) -> dict[str, Any]:
    found = heat_maps(data or recipe(layers), tensors(layers), NAMES)
    assert found is not None
    return found


def test_cells_are_what_the_tensors_get() -> None:
    found = maps(3)
    assert [one["name"] for one in found["maps"]] == ["weight"]
    weight = found["maps"][0]
    assert weight["columns"] == ["0", "1", "2", "embeddings", "norms", "head"]
    rows = [(row["model"], row["groups"], row["span"]) for row in weight["rows"]]
    assert rows == [
        ("math", ["attention", "norms"], 2), ("math", ["mlp"], 0), ("code", ["all"], 1),
    ]  # fmt: skip
    resolved = resolve(parse_recipe(recipe(3), Place("r", RecipeError)), tensors(3))["weight"]
    by_name = dict(zip(tensors(3), resolved[0], strict=True))
    mlp = [cell and cell["value"] for cell in weight["rows"][1]["cells"]]
    expected = [by_name[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(3)]
    assert mlp == [*map(pytest.approx, expected), None, None, None]
    assert mlp[0] == -0.25
    assert weight["rows"][1]["cells"][0]["share"] == pytest.approx(-0.25 / 0.75, abs=1e-3)
    outside = [cell["value"] for cell in weight["rows"][2]["cells"][3:]]
    ends = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    assert outside == [resolved[1][tensors(3).index(name)] for name in ends]


def test_what_is_the_same_everywhere_is_no_map() -> None:
    assert maps(3)["fixed"] == [
        {"name": "density", "value": "0.25"},
        {"name": "normalize", "value": "0"},
        {"name": "lambda", "value": "1"},
    ]


def test_a_parameter_of_all_models_has_rows_without_a_model() -> None:
    data = {
        "merge_method": "slerp",
        "base_model": "org/base",
        "models": [{"model": "org/math"}],
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
    }
    only = maps(2, data)["maps"][0]
    assert [(row["model"], row["groups"]) for row in only["rows"]] == [
        ("", ["attention", "norms"]), ("", ["mlp"]),
    ]  # fmt: skip


def test_a_recipe_that_does_not_resolve_has_no_maps() -> None:
    assert heat_maps({"merge_method": "gone"}, tensors(2), NAMES) is None
