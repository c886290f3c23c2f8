"""The merger: layout, restricted mergers, dtypes, integers, what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from evomerge.checkpoints import ModelRef, open_checkpoint
from evomerge.errors import CheckpointError, RecipeError
from evomerge.merger import Merger, materialize, tensor_digest
from evomerge.merger.layout import WIDTH, plan_layout
from evomerge.merger.materialize import choose_kernel
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
    layout = plan_layout(opened(family, "base"), ["model.norm.weight", "lm_head.weight"], None,
                         torch.device("cpu"))  # fmt: skip
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


@pytest.mark.parametrize("method", ["ties", "dare_ties", "slerp", "linear"])
def test_a_merger_of_a_few_tensors_gives_the_bits_of_the_whole(family: Path, method: str) -> None:
    """Gradients are placed by all layers, masks by names, whatever part of a model is merged."""
    if method == "slerp":
        data = recipe_of(family, method, base_model="base", models={"a": {}},
                         parameters={"t": [0, 1]})  # fmt: skip
    elif method == "linear":
        data = recipe_of(family, method, models={name: {"weight": [0.2, 0.9]} for name in "abc"})
    else:
        data = ties(family) | {"merge_method": method}
    whole = merged(data)
    for names in (["model.layers.1.mlp.up_proj.weight"], list(whole)[::-3]):
        part = merged(data, names=names)
        assert set(part) == set(names)
        for name in names:
            assert torch.equal(part[name], whole[name]), name


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


def test_integers_are_copied_and_must_be_the_same(tmp_path: Path) -> None:
    numbers = {"ids": torch.arange(7), "flags": torch.tensor([True, False]), "x": torch.ones(3)}
    for name in ("a", "b"):
        write_checkpoint(tmp_path / name, numbers)
    models = {"a": {"weight": 1}, "b": {"weight": 1}}
    data = recipe_of(tmp_path, "linear", models=models, out_dtype="bfloat16")
    found = merged(data)
    assert torch.equal(found["ids"], torch.arange(7))
    assert found["flags"].dtype == torch.bool
    assert found["x"].dtype == torch.bfloat16
    only = merged(data, names=["ids"])
    assert torch.equal(only["ids"], torch.arange(7))
    write_checkpoint(tmp_path / "b", numbers | {"ids": torch.arange(1, 8)})
    with pytest.raises(CheckpointError, match=f"got others in ids of {tmp_path}/b"):
        merged(data)


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    odd = {"scale": torch.tensor(2.0), "none": torch.zeros(0, 3), "row": torch.ones(1, WIDTH + 1)}
    for name, factor in (("base", 1.0), ("a", 3.0)):
        write_checkpoint(tmp_path / name, {key: one * factor for key, one in odd.items()})
    for method in ("ties", "dare_ties", "task_arithmetic"):
        own = {"weight": 0.5}
        data = recipe_of(tmp_path, method, base_model="base", models={"a": own},
                         parameters={"normalize": False})  # fmt: skip
        found = merged(data)
        assert found["scale"].shape == ()
        assert float(found["scale"]) == 4.0
        assert found["none"].shape == (0, 3)
        assert torch.equal(found["row"], torch.full((1, WIDTH + 1), 2.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inputs_that_are_not_finite_are_named(tmp_path: Path, bad: float) -> None:
    base = base_weights()
    write_checkpoint(tmp_path / "base", base)
    base["model.norm.weight"][3] = bad
    write_checkpoint(tmp_path / "a", base)
    with pytest.raises(CheckpointError, match=f"model.norm.weight of {tmp_path}/a"):
        Merger(opened(tmp_path, "base", "a"))


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


def test_a_shard_is_merged_by_the_kernel_of_the_whole(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def noting(choice: str, elements: int, device: torch.device) -> bool:
        chosen.append(elements)
        return False

    monkeypatch.setattr("evomerge.merger.choose_kernel", noting)
    merged(ties(family))
    merged(ties(family), names=["lm_head.weight"])
    assert chosen == [sum(tensor.numel() for tensor in weights(family, "a").values())] * 2


def test_small_models_are_merged_without_a_compiler() -> None:
    device = torch.device("cpu")
    assert not choose_kernel("auto", 10**6, device)
    assert choose_kernel("fused", 10, device)
    assert not choose_kernel("eager", 10**12, device)
