"""Inputs on the device, in host memory or on disk, whole or in pieces: the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints import open_checkpoint
from evomerge.merger import Merger, inputs, lines, masks, measures
from evomerge.merger.inputs import choose_memory
from evomerge.merger.layout import WIDTH
from tests.tiny_models import (
    PLACE,
    base_weights,
    expert_weights,
    opened,
    parsed,
    recipe_of,
    weights,
    write_checkpoint,
)

CPU = torch.device("cpu")
OWN = {"weight": [0.2, 0.9], "density": 0.37}
THREE: dict[str, Any] = {"models": dict.fromkeys("abc", OWN)}
BARE: dict[str, Any] = {"models": {"a": {}, "b": {}, "c": {}}}
WEIGHTED: dict[str, Any] = {"models": {name: {"weight": 0.4} for name in "abc"}}
TWO: dict[str, Any] = {"models": {name: {"weight": 0.4} for name in "ab"}}
BASE = {"base_model": "base"}
RESCALED = {"parameters": {"rescale": True}}
RECIPES: dict[str, dict[str, Any]] = {
    "linear": WEIGHTED,
    "task_arithmetic": BASE | WEIGHTED,
    "ties": BASE | THREE | RESCALED,
    "ties trimmed": BASE | THREE | {"parameters": {"trim_whole_model": True}},
    "ties unweighted": BASE | THREE | {"parameters": {"elect_unweighted": True}},
    "dare_linear": BASE | THREE,
    "dare_ties": BASE | THREE,
    "dare_ties by density": BASE | THREE | {"parameters": {"rescale_by_density": True}},
    "della": BASE | THREE,
    "della_linear": BASE | THREE,
    "breadcrumbs": BASE | THREE | RESCALED,
    "breadcrumbs_ties": BASE | THREE | RESCALED,
    "sce": BASE | BARE | {"parameters": {"select_topk": 0.31}},
    "slerp": BASE | {"models": {"a": {}}, "parameters": {"t": 0.3}},
    "nuslerp": TWO,
    "nuslerp rows": BASE | TWO | {"parameters": {"nuslerp_flatten": False}},
    "nuslerp columns": TWO | {"parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True}},
    "multislerp": WEIGHTED,
    "karcher": BARE,
    "model_stock": BASE | BARE,
    "model_stock rows": BASE
    | BARE
    | {"parameters": {"filter_wise": [{"filter": "mlp", "value": True}, {"value": False}]}},
    "nearswap": BASE | {"models": {"a": {}}, "parameters": {"t": 0.01}},
    "arcee_fusion": BASE | {"models": {"a": {}}},
    "passthrough": {"models": {"a": {}}},
}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of three dtypes, one of them of two, one of them in shards; integers beside them."""
    folder = tmp_path_factory.mktemp("mixed")
    base = base_weights() | {"position_ids": torch.arange(9)}
    extra = torch.randn(5 * WIDTH + 3, generator=torch.Generator().manual_seed(1))
    dtypes = {"base": "bfloat16", "a": "float16", "b": "float32", "c": "bfloat16"}
    for seed, (name, dtype) in enumerate(dtypes.items()):
        tensors = {key: one for key, one in base.items() if one.is_floating_point()}
        moved = expert_weights(tensors | {"extra": extra}, seed)
        stored = {
            key: one.to(torch.float16 if name == "c" and "mlp" in key else getattr(torch, dtype))
            for key, one in moved.items()
        }
        write_checkpoint(folder / name, stored | {"position_ids": base["position_ids"]})
    return folder


def recipe(family: Path, name: str) -> dict[str, Any]:
    return recipe_of(family, name.partition(" ")[0], out_dtype="bfloat16", **RECIPES[name])


def merger_of(data: dict[str, Any], **options: Any) -> Merger:
    found = parsed(data)
    refs = dict.fromkeys([found.donor, *found.inputs])
    return Merger([open_checkpoint(ref, PLACE) for ref in refs], result_dtype="bfloat16", **options)


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_bits_wherever_inputs_lie(
    family: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = recipe(family, name)
    device = merger_of(data, memory="device", keep=False)
    wanted = {key: one.clone() for key, one in device.materialize(parsed(data)).items()}
    assert device.memory == "device"
    for memory, rows in (("host", 2048), ("disk", 2048), ("disk", 3), ("disk", 1)):
        monkeypatch.setattr(inputs, "_PIECE_ROWS", rows)
        merger = merger_of(data, memory=memory, keep=False)
        assert merger.memory == memory
        found = merger.materialize(parsed(data))
        assert list(found) == list(wanted)
        for key, tensor in found.items():
            assert tensor.dtype == wanted[key].dtype
            assert torch.equal(tensor, wanted[key]), (memory, rows, key)
        assert merger.digest() == device.digest()
        assert dict(merger.fingerprints) == dict(device.fingerprints)


@pytest.mark.parametrize("memory", ["device", "disk"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_stream_gives_the_candidate_tensor_by_tensor(
    family: Path, name: str, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "_PIECE_ROWS", 3)
    data = recipe(family, name)
    merger = merger_of(data, memory=memory)
    whole = merger.materialize(parsed(data))
    kept = {key: one.clone() for key, one in whole.items()}
    streamed = list(merger.stream(parsed(data)))
    assert [key for key, _ in streamed] == sorted(kept)
    for key, tensor in streamed:
        assert torch.equal(tensor, kept[key])
        assert torch.equal(whole[key], kept[key])
        assert key == "position_ids" or tensor.data_ptr() != whole[key].data_ptr()


EXACT = [
    "ties", "ties trimmed", "dare_linear", "della", "breadcrumbs", "arcee_fusion",
    "nuslerp columns", "nuslerp rows",
]  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_statistics_in_small_steps(
    family: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors are measured in steps, here smaller than they are; sums may round otherwise."""
    data = recipe(family, name)
    if "rescale" in {one.name for one in parsed(data).method.parameters}:
        data["parameters"] = data.get("parameters", {}) | {"rescale": False}
    merger = merger_of(data, keep=False)
    wanted = {key: one.clone() for key, one in merger.materialize(parsed(data)).items()}
    for module in (measures, masks, lines):
        monkeypatch.setattr(module, "CHUNK", WIDTH)
    found = merger_of(data, keep=False, memory="disk").materialize(parsed(data))
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_stream_needs_no_output(family: Path) -> None:
    data = recipe(family, "linear")
    merger = merger_of(data, memory="disk")
    assert len(dict(merger.stream(parsed(data)))) == len(weights(family, "base"))
    assert "_output" not in vars(merger)


def test_two_recipes_by_turns(family: Path) -> None:
    """Nothing of one candidate is left in the next."""
    for memory in ("device", "disk"):
        chosen = [name for name in RECIPES if "base_model" in RECIPES[name]]
        merger = Merger(opened(family, "base", "a", "b", "c"), result_dtype="bfloat16",
                        memory=memory)  # fmt: skip
        first = {}
        for name in chosen * 2:
            merger.materialize(parsed(recipe(family, name)))
            assert first.setdefault(name, merger.digest()) == merger.digest()
        assert len(set(first.values())) == len(chosen)


def test_inputs_are_read_where_they_lie(family: Path) -> None:
    for memory in ("device", "host", "disk"):
        merger = Merger(opened(family, "base", "a", "c"), memory=memory)
        for checkpoint in opened(family, "base", "a", "c"):
            held = merger.input(checkpoint.ref)
            for name, stored in weights(family, Path(checkpoint.ref.path).name).items():
                assert held[name].dtype == stored.dtype
                assert torch.equal(held[name], stored)


def test_where_inputs_lie_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_free_memory", lambda: 10 << 30)
    assert choose_memory("auto", {CPU: 4 << 30}, {CPU: 3 << 30}) == "device"
    assert choose_memory("auto", {CPU: 8 << 30}, {CPU: 3 << 30}) == "disk"
    assert choose_memory("disk", {CPU: 1}, {CPU: 1}) == "disk"
    assert choose_memory("device", {CPU: 1 << 50}, {CPU: 1}) == "device"


def test_inputs_lie_on_several_gpus_where_each_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (torch.device(f"cuda:{number}") for number in range(2))
    free = {small: 24 << 30, large: 80 << 30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 0))
    monkeypatch.setattr(inputs, "_free_memory", lambda: 100 << 30)
    outputs = {small: 5 << 30, large: 5 << 30}
    assert choose_memory("auto", {small: 15 << 30, large: 60 << 30}, outputs) == "device"
    assert choose_memory("auto", {small: 18 << 30, large: 30 << 30}, outputs) == "host"
    assert choose_memory("auto", {small: 18 << 30, large: 90 << 30}, outputs) == "disk"
