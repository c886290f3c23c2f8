"""Module groups and their filters on the parameter names of real architectures."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from evomerge.errors import Place, SpaceError
from evomerge.module_groups import (
    GROUPS,
    OTHER,
    Architecture,
    Filter,
    filters,
    group_of,
    tensor_names_by_layer,
)

PLACE = Place("space.yaml", SpaceError)
SMALL: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
GQA = {**SMALL, "num_key_value_heads": 2}
GPT2 = {
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "vocab_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", GQA),
    "Qwen2": ("Qwen2ForCausalLM", GQA),
    "Qwen3": ("Qwen3ForCausalLM", {**GQA, "head_dim": 8}),
    "Gemma2": ("Gemma2ForCausalLM", {**GQA, "head_dim": 8}),
    "Phi3": ("Phi3ForCausalLM", GQA),
    "GPT2": ("GPT2LMHeadModel", GPT2),
    "GPTNeoX": ("GPTNeoXForCausalLM", SMALL),
    "OPT": ("OPTForCausalLM", {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 8}),
    "Bert": ("BertForMaskedLM", SMALL),
}
MIXTRAL = tuple(
    ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    + [
        f"model.layers.{layer}.{name}.weight"
        for layer in range(3)
        for name in (
            "self_attn.q_proj", "self_attn.o_proj", "input_layernorm", "post_attention_layernorm",
            "block_sparse_moe.gate", "block_sparse_moe.experts.0.w1",
            "block_sparse_moe.experts.1.w1", "block_sparse_moe.experts.1.w2",
        )
    ]
)  # fmt: skip


def names_of(model: str) -> tuple[str, ...]:
    if model == "Mixtral":  # transformers fuse the experts that checkpoints store one by one
        return MIXTRAL
    kind, settings = MODELS[model]
    with torch.device("meta"):
        made = getattr(transformers, kind)(getattr(transformers, f"{model}Config")(**settings))
    return tuple(name for name, _ in made.named_parameters())


EVERY = [*MODELS, "Mixtral"]
EXPECTED = {
    "Llama": {
        "model.embed_tokens.weight": "embeddings",
        "model.layers.1.self_attn.k_proj.weight": "attention",
        "model.layers.1.mlp.gate_proj.weight": "mlp",
        "model.layers.1.post_attention_layernorm.weight": "norms",
        "model.norm.weight": "norms",
        "lm_head.weight": "head",
    },
    "Qwen2": {"model.layers.0.self_attn.q_proj.bias": "attention"},
    "Qwen3": {"model.layers.0.self_attn.q_norm.weight": "norms"},
    "Gemma2": {"model.layers.2.pre_feedforward_layernorm.weight": "norms"},
    "Phi3": {
        "model.layers.0.self_attn.qkv_proj.weight": "attention",
        "model.layers.0.mlp.gate_up_proj.weight": "mlp",
    },
    "GPT2": {
        "transformer.wpe.weight": "embeddings",
        "transformer.h.1.ln_1.bias": "norms",
        "transformer.h.1.attn.c_proj.weight": "attention",
        "transformer.h.1.mlp.c_proj.weight": "mlp",
        "transformer.ln_f.weight": "norms",
    },
    "GPTNeoX": {
        "gpt_neox.embed_in.weight": "embeddings",
        "gpt_neox.layers.0.attention.dense.weight": "attention",
        "gpt_neox.layers.0.post_attention_layernorm.weight": "norms",
        "gpt_neox.layers.0.mlp.dense_h_to_4h.bias": "mlp",
        "gpt_neox.final_layer_norm.weight": "norms",
        "lm_head.weight": "head",
    },
    "OPT": {
        "model.decoder.embed_positions.weight": "embeddings",
        "model.decoder.project_in.weight": "other",
        "model.decoder.layers.0.fc1.weight": "mlp",
        "model.decoder.layers.0.self_attn_layer_norm.weight": "norms",
        "model.decoder.layers.0.self_attn.out_proj.weight": "attention",
    },
    "Bert": {
        "bert.encoder.layer.1.attention.output.dense.weight": "attention",
        "bert.encoder.layer.1.output.dense.weight": "mlp",
        "bert.encoder.layer.1.attention.output.LayerNorm.weight": "norms",
    },
    "Mixtral": {
        "model.layers.2.block_sparse_moe.gate.weight": "mlp",
        "model.layers.2.block_sparse_moe.experts.1.w1.weight": "mlp",
    },
}


def selected(found: Sequence[Filter], name: str) -> tuple[str, int | None]:
    """Group and end by mergekit's rule: the first filter that is part of the name."""
    return next((f.group, f.end) for f in found if f.text is None or f.text in name)


@pytest.mark.parametrize("model", EVERY)
def test_groups(model: str) -> None:
    names = names_of(model)
    for name, group in EXPECTED[model].items():
        assert name in names
        assert group_of(name) == group, name
    assert Architecture(names).layers == 3


@pytest.mark.parametrize(
    "over",
    [["attention", "mlp", "other"], [*GROUPS, "other"], ["other"], ["norms", "other"],
     ["mlp", "other", "embeddings"]],
)  # fmt: skip
@pytest.mark.parametrize("model", EVERY)
def test_filters_give_every_tensor_its_group(model: str, over: list[str]) -> None:
    architecture = Architecture(names_of(model))
    groups = architecture.groups(over, PLACE)
    assert sorted(name for names in groups.values() for name in names) == sorted(
        architecture.tensors
    )
    found = filters(groups)
    layered = tensor_names_by_layer(architecture.tensors)
    for name in architecture.tensors:
        group = group_of(name) if group_of(name) in over else OTHER
        end = None
        if layered[name] is None:
            end = 0 if group_of(name) == "embeddings" else -1
        assert selected(found, name) == (group, end), name
    if model in ("Llama", "Qwen2", "Qwen3", "Gemma2", "Phi3", "GPT2", "GPTNeoX", "OPT", "Mixtral"):
        assert len(found) <= 12  # a recipe that one can read


def test_the_filters_of_a_llama() -> None:
    groups = Architecture(names_of("Llama")).groups(["attention", "mlp", "other"], PLACE)
    assert filters(groups) == [
        Filter("model.embed_tokens.weight", "other", 0),
        Filter("model.norm.weight", "other", -1),
        Filter("lm_head.weight", "other", -1),
        Filter("self_attn", "attention"),
        Filter("mlp", "mlp"),
        Filter(None, "other"),
    ]


def test_one_group_of_layers_alone_needs_no_filter() -> None:
    names = [f"model.layers.{layer}.mlp.weight" for layer in range(2)]
    assert filters({"mlp": names}) == [Filter(None, "mlp")]


@pytest.mark.parametrize(
    "names",
    [
        ["h.0.norm.weight", "norm.weight", "h.0.attn.weight"],  # one name is part of another
        ["a.0.attn.x", "a.0.attn.norm", "a.0.mlp_attn", "attn", "attn.norm", "b.0.attn"],
        ["x", "y", "xy", "embed", "embed.x"],
    ],
)
def test_names_inside_names(names: list[str]) -> None:
    groups = Architecture(tuple(names)).groups([*GROUPS, "other"], PLACE)
    found = filters(groups)
    for group, members in groups.items():
        for name in members:
            assert selected(found, name)[0] == group, (name, found)


def test_layers_of_names() -> None:
    found = tensor_names_by_layer(
        ["model.layers.3.mlp.experts.7.w", "h.12.attn", "lm_head.weight", "layers.x.3", "0.a"]
    )
    assert list(found.values()) == [("model.layers", 3), ("h", 12), None, None, None]
    assert Architecture(("lm_head.weight",)).layers == 1


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            ["atention", "other"],
            "unknown module group 'atention' at over[0] in space.yaml; did you",
        ),
        ([3, "other"], "unknown module group 3 at over[0]"),
        ([["mlp"], "other"], "unknown module group ['mlp'] at over[0]"),
        (["mlp", "other", "mlp"], "expected each module group once, got 'mlp' at over[2]"),
        (["attention", "mlp"], "lm_head.weight belongs to head: add it, or 'other'"),
    ],
)
def test_mistakes(over: list[Any], words: str) -> None:
    names = ("lm_head.weight", "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(SpaceError) as caught:
        Architecture(names).groups(over, PLACE / "over")
    assert words in str(caught.value)
