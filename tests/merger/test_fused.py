"""The fused kernel where a recipe switches its parts on and off: the bits of the eager one."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import evomerge.merger as merger_module
from evomerge.merger import Merger, inputs, materialize
from evomerge.merger.layout import WIDTH
from evomerge.merger.materialize import WORDS, ChosenKernel, fused_available, packed, spread
from tests.tiny_models import opened, parsed, recipe_of, write_family

pytestmark = [
    pytest.mark.skipif(not fused_available(torch.device("cpu")), reason="no C++ compiler"),
    pytest.mark.filterwarnings("ignore"),  # the compiler's own
]
MIXED = {"weight": [{"filter": "mlp", "value": -0.4}, {"value": [0.2, 1.9]}], "density": 0.3}
PLAIN = {"weight": 0.7, "density": [{"filter": "mlp", "value": 1.0}, {"value": 0.6}]}
SOME = [{"filter": "mlp", "value": True}, {"value": False}]
RECIPES: dict[str, dict[str, Any]] = {
    "ties": {"normalize": SOME, "elect_unweighted": SOME, "trim_whole_model": SOME},
    "della": {"normalize": SOME, "rescale": SOME, "seed": 3},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), torch.bfloat16)


@pytest.mark.parametrize("method", RECIPES)
def test_the_bits_of_the_eager_kernel(
    family: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, in pieces from the disk, and tensor by tensor."""
    own = {"a": MIXED, "b": PLAIN, "c": PLAIN}
    recipe = parsed(
        recipe_of(family, method, base_model="base", models=own, parameters=RECIPES[method])
    )
    eager = Merger(opened(family, "base", "a", "b", "c"), kernel="eager").materialize(recipe)
    monkeypatch.setattr(inputs, "_PIECE_ROWS", 5)
    for memory in ("device", "disk"):
        merger = Merger(opened(family, "base", "a", "b", "c"), kernel="fused", memory=memory)
        found = merger.materialize(recipe)
        assert all(torch.equal(found[name], eager[name]) for name in eager)
        assert all(torch.equal(tensor, eager[name]) for name, tensor in merger.stream(recipe))


def test_a_small_model_is_compiled_once_that_pays(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many elements as compiling is worth; the bits stay what they were."""
    models = opened(family, "base", "a", "b", "c")
    elements = sum(math.prod(one.shape) for one in models[0].tensors.values())
    monkeypatch.setattr(materialize, "_EAGER_ELEMENTS", 2 * elements)
    asked: list[bool] = []
    original = materialize.write_rows
    monkeypatch.setattr(
        merger_module, "write_rows", lambda *rows: (asked.append(rows[-1]), original(*rows))
    )
    recipe = parsed(recipe_of(family, "ties", base_model="base", models={"a": MIXED, "b": PLAIN}))
    merger = Merger(models)
    found = []
    for _ in range(5):
        found.append({name: one.clone() for name, one in merger.materialize(recipe).items()})
    assert [fused for fused, _ in itertools.groupby(asked)] == [False, True]
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in one)
    kernel = ChosenKernel("eager", elements, torch.device("cpu"))
    for _ in range(9):
        kernel.merged()
    assert not kernel.fused


def test_bits_are_packed_and_spread() -> None:
    bits = torch.rand(7, WIDTH, generator=torch.Generator().manual_seed(0)) < 0.3
    words = packed(bits)
    assert words.dtype == torch.int32
    assert words.shape == (7, WORDS)
    for some in (spread(words), torch.compile(spread)(words)):
        assert torch.equal(some, -bits.int())
    assert torch.equal(spread(packed(torch.ones(1, WIDTH, dtype=torch.bool))).unique(),
                       torch.tensor([-1], dtype=torch.int32))  # fmt: skip
