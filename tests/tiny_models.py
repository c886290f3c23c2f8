"""Checkpoints of a few kilobytes: a Llama family with odd shapes, and helpers to merge it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.errors import Place, RecipeError
from evomerge.merger import Merger
from evomerge.recipe import Recipe, parse_recipe

PLACE = Place("test.yaml", RecipeError)
LAYERS = 3
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 20,
    "intermediate_size": 27,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 131,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
FLAT = "model.layers.1.self_attn.q_proj.weight"  # expert b has the base's: a zero task vector
STEPS = "model.layers.2.mlp.down_proj.weight"  # expert c: every entry moved by ± 1/128

Tensors = dict[str, torch.Tensor]


def llama_shapes(config: Mapping[str, Any] = CONFIG) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama checkpoint with an output head of its own."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    narrow = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    vocab = (config["vocab_size"], hidden)
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": vocab}
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (narrow, hidden),
            "self_attn.v_proj": (narrow, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        found |= {f"model.layers.{layer}.{name}.weight": size for name, size in parts.items()}
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": vocab}


def write_checkpoint(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] = CONFIG
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def base_weights(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    shapes = llama_shapes()
    tensors = {name: torch.randn(size, generator=generator) for name, size in shapes.items()}
    tensors[STEPS] = (tensors[STEPS] * 64).round() / 64
    return tensors


def expert_weights(base: Tensors, seed: int, scale: float = 0.02) -> Tensors:
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator)
        for name, tensor in base.items()
    }


def write_family(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `base`, `a`, `b` and `c` below a folder."""
    base = base_weights()
    experts = {name: expert_weights(base, seed) for seed, name in enumerate("abc")}
    experts["b"][FLAT] = base[FLAT].clone()
    signs = torch.where(experts["c"][STEPS] > base[STEPS], 1.0, -1.0)
    experts["c"][STEPS] = base[STEPS] + signs / 128
    config = CONFIG | {"dtype": str(dtype).removeprefix("torch.")}
    for name, tensors in {"base": base, **experts}.items():
        stored = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        write_checkpoint(folder / name, stored, config)
    return folder


def recipe_of(folder: Path, method: str, **fields: Any) -> dict[str, Any]:
    """A recipe as plain data; `models` are {name: parameters}, all names relative to `folder`."""
    data: dict[str, Any] = {"merge_method": method, "dtype": "float32"} | fields
    if "base_model" in data:
        data["base_model"] = str(folder / data["base_model"])
    data["models"] = [
        {"model": str(folder / name)} | ({"parameters": dict(own)} if own else {})
        for name, own in data["models"].items()
    ]
    return data


def parsed(data: Mapping[str, Any]) -> Recipe:
    return parse_recipe(data, PLACE)


def opened(folder: Path, *names: str) -> list[Checkpoint]:
    return [open_checkpoint(ModelRef(str(folder / name)), PLACE) for name in names]


def merged(data: Mapping[str, Any], **options: Any) -> Tensors:
    """Merge a recipe in memory; the tensors are copies."""
    recipe = parsed(data)
    refs = dict.fromkeys([recipe.donor, *recipe.inputs])
    options = {"result_dtype": recipe.result_dtype} | options
    merger = Merger([open_checkpoint(ref, PLACE) for ref in refs], **options)
    return {name: tensor.clone() for name, tensor in merger.materialize(recipe).items()}


def weights(folder: Path, name: str) -> Tensors:
    return load_file(folder / name / "model.safetensors")


def merge_vectors(
    folder: Path,
    method: str,
    models: Mapping[str, tuple[list[float], dict[str, Any]]],
    base: list[float] | None = None,
    **shared: Any,
) -> list[float]:
    """Merge models of one vector each, in float32; `models` are name → (vector, parameters)."""
    vectors = {name: vector for name, (vector, _) in models.items()}
    for name, vector in (vectors | ({} if base is None else {"base": base})).items():
        write_checkpoint(folder / name, {"x": torch.tensor(vector)}, {"model_type": "vector"})
    fields = {} if base is None else {"base_model": "base"}
    own = {name: parameters for name, (_, parameters) in models.items()}
    data = recipe_of(folder, method, **fields, models=own, parameters=shared)
    found: list[float] = merged(data)["x"].tolist()
    return found
