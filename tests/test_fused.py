"""Mixtures of experts in memory: a live model has as one tensor what a checkpoint has as many."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from evomerge.adjacent import packed, whole
from evomerge.architectures import end_to_end
from evomerge.errors import CheckpointError
from evomerge.merger import Merger
from evomerge.merger.write import write_model
from evomerge.models import LiveModel
from tests.families import FAMILIES, write_models
from tests.tiny_models import opened, parsed, recipe_of

CPU = torch.device("cpu")
IDS = torch.arange(3, 25)[None]
EVEN: dict[str, Any] = {  # whose experts' tensors fill rows of the merger's buffers
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
KINDS: dict[str, Any] = {
    "rows": transformers.Qwen3MoeConfig(**EVEN),
    "parts of rows": transformers.MixtralConfig(
        **EVEN | {"intermediate_size": 40}, num_local_experts=3, tie_word_embeddings=False
    ),
    "shared and first dense": transformers.DeepseekV3Config(
        vocab_size=61, hidden_size=32, intermediate_size=40, moe_intermediate_size=32,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
        first_k_dense_replace=1, pad_token_id=0,
    ),
}  # fmt: skip


def write_experts(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write `base`, `a` and `b` with experts; returns the folder."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for seed, name in enumerate(("base", "a", "b")):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(KINDS[kind])
            for one in model.parameters():
                one.normal_(0, 0.4)
            model.to(dtype).save_pretrained(folder / name)
    return folder


def runs_of(folder: Path) -> list[tuple[str, ...]]:
    (checkpoint,) = opened(folder, "base")
    return end_to_end(
        folder / "base", {name: one.shape for name, one in checkpoint.tensors.items()}
    )


def dare(folder: Path) -> dict[str, Any]:
    own = {"weight": [0.2, 0.9], "density": 0.6}
    data = recipe_of(folder, "dare_ties", base_model="base", models={"a": own, "b": own})
    return data | {"parameters": {"seed": 5}}


@pytest.mark.parametrize("memory", ["device", "host", "disk"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_candidate_is_what_the_recipe_writes_and_transformers_load(
    kind: str, memory: Any, tmp_path: Path
) -> None:
    folder = write_experts(tmp_path, kind)
    checkpoints, recipe = opened(folder, "base", "a", "b"), parsed(dare(folder))
    merger = Merger(checkpoints, memory=memory, runs=runs_of(folder))
    model = LiveModel(folder / "base", merger.output, CPU)
    for data in ({"merge_method": "passthrough", "models": [{"model": str(folder / "a")}]}, None):
        merger.materialize(parsed(data) if data else recipe)
        if data is None:
            write_model(recipe, tmp_path / "out", "test.yaml", device=CPU)
        written = folder / "a" if data else tmp_path / "out"
        plain = transformers.AutoModelForCausalLM.from_pretrained(written).eval()
        with torch.inference_mode():
            assert torch.equal(model.logits(IDS, 22), plain(IDS).logits)
    digest = Merger(checkpoints, memory=memory)
    assert digest.materialize(recipe).keys() == merger.output.keys()
    assert digest.digest() == merger.digest()  # where tensors lie changes no bit of them


@pytest.mark.parametrize("memory", ["device", "disk"])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_run_where_they_lie(kind: str, memory: Any, tmp_path: Path) -> None:
    folder = write_experts(tmp_path, kind, torch.bfloat16)
    checkpoints = opened(folder, "base", "a")
    merger = Merger(checkpoints, memory=memory, runs=runs_of(folder))
    model = LiveModel(folder / "a", merger.input(checkpoints[1].ref), CPU)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder / "a").eval()
    with torch.inference_mode():
        assert torch.equal(model.logits(IDS, 22), plain(IDS).logits)


def test_experts_that_fill_rows_are_not_copied(tmp_path: Path) -> None:
    folder = write_experts(tmp_path, "rows")
    checkpoints = opened(folder, "base", "a")
    merger = Merger(checkpoints, runs=runs_of(folder))
    assert len(runs_of(folder)) == 4  # two layers, gates with ups and downs
    for tensors in (merger.output, merger.input(checkpoints[1].ref)):
        assert not packed(tensors, runs_of(folder))
        model = LiveModel(folder / "base", tensors, CPU)
        own = {one.untyped_storage().data_ptr() for one in model.module.parameters()}
        assert own == {one.untyped_storage().data_ptr() for one in tensors.values()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3 that sees"])
def test_models_without_experts_have_nothing_fused(family: str, tmp_path: Path) -> None:
    write_models(tmp_path, FAMILIES[family])
    assert runs_of(tmp_path) == []


def test_tensors_that_do_not_lie_end_to_end(tmp_path: Path) -> None:
    folder = write_experts(tmp_path, "rows")
    (checkpoint,) = opened(folder, "base")
    with pytest.raises(CheckpointError, match="do not lie end to end"):
        LiveModel(folder / "base", dict(checkpoint.read(checkpoint.tensors)), CPU)


def test_whole_and_packed() -> None:
    memory = torch.arange(12.0)
    first, second, third = memory[:4].view(2, 2), memory[4:8].view(2, 2), memory[8:].view(2, 2)
    joined = whole([first, second, third], (3, 2, 2))
    assert joined is not None
    assert torch.equal(joined.reshape(-1), memory)
    memory[5] = -1
    assert joined[1, 0, 1] == -1  # no copy
    assert whole([first, third], (2, 2, 2)) is None
    assert whole([first, second], (3, 2, 2)) is None
    assert whole([first, second.clone()], (2, 2, 2)) is None
    assert whole([first, second.view(torch.int32)], (2, 2, 2)) is None
    assert whole([first.T, second], (2, 2, 2)) is None
    tensors = {"x": third, "y": first.T, "z": second}
    assert packed(tensors, []) == {}
    found = packed(tensors, [("x", "y", "z")])
    assert {name: one.tolist() for name, one in found.items()} == {
        name: one.tolist() for name, one in tensors.items()
    }
    assert whole([found[name] for name in "xyz"], (3, 2, 2)) is not None
