"""Every file of merge_methods/ keeps the promises of a merge method."""

import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge import merge_methods, plugins
from evomerge.errors import Place, RecipeError
from evomerge.merge_methods import MergeMethod, Parameter
from evomerge.merger import Merger, materialize
from evomerge.merger.materialize import fused_available
from tests.mergekit_oracle import ulps_of
from tests.reference import expected
from tests.tiny_models import (
    base_weights,
    merged,
    opened,
    parsed,
    recipe_of,
    weights,
    write_checkpoint,
    write_family,
)

PLACE = Place("test", RecipeError)
FILES = sorted(
    path.stem
    for path in Path(inspect.getfile(merge_methods)).parent.glob("*.py")
    if not path.stem.startswith("_")
)


def method_of(name: str) -> MergeMethod:
    return merge_methods.get(name, PLACE)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), getattr(torch, request.param))


def value_of(declared: Parameter, share: float) -> Any:
    """A value inside the search range, or the default where there is none."""
    if declared.search is None:
        return declared.default
    low, high = declared.search
    return round(low + share * (high - low), 3)


def recipe(folder: Path, name: str, flip: bool = False, **ending: Any) -> dict[str, Any]:
    """A recipe with a value of its own for every parameter; `flip` turns every switch over."""
    method = method_of(name)
    experts = list("abc")[: method.maximum or 3]
    models = {
        expert: {
            declared.name: value_of(declared, 0.3 + 0.2 * position)
            for declared in method.parameters
            if declared.scope == "model"
        }
        for position, expert in enumerate(experts)
    }
    shared = {
        declared.name: value_of(declared, 0.4)
        for declared in method.parameters
        if declared.scope == "global"
    }
    if flip:
        shared |= {
            declared.name: not declared.default
            for declared in method.parameters
            if declared.kind == "bool"
        }
    base = {"base_model": "base"} if method.base == "required" else {}
    return recipe_of(folder, name, **base, models=models, parameters=shared, **ending)


def test_the_registry_is_the_folder() -> None:
    assert plugins.names(merge_methods) == FILES
    assert {"linear", "task_arithmetic", "ties", "dare_ties", "slerp"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_declaration(name: str) -> None:
    method = method_of(name)
    module = inspect.getmodule(method.plan)
    assert module
    assert isinstance(method, MergeMethod)
    assert re.fullmatch(r"[A-Z].{20,}\.", plugins.summary(module))
    assert re.search(r"\b(19|20)\d\d\b", method.paper)
    assert re.search("section|https://", method.paper)
    assert any(letter in method.equation for letter in "Σδθλ")
    assert method.base in ("required", "optional", "unused")
    assert 1 <= method.minimum <= (method.maximum or 99)
    assert method.plan.__doc__
    assert method.kernel.__doc__
    assert method.stochastic == (method.parameter("seed") is not None)
    assert len(method.probabilities) <= 2


@pytest.mark.parametrize("name", FILES)
def test_parameters(name: str) -> None:
    declared = method_of(name).parameters
    assert len({one.name for one in declared}) == len(declared)
    for one in declared:
        assert len(one.help) >= 10
        assert one.bounds
        assert one.default is None or one.accepts(one.default)
        assert one.scope in ("global", "model")
        if one.search is not None:
            assert one.search[0] < one.search[1]
            assert all(map(one.accepts, one.search))
        if one.kind == "float":
            assert not one.accepts(float("nan"))
            assert not one.accepts(10**400)
            assert not one.accepts(True)
        assert not one.accepts("1")
        assert not one.accepts([1])


@pytest.mark.parametrize("name", FILES)
def test_copies_of_one_model_merge_into_it(name: str, tmp_path: Path) -> None:
    model = base_weights()
    for folder in ("base", "a", "b", "c"):
        write_checkpoint(tmp_path / folder, model)
    for tensor, result in merged(recipe(tmp_path, name)).items():
        assert ulps_of(result - model[tensor], model[tensor]).max() <= 2


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_float64_agrees(name: str, family: Path, flip: bool) -> None:
    data = recipe(family, name, flip)
    inputs = {str(family / model): weights(family, model) for model in ("base", "a", "b", "c")}
    exact = expected(parsed(data), inputs)
    for tensor, result in merged(data).items():
        reference = exact[tensor]
        decided = torch.from_numpy(~reference.uncertain)
        difference = (result.double().reshape(-1) - torch.from_numpy(reference.value))[decided]
        scale = torch.from_numpy(reference.scale)[decided]
        assert (ulps_of(difference, scale) <= 4).all(), tensor


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rows", [1, 3, 7, 10**6])
def test_any_split_into_rows_gives_the_same_bits(
    name: str, rows: int, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = recipe(family, name)
    whole = merged(data)
    monkeypatch.setattr(materialize, "_EAGER_ROWS", rows)
    for tensor, result in merged(data).items():
        assert bits(result).equal(bits(whole[tensor]))


@pytest.mark.parametrize("name", FILES)
def test_models_in_another_order_of_loading_give_the_same_bits(name: str, family: Path) -> None:
    data = recipe(family, name, flip=True)
    there = merged(data)
    merger = Merger(opened(family, "c", "b", "base", "a"), result_dtype="float32")
    found = merger.materialize(parsed(data))
    assert all(bits(found[tensor]).equal(bits(there[tensor])) for tensor in there)


@pytest.mark.parametrize("name", FILES)
def test_inputs_are_not_written_to(name: str, family: Path) -> None:
    data = recipe(family, name)
    first, second = merged(data), merged(data)
    assert all(bits(first[tensor]).equal(bits(second[tensor])) for tensor in first)
    method = method_of(name)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 8, generator=generator) for _ in range(method.maximum or 3)]
    base = torch.randn(2, 8, generator=generator)
    copies = [one.clone() for one in (base, *inputs)]
    ones = [torch.ones(2, 1)] * len(inputs)
    columns = defaultdict(lambda: ones)
    result = method.kernel(base, inputs, columns, lambda model: torch.full((2, 8), 0.5))
    assert result.dtype == torch.float32
    assert result.shape == (2, 8)
    assert all(map(torch.equal, copies, (base, *inputs)))
    assert all(torch.equal(one, torch.ones(2, 1)) for one in ones)


@pytest.mark.skipif(not fused_available(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", FILES)
def test_the_fused_kernel_gives_the_bits_of_the_eager_one(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write_family(tmp_path_factory.mktemp("fused"), torch.bfloat16)
    data = recipe(folder, name)
    eager, fused = merged(data, kernel="eager"), merged(data, kernel="fused")
    changed = 0
    for tensor, result in fused.items():
        assert bits(result).equal(bits(eager[tensor])), tensor
        changed += int((result != weights(folder, "c")[tensor].float()).sum())
    assert changed > 1000


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("name", FILES)
def test_one_model_is_enough_where_the_method_says_so(name: str, family: Path) -> None:
    data = recipe(family, name)
    data["models"] = data["models"][: method_of(name).minimum]
    assert all(np.isfinite(tensor.numpy()).all() for tensor in merged(data).values())


@pytest.mark.parametrize("name", FILES)
def test_names_and_defaults_are_those_of_mergekit(name: str) -> None:
    from mergekit import merge_methods as theirs

    theirs_by_name = {one.name: one.default for one in theirs.get(name).spec.parameters}
    ignored = {"density", "rescale"} if name == "task_arithmetic" else set()  # without effect there
    ours = {one.name: one.default for one in method_of(name).parameters if not one.own}
    assert set(ours) == set(theirs_by_name) - ignored
    for key, default in ours.items():
        if default is not None and theirs_by_name[key] is not None:
            assert default == theirs_by_name[key], key
    assert not {one.name for one in method_of(name).parameters if one.own} & set(theirs_by_name)
