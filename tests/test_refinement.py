"""Refined spaces hold the point that they are refined at, in ranges within the old ones."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.errors import Place, SpaceError
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.recipe import parse_recipe, resolve
from evomerge.refinement import Refinement
from evomerge.refinement import refine as refine_at
from evomerge.search_space import Inputs, SearchSpace
from evomerge.space_reader import parse_space
from tests.test_search_space import PLACE
from tests.tiny_models import CONFIG, llama_shapes

INPUTS = Inputs("org/base", {name: f"org/{name}" for name in ("math", "code", "chat")})
LLAMA = {
    layers: tuple(sorted(llama_shapes(CONFIG | {"num_hidden_layers": layers})))
    for layers in (1, 3, 7, 12)
}
TWO_STACKS = (
    *(
        f"{stack}.{layer}.{part}.weight"
        for stack, layers in (("encoder.layers", 3), ("decoder.layers", 8))
        for layer in range(layers)
        for part in ("self_attn.q_proj", "mlp.up_proj", "norm")
    ),
    "embed_tokens.weight",
    "lm_head.weight",
    "decoder.norm.weight",
    "odd.weight",
)
TENSORS = [*LLAMA.values(), TWO_STACKS]
OVER = (["other"], ["attention", "other"], ["mlp", "norms", "other"], ["attention", "mlp", "other"])


def space_of(data: dict[str, Any], tensors: Sequence[str]) -> SearchSpace:
    return parse_space(data, INPUTS, Architecture(tuple(tensors)), "bfloat16", 0, PLACE)


def refine(
    space: SearchSpace, values: Any, change: Refinement, architecture: Architecture
) -> SearchSpace:
    return refine_at(space, values, change, architecture, Place("study.yaml", SpaceError, "s"))


def simple(weight: Any, tensors: Sequence[str], holes: Any = None) -> SearchSpace:
    data = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"each": "experts", "parameters": {"weight": weight}}],
    } | ({} if holes is None else {"holes": holes})
    return space_of(data, tensors)


def random_space(draw: random.Random, tensors: Sequence[str]) -> SearchSpace:
    """A space with every form: curves, blocks, shares, products, grids, logarithms, choices."""
    layers = Architecture(tuple(tensors)).layers

    def form() -> dict[str, Any]:
        knots = {"curve": draw.choice([1, 2, 3, 4, 6, "layers"])}
        blocks = {"blocks": draw.randint(1, layers)}
        return draw.choice([knots, knots, blocks]) | {"over": draw.choice(OVER)}

    def scale(low: float) -> dict[str, Any]:
        own: dict[str, Any] = {"range": [low, 1.5], "init": 0.4}
        return own | draw.choice([{}, {}, {"step": 0.05}, {"log": True} if low > 0 else {}])

    one = form()
    share = {"share": "mix", "range": [0.02, 1]} | draw.choice([{}, form()])
    share |= draw.choice([{}, {"log": True}, {"step": 0.02}])
    weights = [
        scale(0),
        scale(0.01) | one,
        {"product": [scale(0), "depth"]},
        {"product": [scale(0) | one, "depth"]},
        {"product": [share, "total"]},
        share,
    ]
    chosen = draw.sample(weights, 2)
    density = draw.choice([{"range": [0.1, 1]}, {"range": [0.1, 1]} | form(), 0.5])
    first = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [{"each": "experts", "parameters": {"weight": chosen[0], "density": density}}],
        "parameters": {"normalize": {"choice": [True, False]}},
    }
    second = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"each": "experts", "parameters": {"weight": chosen[1]}}],
    }
    if share in chosen[:1] or weights[4] in chosen[:1]:
        second["models"] = [{"each": "experts", "parameters": {"weight": scale(0)}}]
    holes = {
        "depth": {"range": [0.3, 2]} | one,
        "total": {"range": [0.2, 2.5]},
    }
    text = str([first, second])
    data = {"either": {"a": first, "b": second}, "init": draw.choice("ab")}
    named = {name: hole for name, hole in holes.items() if f"'{name}'" in text}
    return space_of(data | {"holes": named}, tensors)


def drawn(space: SearchSpace, draw: random.Random) -> dict[str, Any]:
    """A random point, at the ends of ranges now and then."""
    unit = [draw.choice([0.0, 1.0, *(draw.random() for _ in range(6))]) for _ in space.holes]
    return Genome(space.holes).from_unit(unit)


def tables(space: SearchSpace, values: dict[str, Any], tensors: Sequence[str]) -> Any:
    """The method and its parameters for every tensor, after the recipe has been written."""
    recipe = parse_recipe(space.decode(values).to_mapping(), PLACE)
    found = resolve(recipe, tensors)
    return (
        recipe.merge_method,
        list(found),
        np.concatenate([np.atleast_2d(one) for one in found.values()]),
    )


def same(one: Any, other: Any) -> bool:
    return one[:2] == other[:2] and np.allclose(one[2], other[2], rtol=1e-12, atol=1e-13)


def holds(hole: Hole) -> bool:
    """Whether a hole's own values hold its init, on its grid."""
    if hole.choices:
        return hole.init in hole.choices
    if hole.step is None:
        return bool(hole.low <= hole.init <= hole.high and hole.low < hole.high)
    count = (hole.high - hole.low) / hole.step
    at = (hole.init - hole.low) / hole.step
    return abs(at - round(at)) < 1e-6 and 0 <= round(at) <= round(count) >= 1


@pytest.mark.parametrize("part", range(6))
def test_a_refined_space_begins_at_the_same_tables(part: int) -> None:
    """Stage upon stage, in any order, of random spaces at random points."""
    assert sum(refine_at_random(10 * part + seed) for seed in range(10)) > 8


def refine_at_random(seed: int) -> int:
    """Return how many stages changed a random space, each checked."""
    changed = 0
    draw = random.Random(seed)
    tensors = draw.choice(TENSORS)
    space = random_space(draw, tensors)
    first = {hole.name: hole for hole in space.holes}
    for _ in range(4):
        values = drawn(space, draw)
        change = Refinement(
            knots=draw.choice([1, 2, 2, 3]),
            narrow=draw.choice([1.0, 0.5, 0.01]),
            split_groups=draw.random() < 0.4,
            fix_choices=draw.random() < 0.2,
        )
        try:
            finer = refine(space, values, change, Architecture(tensors))
        except SpaceError as problem:  # nothing that could change
            if ", got no" not in str(problem):
                raise
            continue
        changed += 1
        assert refine(space, values, change, Architecture(tensors)) == finer
        assert same(tables(finer, finer.initial, tensors), tables(space, values, tensors))
        assert all(map(holds, finer.holes))
        names = [hole.name for hole in finer.holes]
        assert len(set(names)) == len(names)
        if change.knots == 1 and not change.split_groups and not change.fix_choices:
            assert names == [hole.name for hole in space.holes]
        for hole in finer.holes:
            like = first.get(hole.name)
            if like is not None and not like.choices:
                assert like.low <= hole.low < hole.high <= like.high
                assert (hole.step, hole.log, hole.kind) == (like.step, like.log, like.kind)
        for _ in range(3):  # every hole of the new space is a number of some recipe
            tables(finer, drawn(finer, draw), tensors)
        space = finer
    return changed


KNOTS = Refinement(knots=2)


def depths_of(count: int) -> np.ndarray[Any, Any]:
    return np.linspace(0, 1, count)


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_a_finer_curve_is_linear_between_the_old_knots(count: int) -> None:
    tensors = LLAMA[12]
    space = simple({"curve": count, "range": [0, 2]}, tensors)
    values = drawn(space, random.Random(count))
    finer = refine(space, values, KNOTS, Architecture(tensors))
    own = [hole for hole in finer.holes if hole.name.startswith("math.")]
    assert [hole.name for hole in own] == [
        f"math.weight.other.{at / 2:g}" for at in range(2 * count - 1)
    ]
    old = [values[f"math.weight.other.{at}"] for at in range(count)]
    wanted = np.interp(depths_of(2 * count - 1), depths_of(count), old)
    assert [hole.init for hole in own] == pytest.approx(list(wanted), abs=1e-14)


def test_every_new_knot_is_a_dimension_of_its_own() -> None:
    tensors = LLAMA[12]
    space = simple({"curve": 3, "range": [0, 2]}, tensors)
    finer = refine(space, space.initial, KNOTS, Architecture(tensors))
    before = tables(finer, finer.initial, tensors)
    for hole in finer.holes:
        after = tables(finer, finer.initial | {hole.name: 2.0}, tensors)
        assert not same(before, after), hole.name


def test_more_knots_than_layers_are_layers() -> None:
    tensors = LLAMA[7]
    space = simple({"curve": 5, "over": ["attention", "other"], "range": [0, 2]}, tensors)
    values = drawn(space, random.Random(1))
    finer = refine(space, values, KNOTS, Architecture(tensors))
    assert sum(hole.name.startswith("math.weight.attention") for hole in finer.holes) == 7
    assert same(tables(finer, finer.initial, tensors), tables(space, values, tensors))
    with pytest.raises(SpaceError, match="a curve or blocks, fewer than layers"):
        refine(finer, finer.initial, KNOTS, Architecture(tensors))


def test_a_single_knot_becomes_two() -> None:
    tensors = LLAMA[7]
    space = simple({"curve": 1, "range": [0, 2]}, tensors)
    finer = refine(space, space.initial | {"math.weight.other": 0.3}, KNOTS, Architecture(tensors))
    assert [hole.name for hole in finer.holes[:2]] == ["math.weight.other.0", "math.weight.other.1"]
    assert [hole.init for hole in finer.holes[:2]] == [0.3, 0.3]


def test_blocks_fall_into_smaller_ones() -> None:
    tensors = LLAMA[12]
    space = simple({"blocks": 3, "range": [0, 2]}, tensors)
    values = drawn(space, random.Random(2))
    finer = refine(space, values, KNOTS, Architecture(tensors))
    assert [hole.name for hole in finer.holes[:6]] == [
        f"math.weight.other.{at / 2:g}" for at in range(6)
    ]
    by_hand = simple({"blocks": 6, "range": [0, 2]}, tensors)
    point = dict(zip([h.name for h in by_hand.holes], finer.initial.values(), strict=True))
    assert same(tables(finer, finer.initial, tensors), tables(by_hand, point, tensors))


def test_groups_of_other_get_curves_of_their_own() -> None:
    tensors = LLAMA[3]
    space = simple({"curve": 2, "over": ["attention", "other"], "range": [0, 2]}, tensors)
    values = drawn(space, random.Random(3))
    finer = refine(space, values, Refinement(split_groups=True), Architecture(tensors))
    own = {name: value for name, value in finer.initial.items() if name.startswith("math.")}
    start, end = (values[f"math.weight.other.{at}"] for at in (0, 1))
    assert own == {
        "math.weight.attention.0": values["math.weight.attention.0"],
        "math.weight.attention.1": values["math.weight.attention.1"],
        "math.weight.mlp.0": start,
        "math.weight.mlp.1": end,
        "math.weight.norms.0": start,
        "math.weight.norms.1": end,
        "math.weight.embeddings": start,
        "math.weight.head": end,
    }
    again = Refinement(split_groups=True)
    with pytest.raises(SpaceError, match="a curve over other that can be split, got none"):
        refine(finer, finer.initial, again, Architecture(tensors))


def test_a_narrower_range_lies_around_the_point_and_in_the_old_range() -> None:
    tensors = LLAMA[1]
    data = {
        "product": [
            {"range": [0, 2]},
            {"range": [0, 2]},
            {"range": [0.1, 10], "log": True},
            {"range": [0.1, 1], "step": 0.01},
            {"range": [0.1, 1], "step": 0.3},
        ]
    }
    space = simple(data, tensors)
    point = [0.25, 1.0, 1.0, 0.96, 0.4]
    values = space.initial | {f"math.weight.{at}": value for at, value in enumerate(point)}
    finer = refine(space, values, Refinement(narrow=0.5), Architecture(tensors))
    found = [(hole.low, hole.high) for hole in finer.holes[:5]]
    assert found == [
        (0, 1), (0.5, 1.5), pytest.approx((10**-0.5, 10**0.5)), (0.55, 1.0), (0.1, 0.7),
    ]  # fmt: skip
    assert list(finer.initial.values())[:5] == point


def test_fixed_choices_leave_the_branch_and_its_numbers() -> None:
    models = [{"each": "experts", "parameters": {"weight": {"range": [0, 1]}}}]
    data: dict[str, Any] = {
        "either": {
            "plain": {"merge_method": "linear", "models": models},
            "trimmed": {
                "merge_method": "ties",
                "base_model": "base",
                "models": models,
                "parameters": {"normalize": {"choice": [True, False]}},
            },
        }
    }
    tensors = LLAMA[1]
    space = space_of(data, tensors)
    values = space.initial | {"either": "trimmed", "trimmed.normalize": False}
    fix = Refinement(fix_choices=True)
    finer = refine(space, values, fix, Architecture(tensors))
    assert [hole.name for hole in finer.holes] == [
        f"trimmed.{name}.weight" for name in ("math", "code", "chat")
    ]
    assert finer.decode(finer.initial) == space.decode(values)
    with pytest.raises(SpaceError, match=r"a choice to fix, got none at s\.choices in study"):
        refine(finer, finer.initial, fix, Architecture(tensors))


def test_nothing_but_choices_cannot_be_fixed() -> None:
    tensors = LLAMA[1]
    space = simple({"choice": [0.1, 0.5]}, tensors)
    with pytest.raises(SpaceError, match="something to search beside the choices, got nothing"):
        refine(space, space.initial, Refinement(fix_choices=True), Architecture(tensors))


def test_curves_that_multiply_each_other_or_have_a_step_stay() -> None:
    tensors = LLAMA[12]
    curve = {"curve": 3, "range": [0.5, 2]}
    for weight in ({"product": [curve, "depth"]}, {"product": [curve | {"step": 0.1}, 1]}):
        holes = {"depth": curve} if "depth" in weight["product"] else None
        space = simple(weight, tensors, holes)
        with pytest.raises(SpaceError, match="no step and no curve as a factor, got none"):
            refine(space, space.initial, KNOTS, Architecture(tensors))
