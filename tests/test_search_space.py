"""Search spaces: holes, curves, products, names; every mistake is one sentence with its place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import InputError, Place, SpaceError
from evomerge.expressions import Hole
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.recipe import resolve
from evomerge.search_space import Inputs, SearchSpace
from evomerge.space_reader import load_space, parse_space, space_folder, space_names
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
    data = yaml.safe_load(source) if source is TIES else source
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
        depth = [
            f"depth.{group}.{knot}" for group in ("attention", "mlp", "other") for knot in (0, 1)
        ]
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
        assert weight_space({"range": [0.5, 1]}).holes[0] == Hole(
            "math.weight", "float", 0.5, 1, 0.75
        )
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
        cases = [{"filter": "mlp", "value": [{}, 0.5, "own"]}, {"value": {"init": 0.2}}]
        space = weight_space(cases, {"own": {"range": [0, 1]}})
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
        assert [hole.name for hole in space.holes][:3] == [
            f"math.weight.other.{k}" for k in range(3)
        ]

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
        del data["holes"]
        assert space_of(data).weighted({"math": 1, "code": 1}) == space_of(data).initial
        assert space_of(data).weighted({"math": 1, "code": 0.5}) is None


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
