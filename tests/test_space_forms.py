"""Blocks of layers, shares that sum to one, and spaces that choose among recipes."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.errors import SpaceError
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.recipe import Recipe, parse_recipe, resolve
from evomerge.search_space import Inputs, SearchSpace
from evomerge.space_reader import parse_space
from tests.test_search_space import INPUTS, PLACE, TIES, space_of, weight_space
from tests.tiny_models import CONFIG, llama_shapes

LAYERS = 7
DEEP = tuple(sorted(llama_shapes(CONFIG | {"num_hidden_layers": LAYERS})))


def deep(weight: Any, holes: Any = None, experts: Sequence[str] = ("math", "code")) -> SearchSpace:
    data: dict[str, Any] = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"each": "experts", "parameters": {"weight": weight}}],
    } | ({} if holes is None else {"holes": holes})
    inputs = Inputs("org/base", {name: f"org/{name}" for name in experts})
    return parse_space(data, inputs, Architecture(DEEP), "bfloat16", 0, PLACE)


def drawn(space: SearchSpace, seed: int) -> dict[str, Any]:
    draw = random.Random(seed)
    return Genome(space.holes).from_unit([draw.random() for _ in space.holes])


def weights_of(recipe: Recipe) -> np.ndarray[Any, Any]:
    """The weights [M, T], after the recipe has been written and read."""
    again = parse_recipe(yaml.safe_load(recipe.to_yaml()), PLACE)
    assert again == recipe
    return resolve(again, DEEP)["weight"]


def layer_of(name: str) -> int | None:
    return int(name.split(".")[2]) if ".layers." in name else None


@pytest.mark.parametrize("count", range(1, LAYERS + 1))
def test_layers_of_a_block_have_one_weight(count: int) -> None:
    space = deep({"blocks": count, "over": ["attention", "other"], "range": [0, 1]}, None, ["math"])
    values = drawn(space, count)
    own = 2 if count == 1 else 2 * count
    assert len(space.holes) == own
    found = dict(zip(DEEP, weights_of(space.decode(values))[0], strict=True))
    for name, weight in found.items():
        layer = layer_of(name)
        group = "attention" if "self_attn" in name else "other"
        block = (layer if layer is not None else 0 if "embed" in name else LAYERS - 1) * count
        key = f"math.weight.{group}" + ("" if count == 1 else f".{block // LAYERS}")
        assert weight == pytest.approx(values[key], abs=1e-15), name


@pytest.mark.parametrize("form", [{}, {"curve": 3}, {"blocks": 2, "over": ["mlp", "other"]}])
def test_shares_sum_to_one_at_every_tensor(form: dict[str, Any]) -> None:
    """By construction: at every point, for any number of experts."""
    for experts in (["a", "b"], ["a", "b", "c", "d"]):
        weight = {"share": "mix", "range": [0.01, 3], "init": 0.7} | form
        space = deep(weight, None, experts)
        assert weights_of(space.decode(space.initial)) == pytest.approx(1 / len(experts))
        for seed in range(8):
            values = drawn(space, seed)
            found = weights_of(space.decode(values))
            assert found.min() > 0
            assert found.sum(axis=0) == pytest.approx(1, rel=1e-12)
            if not form:
                assert found[0, 0] == pytest.approx(
                    values["a.weight"] / sum(values[f"{name}.weight"] for name in experts)
                )


def test_shares_of_a_total() -> None:
    weight = {"product": [{"share": "mix", "curve": 2, "range": [0.02, 1], "log": True}, "total"]}
    space = deep(weight, {"total": {"range": [0, 3]}})
    values = drawn(space, 1)
    found = weights_of(space.decode(values))
    assert found.sum(axis=0) == pytest.approx(values["total"], rel=1e-12)
    start = space.weighted({"math": 0.3, "code": 0.9})
    assert start
    assert start["total"] == pytest.approx(1.2)
    assert weights_of(space.decode(start)) == pytest.approx(
        np.broadcast_to([[0.3], [0.9]], found.shape)
    )
    assert space.weighted({"math": 0.0, "code": 0.9}) is None


def test_two_kinds_of_shares() -> None:
    data = yaml.safe_load(TIES)
    share = {"share": "mix", "range": [0.1, 1]}
    cases = [{"filter": "mlp", "value": share | {"share": "other"}}, {"value": share}]
    data["models"] = [
        {"model": name, "parameters": {"weight": cases, "density": 0.5}}
        for name in ("math", "code")
    ]
    del data["holes"]
    space = space_of(data)
    assert [hole.name for hole in space.holes] == [
        f"{name}.weight[{text}]" for name in ("math", "code") for text in ("mlp", "*")
    ]
    recipe = space.decode({hole.name: 0.1 * index for index, hole in enumerate(space.holes, 1)})
    first, second = (entry.parameters["weight"] for entry in recipe.models)
    assert isinstance(first, tuple)
    assert isinstance(second, tuple)
    found = [[case.value for case in setting] for setting in (first, second)]
    assert found == [[pytest.approx(0.1 / 0.4), pytest.approx(0.2 / 0.6)],
                     [pytest.approx(0.3 / 0.4), pytest.approx(0.4 / 0.6)]]  # fmt: skip


EITHER = """
either:
  plain:
    merge_method: linear
    models: [{each: experts, parameters: {weight: {range: [0, 1]}}}]
  trimmed:
    merge_method: dare_ties
    base_model: base
    models: [{each: experts, parameters: {weight: scale, density: {range: [0.1, 1]}}}]
    parameters: {lambda: {choice: [1, 2]}}
  added:
    merge_method: task_arithmetic
    base_model: base
    models: [{each: experts, parameters: {weight: {product: [{range: [0, 2], init: 1}, scale]}}}]
init: added
holes: {scale: {range: [0, 1], init: 0.5}}
"""


def test_a_space_of_several_recipes() -> None:
    space = space_of(yaml.safe_load(EITHER), seed=9)
    names = [hole.name for hole in space.holes]
    assert names == [
        "either", "plain.math.weight", "plain.code.weight", "scale", "trimmed.math.density",
        "trimmed.code.density", "trimmed.lambda", "added.math.weight", "added.code.weight",
    ]  # fmt: skip
    chooser = space.holes[0]
    assert chooser.choices == ("plain", "trimmed", "added")
    assert chooser.init == "added"
    assert not Genome(space.holes).numeric
    values = space.initial | {"scale": 0.25}
    methods = {
        name: space.decode(values | {"either": name}).to_mapping() for name in chooser.choices
    }
    assert methods["plain"]["models"][0] == {"model": "org/math", "parameters": {"weight": 0.5}}
    assert methods["trimmed"]["models"][1]["parameters"] == {"weight": 0.25, "density": 0.55}
    assert methods["trimmed"]["parameters"] == {"lambda": 1, "seed": 9}
    assert methods["added"]["models"][0]["parameters"] == {"weight": 0.25}
    assert [one["merge_method"] for one in methods.values()] == [
        "linear", "dare_ties", "task_arithmetic",
    ]  # fmt: skip


def test_holes_of_other_recipes_do_not_count() -> None:
    space = space_of(yaml.safe_load(EITHER))
    values = space.initial | {"either": "plain"}
    plain = space.decode(values)
    for hole in space.holes:
        other = space.decode(values | {hole.name: hole.high, "either": "plain"})
        assert (other == plain) != hole.name.startswith("plain."), hole.name


def test_a_search_starts_in_the_first_recipe_that_holds_a_baseline() -> None:
    space = space_of(yaml.safe_load(EITHER))
    assert space.weighted({"math": 0.4, "code": 0.6}) == space.initial | {
        "added.math.weight": 0.8, "added.code.weight": 1.2,
    }  # fmt: skip
    data = yaml.safe_load(EITHER)
    del data["either"]["added"], data["init"]
    other = space_of(data)
    assert other.weighted({"math": 0.4, "code": 0.6}) == other.initial | {
        "plain.math.weight": 0.4, "plain.code.weight": 0.6,
    }  # fmt: skip


W = "models[0].parameters.weight"


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ({"blocks": 0, "range": [0, 1]}, f"expected 1 to 3 blocks of the layers, got 0 at {W}"),
        ({"blocks": 4, "range": [0, 1]}, "expected 1 to 3 blocks of the layers, got 4"),
        ({"blocks": 2, "curve": 2, "range": [0, 1]}, "expected either a curve or blocks, got both"),
        ({"blocks": 2, "rnge": [0, 1]}, "unknown key 'rnge'"),
        ({"share": 3, "range": [0.1, 1]}, "expected a name that the shares have in common, got 3"),
        ({"share": "mix"}, f"expected the range of a share, got nothing at {W}"),
        ({"share": "mix", "range": [0, 1]}, "expected a range above 0 for a share, got [0, 1]"),
        ({"share": "mix", "choice": [1, 2]}, "expected the range of a share"),
        ({"share": "mix", "range": [0.1, 1], "product": [1, 2]}, "unknown key 'share'"),
        ({"product": [{"share": "mix", "curve": 2, "range": [0.1, 1]},
                      {"curve": 3, "range": [0, 1]}]}, "expected curves of one shape in a product"),
    ],
)  # fmt: skip
def test_mistakes_in_holes(weight: Any, words: str) -> None:
    with pytest.raises(SpaceError) as caught:
        weight_space(weight)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_that_do_not_match() -> None:
    share = {"share": "mix", "range": [0.1, 1]}
    with pytest.raises(SpaceError, match="at least two shares, got one for mix, which is always 1"):
        deep(share, None, ["math"])
    models = [
        {"model": "math", "parameters": {"weight": share}},
        {"model": "code", "parameters": {"weight": share | {"curve": 2}}},
    ]
    data = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    with pytest.raises(SpaceError, match="expected shares of one shape for mix"):
        parse_space(data, INPUTS, Architecture(DEEP), "bfloat16", 0, PLACE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: (data.pop("either") and None) or data.update(either={}),
         "expected at least two recipes by name"),
        (lambda data: data.update(init="aded"), "unknown recipe 'aded' at init in space.yaml; did"),
        (lambda data: data.update(models=[]), "unknown key 'models' at the top of space.yaml"),
        (lambda data: data["either"].update(plain=3), "expected a mapping, got 3 at either.plain"),
        (lambda data: data["either"]["plain"].pop("merge_method"),
         "expected a merge_method, got nothing at either.plain in space.yaml"),
        (lambda data: data["either"]["plain"].update(holes={}), "unknown key 'holes' at either"),
        (lambda data: data["either"]["plain"]["models"][0].update({"each": "expert"}),
         "expected experts, got 'expert' at either.plain.models[0].each"),
        (lambda data: data["holes"].update(more={"range": [0, 1]}),
         "expected a hole that is used, got one that nothing names at holes.more"),
    ],
)  # fmt: skip
def test_mistakes_in_choices(change: Any, words: str) -> None:
    data = yaml.safe_load(EITHER)
    change(data)
    with pytest.raises(SpaceError) as caught:
        space_of(data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
