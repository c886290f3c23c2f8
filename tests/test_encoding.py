"""Encoding: a recipe back to its point of the space, or one sentence that says why not."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge.encoding import encode
from evomerge.errors import Place, SpaceError
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.recipe import Recipe, parse_recipe, resolve
from evomerge.search_space import EITHER, Inputs, SearchSpace
from evomerge.space_reader import load_space, parse_space, space_names
from tests.test_search_space import PLACE, TIES
from tests.tiny_models import CONFIG, llama_shapes

HERE = Place("start.yaml", SpaceError)


def tensors(layers: int) -> tuple[str, ...]:
    return tuple(sorted(llama_shapes(CONFIG | {"num_hidden_layers": layers})))


def space_for(data: dict[str, Any], names: tuple[str, ...], experts: int = 2) -> SearchSpace:
    inputs = Inputs("org/base", {f"e{n}": f"org/e{n}" for n in range(experts)})
    return parse_space(data, inputs, Architecture(names), "bfloat16", 3, PLACE)


def point(space: SearchSpace, draw: random.Random) -> dict[str, Any]:
    """A random point, some of its numbers at an end of their range."""
    units = [draw.choice([0.0, 1.0]) if draw.random() < 0.15 else draw.random()
             for _ in space.holes]  # fmt: skip
    return Genome(space.holes).from_unit(units)


def written(recipe: Recipe) -> Recipe:
    return parse_recipe(yaml.safe_load(recipe.to_yaml()), HERE)


def check_same(space: SearchSpace, values: dict[str, Any], names: tuple[str, ...]) -> None:
    """Export, import and export again: every tensor's parameters are the same."""
    recipe = written(space.decode(values))
    found = encode(space, recipe, names, HERE)
    assert found.keys() == values.keys()
    if EITHER in values:  # two recipes may be one, of the same method
        assert space.branch(found).merge_method == space.branch(values).merge_method
    for hole in space.holes:
        value = found[hole.name]
        assert type(value) is type(values[hole.name])
        assert value in hole.choices if hole.choices else hole.low <= value <= hole.high
    again = resolve(space.decode(found), names)
    for name, wanted in resolve(recipe, names).items():
        np.testing.assert_allclose(again[name], wanted, rtol=2e-9, atol=2e-9)


@pytest.mark.parametrize("layers", [1, 3, 6])
@pytest.mark.parametrize("name", space_names())
def test_every_candidate_of_a_shipped_space(name: str, layers: int) -> None:
    data, _ = load_space(name, Path(), HERE)
    names = tensors(layers)
    for experts in (2,) if name == "slerp" else (2, 3):
        space = space_for(data, names, experts)
        draw = random.Random(f"{name} {layers} {experts}")
        check_same(space, space.initial, names)
        for _ in range(8):
            check_same(space, point(space, draw), names)


OVER = (["other"], ["attention", "other"], ["attention", "mlp", "other"],
        ["embeddings", "attention", "head", "other"])  # fmt: skip


class Forms:
    """Draws settings of a weight in all the forms that a space may have."""

    def __init__(self, draw: random.Random, layers: int) -> None:
        self.draw = draw
        self.holes: dict[str, Any] = {}
        self.form: dict[str, Any] = {}  # of all curves, as a product asks for
        if draw.random() < 0.5:
            over = draw.choice(OVER)
            curve = {"curve": draw.choice([1, 2, 3, 5, "layers"])}
            self.form = draw.choice([curve, {"blocks": draw.randint(1, layers)}]) | {"over": over}

    def hole(self) -> dict[str, Any]:
        low = self.draw.choice([0, 0.1, 0.5])
        kind = self.draw.random()
        if kind < 0.15:
            return {"choice": [0.25, 0.5, 1.5]}
        if kind < 0.3 and low:
            return {"range": [low, 2], "log": True}
        if kind < 0.45:
            return {"range": [low, low + 1], "step": self.draw.choice([0.1, 0.25])}
        return {"range": [low, 1.5]}

    def curve(self) -> dict[str, Any]:
        return self.form | {"range": [self.draw.choice([0, 0.2]), 2], "init": 1}

    def named(self, what: dict[str, Any]) -> str:
        name = f"h{len(self.holes)}"
        self.holes[name] = what
        return name

    def weight(self) -> Any:
        kind = self.draw.random()
        if self.form and kind < 0.25:
            return self.curve()
        if self.form and kind < 0.5:
            factors = [self.hole(), self.named(self.curve())]
            return {"product": factors + [0.5] * self.draw.randint(0, 1)}
        if kind < 0.6:
            share: Any = {"share": "mix", "range": [0.05, 1]} | self.form
            return {"product": [share, self.named({"range": [0.2, 2]})]}
        if kind < 0.7:
            return [self.hole(), self.hole(), 0.5]
        if kind < 0.85:
            return [{"filter": "mlp", "value": self.hole()}, {"value": [self.hole(), self.hole()]}]
        return self.hole()


@pytest.mark.parametrize("seed", range(60))
def test_every_candidate_of_a_random_space(seed: int) -> None:
    draw = random.Random(seed)
    layers, experts = draw.randint(1, 5), draw.randint(2, 4)
    names = tensors(layers)
    forms = Forms(draw, layers)
    weight = forms.weight()
    density = draw.choice([0.5, {"range": [0.1, 1]}, {"range": [0.1, 1], "step": 0.05}])
    data = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"each": "experts", "parameters": {"weight": weight, "density": density}}],
        "parameters": {"lambda": draw.choice([1, {"range": [0.5, 2]}]),
                       "normalize": draw.choice([False, {"choice": [True, False]}])},
    }  # fmt: skip
    if forms.holes:
        data["holes"] = forms.holes
    if weight == density == 0.5:
        return
    space = space_for(data, names, experts)
    for _ in range(4):
        check_same(space, point(space, draw), names)


def test_numbers_that_stand_alone_come_back_to_the_bit() -> None:
    names = tensors(3)
    space = space_for(yaml.safe_load(TIES), names)
    values = space.initial | {"e0.density": 0.29, "e1.density": 0.07}
    found = encode(space, written(space.decode(values)), names, HERE)
    assert (found["e0.density"], found["e1.density"]) == (0.29, 0.07)
    data = yaml.safe_load(TIES)
    data["models"][0]["parameters"]["weight"] = {"curve": 3, "range": [0, 1]}
    del data["holes"]
    space = space_for(data, names)
    drawn = point(space, random.Random(1))
    assert encode(space, written(space.decode(drawn)), names, HERE) == drawn


BY_HAND = """
merge_method: ties
base_model: org/base
models:
  - model: org/e1
    parameters: {density: 0.4, weight: 0.9}
  - model: org/base
  - model: org/e0
    parameters: {weight: [0.5, 0.6, 0.7], density: 0.25}
parameters: {normalize: false}
dtype: bfloat16
"""


def test_a_recipe_by_hand() -> None:
    """Its models in another order, the base among them, a gradient, defaults left out."""
    names = tensors(3)
    data = yaml.safe_load(TIES)
    data["models"][0]["parameters"]["weight"] = [{"range": [0, 1]}] * 3
    del data["holes"]
    space = space_for(data, names)
    recipe = parse_recipe(yaml.safe_load(BY_HAND), HERE)
    assert encode(space, recipe, names, HERE) == {
        "e0.weight.0": 0.5, "e0.weight.1": 0.6, "e0.weight.2": 0.7, "e0.density": 0.25,
        "e1.weight.0": 0.9, "e1.weight.1": 0.9, "e1.weight.2": 0.9, "e1.density": 0.4,
    }  # fmt: skip
    data["models"][0]["parameters"]["weight"] = {"curve": 3, "over": ["other"], "range": [0, 1]}
    # A curve's end is the head's too, a gradient's is not.
    words = r"got weight 0\.7 of org/e0 for model\.layers\.2\..* the nearest of the space has 0\.5"
    with pytest.raises(SpaceError, match=words):
        encode(space_for(data, names), recipe, names, HERE)


def test_masks_are_part_of_a_recipe() -> None:
    names = tensors(2)
    data, _ = load_space("dare_ties", Path(), HERE)
    space = space_for(data, names)
    whole = space.decode(space.initial).to_mapping()
    assert whole["parameters"].pop("seed") == 3
    assert encode(space, parse_recipe(whole, HERE), names, HERE) == space.initial
    whole["parameters"]["seed"] = 4
    with pytest.raises(SpaceError, match=r"got seed 4, where the nearest of the space has 3"):
        encode(space, parse_recipe(whole, HERE), names, HERE)
    del whole["parameters"]["seed"]
    whole["models"].reverse()
    with pytest.raises(SpaceError, match="expected the models org/e0, org/e1 in this order, got"):
        encode(space, parse_recipe(whole, HERE), names, HERE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merge_method": "linear", "base_model": None, "parameters": {}},
         "expected a recipe of the search space's ties, got linear"),
        ({"base_model": "org/other"}, "expected the base model org/base, got 'org/other'"),
        ({"models": [{"model": "org/e0", "parameters": {"weight": 1, "density": 0.5}}]},
         "expected the models org/e0, org/e1, got org/e0"),
        ({"parameters": {"normalize": True}},
         "got normalize 1, where the nearest of the space has 0"),
        ({"parameters": {"normalize": False, "lambda": 2}},
         "got lambda 2, where the nearest of the space has 1 at"),
        ({"density": 0.255}, "got density 0.255 of org/e1, where the nearest "
         "of the space has 0.25"),
        ({"density": 0.01}, "where the nearest of the space has 0.05"),
        ({"weight": -0.1}, "got weight -0.1 of org/e1, where"),
        ({"weight": [{"filter": "layers.1.mlp.up_proj", "value": 0.9}, {"value": 0.5}]},
         "got weight 0.9 of org/e1 for model.layers.1.mlp.up_proj.weight, where the nearest"),
        ({"tokenizer": {"source": "union"}}, "expected a recipe without a tokenizer, got one with"),
    ],
)  # fmt: skip
def test_what_a_space_does_not_hold(change: dict[str, Any], words: str) -> None:
    names = tensors(3)
    space = space_for(yaml.safe_load(TIES), names)
    own = {"weight": change.pop("weight", 0.5), "density": change.pop("density", 0.3)}
    data = {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [{"model": "org/e0", "parameters": {"weight": 0.5, "density": 0.3}},
                   {"model": "org/e1", "parameters": own}],
        "parameters": {"normalize": False},
    } | change  # fmt: skip
    if data["merge_method"] == "linear":
        for model in data["models"]:
            del model["parameters"]["density"]
    with pytest.raises(SpaceError) as caught:
        encode(space, parse_recipe(data, HERE), names, HERE)
    assert words in str(caught.value)
    assert "in start.yaml" in str(caught.value) or "of start.yaml" in str(caught.value)
