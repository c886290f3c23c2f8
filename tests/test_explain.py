"""What `check --explain` says: for each tensor its sources, values and the lines they are from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from evomerge.checking import check, explained
from evomerge.cli import app
from evomerge.errors import InputError
from evomerge.explain import Explained, as_data, as_lines, explain
from evomerge.recipe import Recipe, resolve
from evomerge.slices import parse_any_recipe
from tests.tiny_models import PLACE, opened, recipe_of, weights, write_checkpoint, write_family

CURVES: dict[str, Any] = {
    "a": {"weight": [0.1, 0.6, 0.3], "density": 0.5},
    "b": {"weight": [{"filter": "mlp", "value": [0.2, 0.4]}, {"value": 0.3}]},
    "c": {"weight": [{"filter": "self_attn", "value": 0.25}]},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))


def ties(folder: Path) -> dict[str, Any]:
    shared = {"weight": 2, "density": [{"filter": "norm", "value": [0.2, 0.9]}], "lambda": [1, 0]}
    return recipe_of(folder, "ties", base_model="base", models=CURVES, parameters=shared)


def slices(folder: Path) -> dict[str, Any]:
    def source(model: str, first: int, end: int, **own: Any) -> dict[str, Any]:
        given = {"parameters": own} if own else {}
        return {"model": str(folder / model), "layer_range": [first, end]} | given

    return {
        "merge_method": "linear",
        "dtype": "float32",
        "slices": [
            {"sources": [source("a", 1, 3, weight=[0.2, 0.8])]},
            {"sources": [source("b", 0, 1), source("a", 2, 3, weight=[{"filter": ".2.mlp",
                                                                       "value": 3}])],
             "parameters": {"weight": [{"filter": "attn", "value": 4}]}},
        ],
        "parameters": {"weight": 1},
    }  # fmt: skip


def explained_by_name(folder: Path, data: dict[str, Any], *names: str) -> dict[str, Explained]:
    found = explain(parse_any_recipe(data, PLACE), opened(folder, *names))
    return {one.name: one for one in found}


def test_the_values_are_those_that_are_merged(family: Path) -> None:
    data = ties(family)
    recipe = parse_any_recipe(data, PLACE)
    assert isinstance(recipe, Recipe)
    names = list(opened(family, "base")[0].tensors)
    tables = resolve(recipe, names)
    found = explained_by_name(family, data, "base", "a", "b", "c")
    assert set(found) == set(names)
    for at, name in enumerate(names):
        one = found[name]
        assert one.base
        assert one.base.model == recipe.base
        for parameter, value in one.values.items():
            assert value.value == tables[parameter][at]
        for number, model in enumerate(one.models):
            assert model.model == recipe.entries[number].model
            for parameter, value in model.values.items():
                assert value.value == tables[parameter][number, at]


def test_the_lines_of_a_recipe_of_models(family: Path) -> None:
    found = explained_by_name(family, ties(family), "base", "a", "b", "c")
    up, norm = found["model.layers.1.mlp.up_proj.weight"], found["model.norm.weight"]
    weight = [one.values["weight"].origin for one in up.models]
    assert weight == [
        "models[0].parameters.weight (gradient at 0.5)",
        "models[1].parameters.weight[0] (filter mlp, gradient at 0.5)",
        "parameters.weight",
    ]
    density = [one.values["density"].origin for one in norm.models]
    line = "parameters.density[0] (filter norm, gradient at 0)"
    assert density == ["models[0].parameters.density", line, line]
    assert [one.values["density"].origin for one in up.models][1:] == ["default", "default"]
    assert up.values["lambda"].origin == "parameters.lambda (gradient at 0.5)"
    assert up.values["normalize"].origin == "default"


def test_the_lines_of_slices(family: Path) -> None:
    found = explained_by_name(family, slices(family), "a", "b")
    names = [name for name in found if name.endswith("up_proj.weight")]
    assert names == [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3)]
    first = found[names[0]].models[0]
    assert first.tensor == "model.layers.1.mlp.up_proj.weight"
    assert first.values["weight"].origin == (
        "slices[0].sources[0].parameters.weight (gradient at 0)"
    )
    b, a = found[names[2]].models
    assert (b.tensor, a.tensor) == (names[0], names[2])
    assert b.values["weight"].origin == "parameters.weight"
    line = "slices[1].sources[1].parameters.weight[0] (filter .2.mlp)"
    assert a.values["weight"].origin == line
    query = found["model.layers.2.self_attn.q_proj.weight"].models[0]
    assert query.values["weight"].origin == "slices[1].parameters.weight[0] (filter attn)"
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    assert [len(found[name].models) for name in ends] == [1, 2]


def test_text(family: Path) -> None:
    found = explained_by_name(family, slices(family), "a", "b")
    lines = list(as_lines([found["model.layers.2.mlp.up_proj.weight"]]))
    assert lines == [
        "model.layers.2.mlp.up_proj.weight: normalize 1 ← default",
        f"  {family / 'b'} model.layers.0.mlp.up_proj.weight: weight 1 ← parameters.weight",
        f"  {family / 'a'}: weight 3 ← slices[1].sources[1].parameters.weight[0] (filter .2.mlp)",
    ]
    one = explained_by_name(family, ties(family), "base", "a", "b", "c")["lm_head.weight"]
    first, base, *_ = as_lines([one])
    assert first.startswith("lm_head.weight: lambda 1 ← parameters.lambda (gradient at 0); ")
    assert first.endswith(" ← default")
    assert base == f"  base {family / 'base'}"


def test_layers_are_in_counting_order(family: Path, tmp_path: Path) -> None:
    data = slices(family)
    data["slices"] = data["slices"][:1] * 6
    names = list(explained_by_name(family, data, "a"))
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)
    assert max(layers) == 11


def test_what_is_copied_and_what_models_lack(tmp_path: Path) -> None:
    for name in ("a", "b"):
        more = {"extra": torch.ones(2)} if name == "a" else {}
        tensors = {"x": torch.ones(2), "count": torch.tensor([1]), **more}
        write_checkpoint(tmp_path / name, tensors, {"model_type": "odd"})
    data = recipe_of(tmp_path, "linear", models={name: {"weight": 1} for name in "ab"})
    found = explained_by_name(tmp_path, data, "a", "b")
    assert [len(found[name].models) for name in ("x", "count", "extra")] == [2, 1, 1]
    assert found["count"].models[0].values == found["count"].values == {}


def test_a_donor_that_is_not_merged(family: Path) -> None:
    models = {name: {"weight": 1} for name in "ab"}
    data = recipe_of(family, "linear", base_model="c", models=models)
    found = explained_by_name(family, data, "c", "a", "b")
    assert all(one.base is None and len(one.models) == 2 for one in found.values())


def test_the_command(family: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(slices(family)))
    said = check(file)
    assert said == f"{file} is a linear recipe of 2 models in slices that makes 30 tensors"
    run = CliRunner().invoke(app, ["check", "--explain", str(file)])
    assert run.exit_code == 0
    assert run.output == explained(file, False) + "\n"
    assert "model.layers.2.mlp.up_proj.weight: normalize 1 ← default\n" in run.output
    run = CliRunner().invoke(app, ["check", "--explain", "--json", str(file)])
    data = json.loads(run.output)
    assert {one["tensor"] for one in data} == {*weights(family, "a")}
    found = explained_by_name(family, slices(family), "a", "b")
    assert data == json.loads(json.dumps(as_data(list(found.values()))))
    first = data[0]["models"][0]["parameters"]["weight"]
    assert first == {"value": 1.0, "from": "parameters.weight"}


def test_filters_that_fit_nothing_are_told(family: Path, tmp_path: Path) -> None:
    data = slices(family)
    data["parameters"]["normalize"] = [{"filter": "atn", "value": True}, {"value": True}]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(data))
    assert "note: the filter 'atn' matches no tensor; did you mean" in check(file)


def test_only_recipes_are_explained(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("space: ties\n")
    with pytest.raises(InputError, match=r"expected a recipe to explain, got none at the top of"):
        explained(file, False)
