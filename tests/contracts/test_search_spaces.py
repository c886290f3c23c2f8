"""Every file of search_spaces/ is a space whose points are legal recipes, here and in mergekit."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evomerge.errors import Place, SpaceError
from evomerge.genome import Genome
from evomerge.merger import Merger
from evomerge.merger.prepare import GRID
from evomerge.module_groups import Architecture
from evomerge.recipe import Recipe, parse_recipe, resolve
from evomerge.search_space import EITHER, Inputs, SearchSpace
from evomerge.space_reader import load_space, parse_space, space_folder
from tests.mergekit_oracle import relative_error, run_mergekit, ulps_of
from tests.reference import expected
from tests.tiny_models import PLACE as RECIPE_PLACE
from tests.tiny_models import llama_shapes, opened, weights, write_family

PLACE = Place("the registry", SpaceError)
FILES = sorted(path.stem for path in space_folder().glob("*.yaml"))
NAMES = tuple(sorted(llama_shapes()))
FIXED = ("slerp",)  # methods of two models
EXPERTS = {"slerp": (1, 2), "shares": (2, 3)}  # how many a space takes, where not any number
CASES = [(name, experts) for name in FILES for experts in EXPERTS.get(name, (1, 2, 3))]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), torch.bfloat16)


def space_of(name: str, experts: int, folder: Path = Path("/models")) -> SearchSpace:
    data, place = load_space(name, Path(), PLACE)
    named = {expert: str(folder / expert) for expert in list("abc")[:experts]}
    inputs = Inputs(str(folder / "base"), named)
    return parse_space(data, inputs, Architecture(NAMES), "bfloat16", 5, place)


def points(space: SearchSpace, count: int) -> list[dict[str, Any]]:
    """Values at the init, the ends, and a few points between."""
    genome = Genome(space.holes)
    draw = random.Random(len(space.holes))
    inner = [[draw.random() for _ in space.holes] for _ in range(count)]
    ends = [[0.0] * len(genome), [1.0] * len(genome)]
    return [space.initial] + [genome.from_unit(vector) for vector in ends + inner]


def test_there_is_a_space_for_every_method() -> None:
    for method in ("linear", "task_arithmetic", "ties", "dare_ties", "slerp", "per_layer"):
        assert method in FILES


@pytest.mark.parametrize("name", FILES)
def test_the_file_says_what_it_is(name: str) -> None:
    text = (space_folder() / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert re.search(r"imension", text.partition("\nmerge_method")[0]), "how large it is"
    assert re.search(r"\d+ trials", text), "which budget suits it"
    assert len(text.splitlines()) <= 22


@pytest.mark.parametrize(("name", "experts"), CASES)
def test_its_points_are_legal_recipes(name: str, experts: int) -> None:
    space = space_of(name, experts)
    assert 2 <= len(space.holes) <= 100
    for values in points(space, 5):
        recipe = space.decode(values)
        text = recipe.to_yaml("exported")
        again = parse_recipe(yaml.safe_load(text), RECIPE_PLACE)
        assert again == recipe
        assert (recipe.dtype, recipe.out_dtype) == ("float32", "bfloat16")
        tables, tables_again = resolve(recipe, NAMES), resolve(again, NAMES)
        for key, table in tables.items():
            assert np.array_equal(table, tables_again[key])
            assert np.isfinite(table).all()


@pytest.mark.parametrize(("name", "experts"), CASES)
def test_every_hole_matters(name: str, experts: int) -> None:
    space = space_of(name, experts)
    middle = Genome(space.holes).from_unit([0.4] * len(space.holes))
    for hole in space.holes:
        branch = hole.name.partition(".")[0]
        chosen = {EITHER: branch} if any(branch == one.name for one in space.branches) else {}
        before = space.decode(middle | chosen)
        after = space.decode(middle | chosen | {hole.name: hole.high})
        if hole.name == EITHER:
            assert after.merge_method != before.merge_method
            continue
        tables = [resolve(one, NAMES) for one in (before, after)]
        assert any(not np.array_equal(tables[0][key], tables[1][key]) for key in tables[0]), hole


@pytest.mark.parametrize(("name", "experts"), CASES)
def test_densities_are_on_the_grid(name: str, experts: int) -> None:
    space = space_of(name, experts)
    for values in points(space, 20):
        for hole, value in values.items():
            assert not hole.endswith("density") or value in GRID


@pytest.mark.parametrize("name", [name for name in FILES if name not in FIXED])
def test_baselines_are_points_of_it(name: str) -> None:
    """Searches start from uniform and single weights, where the space holds them."""
    space = space_of(name, 3)
    values = space.weighted({"a": 0.5, "b": 0.5, "c": 0.5})
    assert values
    found = resolve(space.decode(values), NAMES)["weight"]
    assert found == pytest.approx(np.full_like(found, 0.5), rel=1e-9)


@pytest.mark.parametrize("name", FIXED)
def test_two_models_only(name: str) -> None:
    assert space_of(name, 1).branches[0].base_model == "/models/base"
    assert space_of(name, 2).branches[0].base_model == "/models/a"
    with pytest.raises(SpaceError, match="none for a at models"):
        space_of(name, 3)


def exported(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The recipe as a user would hand it to mergekit: written, then read back."""
    (folder / "recipe.yaml").write_text(recipe.to_yaml("exported"))
    data: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text())
    return data


@pytest.mark.filterwarnings("ignore")  # mergekit's own
@pytest.mark.parametrize("name", [name for name in FILES if name != "dare_ties"])
def test_exported_recipes_give_the_same_model_in_mergekit(
    name: str, family: Path, tmp_path: Path
) -> None:
    """In float32, measured by what is summed up: points far out amplify every rounding."""
    space = space_of(name, 2 if name in FIXED else 3, family)
    models = ("base", "a", "b", "c")
    inputs = {str(family / model): weights(family, model) for model in models}
    merger = Merger(opened(family, *models), result_dtype="float32")
    for number, values in enumerate(points(space, 2)):
        recipe = space.decode(values)
        if recipe.method.stochastic:
            continue
        data = exported(recipe, tmp_path) | {"out_dtype": "float32"}
        theirs = run_mergekit(data, tmp_path / str(number))
        ours = merger.materialize(recipe)
        exact = expected(recipe, inputs)
        assert set(ours) == set(theirs)
        compared = [(~reference.open).sum() for reference in exact.values()]
        assert sum(compared) > 0.6 * sum(tensor.numel() for tensor in ours.values())
        for tensor, mine in ours.items():
            decided = torch.from_numpy(~exact[tensor].open)
            scale = torch.from_numpy(exact[tensor].scale)[decided]
            pair = [one.reshape(-1)[decided] for one in (mine, theirs[tensor])]
            assert (ulps_of(pair[0] - pair[1], scale) <= 4).all(), tensor
            assert len(pair[0]) == 0 or relative_error(*pair) <= 1e-6
