"""A Llama family of random weights, recipes for it, and what the benchmarks share to time them."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from evomerge.checkpoints import InMemory, ModelRef, open_checkpoint
from evomerge.errors import InputError, Place
from evomerge.merger import Merger
from evomerge.recipe import Recipe, parse_recipe

PLACE = Place("benchmark", InputError)
EXPERTS = ("a", "b", "c")
LLAMA = {"hidden": 576, "inner": 1536, "layers": 30, "heads": 9, "kv": 3, "vocab": 49152}
TINY = {"hidden": 96, "inner": 256, "layers": 4, "heads": 4, "kv": 4, "vocab": 33}
SEVEN_B = {"hidden": 4096, "inner": 11008, "layers": 32, "heads": 32, "kv": 32, "vocab": 32000}
CONFIG = {"tie_word_embeddings": True}
CONSOLE = Console()

# What each method must reach of a copy's bandwidth on two CPU cores.
WEIGHTS = {"weight": 0.4}
TASK: dict[str, tuple[dict[str, float], dict[str, Any], float]] = {
    "linear": (WEIGHTS, {}, 0.9),
    "task_arithmetic": (WEIGHTS, {}, 0.9),
    "nuslerp": (WEIGHTS, {}, 0.9),
    "multislerp": (WEIGHTS, {}, 0.9),
    "karcher": ({}, {}, 0.9),
    "model_stock": ({}, {}, 0.9),
    "slerp": ({}, {"t": 0.3}, 0.9),
    "ties": ({"weight": 0.4, "density": 0.3}, {}, 0.6),
    "breadcrumbs": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "breadcrumbs_ties": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "dare_linear": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "dare_ties": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "della": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "della_linear": ({"weight": 0.4, "density": 0.3}, {}, 0.4),
    "sce": ({}, {"select_topk": 0.3}, 0.0),
    "nearswap": ({}, {"t": 0.001}, 0.0),
    "passthrough": ({}, {}, 0.0),
    "arcee_fusion": ({}, {}, 0.0),
}
FEWER = {"slerp": 1, "nuslerp": 2, "nearswap": 1, "passthrough": 1, "arcee_fusion": 1}
BASELESS = ("linear", "multislerp", "karcher", "passthrough")


def shapes(size: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a Llama with tied embeddings."""
    hidden, inner = size["hidden"], size["inner"]
    narrow = hidden // size["heads"] * size["kv"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocab"], hidden)}
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
    for layer in range(size["layers"]):
        found |= {f"model.layers.{layer}.{name}.weight": one for name, one in parts.items()}
    return found | {"model.norm.weight": (hidden,)}


def family(
    size: Mapping[str, int], dtype: torch.dtype, device: str = "cpu"
) -> dict[str, dict[str, torch.Tensor]]:
    """Return a base of random weights and three experts that are near it, made on a device."""
    generator = torch.Generator(device).manual_seed(0)
    own = {name: torch.Generator(device).manual_seed(n) for n, name in enumerate(EXPERTS, 1)}
    models: dict[str, dict[str, torch.Tensor]] = {name: {} for name in ("base", *EXPERTS)}
    for name, shape in shapes(size).items():
        base = torch.randn(shape, generator=generator, device=device) * 0.02
        models["base"][name] = base.to(dtype).cpu()
        for expert, stream in own.items():
            delta = torch.randn(shape, generator=stream, device=device) * 0.003
            models[expert][name] = (base + delta).to(dtype).cpu()
    return models


def write_family(folder: Path, size: Mapping[str, int], dtype: torch.dtype) -> None:
    """Write a family as checkpoints."""
    for name, tensors in family(size, dtype).items():
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(CONFIG))


def recipe(folder: Path, method: str) -> Recipe:
    """Return a recipe of a method for the family in a folder."""
    own, shared, _ = TASK[method]
    experts = EXPERTS[: FEWER.get(method, 3)]
    data: dict[str, Any] = {"merge_method": method, "parameters": shared}
    data["models"] = [{"model": str(folder / name), "parameters": own} for name in experts]
    if method not in BASELESS:
        data["base_model"] = str(folder / "base")
    return parse_recipe(data, PLACE)


def merger_of(folder: Path, **options: Any) -> Merger:
    """Return a merger with the family of a folder loaded."""
    refs = [ModelRef(str(folder / name)) for name in ("base", *EXPERTS)]
    return Merger([open_checkpoint(ref, PLACE) for ref in refs], **options)


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each, run in turns after one run that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            synchronize()
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if not index else "right")
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)


def loaded(folder: Path, size: Mapping[str, int], device: str = "cpu") -> list[InMemory]:
    """Return a family in memory, named as if it lay in a folder."""
    models = family(size, torch.bfloat16, device)
    return [InMemory.of(str(folder / name), one, CONFIG) for name, one in models.items()]
