"""The merger: layout, restricted mergers, dtypes, integers, what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from evomerge.checkpoints import ModelRef, open_checkpoint
from evomerge.errors import RecipeError
from evomerge.merger import Merger, materialize
from evomerge.merger.digests import tensor_digest
from evomerge.merger.layout import WIDTH, plan_layout
from evomerge.merger.materialize import ChosenKernel
from tests.tiny_models import (
    PLACE,
    base_weights,
    expert_weights,
    merged,
    opened,
    parsed,
    recipe_of,
    weights,
    write_checkpoint,
    write_family,
)

OWN = {"weight": [0.2, 0.9], "density": 0.3}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"))


def ties(folder: Path, **fields: Any) -> dict[str, Any]:
    return recipe_of(folder, "ties", base_model="base", models=dict.fromkeys("abc", OWN), **fields)


def test_rows_of_a_fixed_width(family: Path) -> None:
    names = ["model.norm.weight", "lm_head.weight"]
    layout = plan_layout(opened(family, "base"), names, None, [torch.device("cpu")])
    (block,) = layout.blocks
    small, large = block.slots
    assert (small.rows, small.elements, small.shape) == (1, 20, (20,))
    assert (large.start, large.rows, large.elements) == (1, 3, 131 * 20)
    assert block.row_tensor.tolist() == [0, 1, 1, 1]
    assert block.row_index.tolist() == [0, 0, WIDTH, 2 * WIDTH]


def test_the_output_is_rewritten_in_place(family: Path) -> None:
    """The live model's parameters are views of it."""
    merger = Merger(opened(family, "base", "a", "b", "c"))
    output = merger.output["lm_head.weight"]
    address = output.data_ptr()
    merger.materialize(parsed(ties(family)))
    first = output.clone()
    data = ties(family, parameters={"lambda": 0.5})
    found = merger.materialize(parsed(data))["lm_head.weight"]
    assert found.data_ptr() == address
    assert not torch.equal(first, output)
    merger.materialize(parsed(ties(family)))
    assert torch.equal(first, output)


def test_inputs_stay_as_they_are(family: Path) -> None:
    merger = Merger(opened(family, "base", "a", "b", "c"))
    merger.materialize(parsed(ties(family)))
    for name in ("base", "a", "b", "c"):
        held = merger.input(ModelRef(str(family / name)))
        for tensor, stored in weights(family, name).items():
            assert torch.equal(held[tensor], stored)


def test_other_models_beside_those_of_the_recipe_change_nothing(family: Path) -> None:
    data = recipe_of(family, "slerp", base_model="b", models={"c": {}}, parameters={"t": 0.3})
    alone = merged(data)
    beside = Merger(opened(family, "base", "a", "c", "b")).materialize(parsed(data))
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


@pytest.mark.parametrize("out", ["float32", "float16", "bfloat16"])
def test_arithmetic_is_float32_rounded_once(tmp_path: Path, out: str) -> None:
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        write_family(tmp_path / name, dtype)
    for stored in ("f16", "bf16"):
        exact = merged(ties(tmp_path / stored, out_dtype="float32"))
        rounded = merged(ties(tmp_path / stored, out_dtype=out))
        for name, tensor in rounded.items():
            assert tensor.dtype == getattr(torch, out)
            assert torch.equal(tensor, exact[name].to(tensor.dtype))


def test_inputs_of_different_dtypes(tmp_path: Path) -> None:
    """Each input keeps its dtype in memory; the merge is that of their exact values."""
    base = base_weights()
    models = {
        "base": {name: one.bfloat16() for name, one in base.items()},
        "a": {name: one.half() for name, one in expert_weights(base, 0).items()},
        "b": expert_weights(base, 1),
        "c": {  # two dtypes in one file
            name: one.bfloat16() if "mlp" in name else one.half()
            for name, one in expert_weights(base, 2).items()
        },
    }
    for name, tensors in models.items():
        write_checkpoint(tmp_path / "mixed" / name, tensors)
        exact = {key: tensor.float() for key, tensor in tensors.items()}
        write_checkpoint(tmp_path / "exact" / name, exact)
    mixed, exact = (
        merged(ties(tmp_path / name, out_dtype="float32")) for name in ("mixed", "exact")
    )
    assert all(torch.equal(mixed[name], exact[name]) for name in exact)
    kept = Merger(opened(tmp_path / "mixed", "c", "base")).output
    assert kept["lm_head.weight"].dtype == torch.float16
    assert kept["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16


def test_float64_inputs_are_rounded_to_float32(tmp_path: Path) -> None:
    base = base_weights()
    for name, tensors in {"base": base, "a": expert_weights(base, 0)}.items():
        write_checkpoint(tmp_path / name, {key: one.double() for key, one in tensors.items()})
    data = recipe_of(tmp_path, "linear", models={"a": {"weight": 1}, "base": {"weight": 0}})
    assert torch.equal(merged(data)["lm_head.weight"], expert_weights(base, 0)["lm_head.weight"])


@pytest.mark.parametrize("memory", ["device", "disk"])
def test_scalars_and_empty_tensors(tmp_path: Path, memory: Any) -> None:
    odd = {
        "scale": torch.tensor(2.0),
        "none": torch.zeros(0, 3),
        "nor": torch.zeros(3, 0),
        "row": torch.ones(1, WIDTH + 1),
    }
    for name, factor in (("base", 1.0), ("a", 3.0)):
        write_checkpoint(tmp_path / name, {key: one * factor for key, one in odd.items()})
    for method in ("ties", "dare_ties", "della", "breadcrumbs", "task_arithmetic"):
        own = {"weight": 0.5}
        data = recipe_of(tmp_path, method, base_model="base", models={"a": own},
                         parameters={"normalize": False})  # fmt: skip
        found = merged(data, memory=memory)
        assert found["nor"].shape == (3, 0)
        assert found["scale"].shape == ()
        assert float(found["scale"]) == 4.0
        assert found["none"].shape == (0, 3)
        assert torch.equal(found["row"], torch.full((1, WIDTH + 1), 2.0))


LINED: dict[str, dict[str, Any]] = {
    "nuslerp": {"models": {"a": {"weight": 1}, "base": {"weight": 1}},
                "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": [True, False]}},
    "model_stock": {"base_model": "base", "models": {"a": {}, "b": {}},
                    "parameters": {"filter_wise": True}},
    "arcee_fusion": {"base_model": "base", "models": {"a": {}}},
    "della": {"base_model": "base", "models": {"a": {"weight": 1, "density": 0.5}}},
    "sce": {"base_model": "base", "models": {"a": {}, "b": {}},
            "parameters": {"select_topk": 0.5}},
}  # fmt: skip


@pytest.mark.parametrize("method", LINED)
def test_empty_tensors_have_no_statistics(tmp_path: Path, method: str) -> None:
    for name in ("base", "a", "b"):
        shapes = {"none": (0, 3), "nor": (3, 0), "neither": (0,), "deep": (2, 0, 4)}
        write_checkpoint(tmp_path / name, {key: torch.zeros(size) for key, size in shapes.items()})
    found = merged(recipe_of(tmp_path, method, **LINED[method]))
    assert {key: tuple(one.shape) for key, one in found.items()} == shapes


def test_a_model_that_is_not_loaded_is_refused(family: Path) -> None:
    with pytest.raises(RecipeError, match="expected one of the loaded models"):
        Merger(opened(family, "base", "a")).materialize(parsed(ties(family)))


def test_a_recipe_that_names_no_value_for_a_tensor_is_refused(family: Path) -> None:
    own = {"weight": [{"filter": "mlp", "value": 0.3}]}
    data = recipe_of(family, "linear", models=dict.fromkeys("ab", own))
    with pytest.raises(
        RecipeError, match=r"value of weight for every tensor, got none for lm_head"
    ):
        merged(data)


def test_digests_tell_bits_names_shapes_and_dtypes_apart() -> None:
    one = torch.tensor([[0.0, 1.0]])
    others = [one.reshape(2), -one, one.to(torch.bfloat16), one + 1e-7, torch.tensor([[-0.0, 1.0]])]
    assert len({tensor_digest(tensor) for tensor in [one, *others]}) == 6
    assert tensor_digest(one.expand(3, 2)) == tensor_digest(one.repeat(3, 1))


def test_fingerprints_are_of_the_content(family: Path, tmp_path: Path) -> None:
    copy = write_checkpoint(tmp_path / "copy", weights(family, "a"))
    changed = weights(family, "a")
    changed["lm_head.weight"][0, 0] += 1e-6
    write_checkpoint(tmp_path / "changed", changed)
    refs = [ModelRef(str(path)) for path in (family / "a", copy, tmp_path / "changed")]
    prints = Merger([open_checkpoint(ref, PLACE) for ref in refs]).fingerprints
    assert prints[refs[0]] == prints[refs[1]]
    assert prints[refs[0]] != prints[refs[2]]


def test_a_compiler_that_fails_is_done_without(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def broken(*arguments: object) -> None:
        tried.append(arguments)
        raise TorchDynamoException("no Python.h")

    monkeypatch.setattr(materialize, "_compiled", lambda *arguments: broken)
    monkeypatch.setattr(materialize, "_WORTH_COMPILING", 1000)
    eager = merged(ties(family), kernel="eager")
    merger = Merger(opened(family, "base", "a", "b", "c"))
    for _ in range(2):
        found = merger.materialize(parsed(ties(family)))
        assert all(torch.equal(found[name], eager[name]) for name in eager)
    assert len(tried) == 1
    with pytest.raises(TorchDynamoException):
        merged(ties(family), kernel="fused")


def test_small_models_are_merged_without_a_compiler() -> None:
    device = torch.device("cpu")
    assert not ChosenKernel("auto", 10**6, device).fused
    assert ChosenKernel("fused", 10, device).fused
    assert not ChosenKernel("eager", 10**12, device).fused
