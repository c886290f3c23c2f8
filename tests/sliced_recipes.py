"""Recipes of slices as plain data, and models of other depths to make them of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from evomerge.merger.write import write_model
from evomerge.slices import parse_any_recipe
from tests.tiny_models import (
    CONFIG,
    PLACE,
    Tensors,
    base_weights,
    expert_weights,
    write_checkpoint,
    write_family,
)

CPU = torch.device("cpu")
STACK = "model.layers"


def write_family_and_tall(folder: Path) -> Path:
    """Write the family, and `tall`, which has five layers."""
    found = write_family(folder)
    tall: Tensors = {}
    for name, tensor in expert_weights(base_weights(7), 7).items():
        tall[name] = tensor
        if f"{STACK}.0." in name:
            for layer in (3, 4):
                noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(layer))
                tall[name.replace(".0.", f".{layer}.")] = tensor + noise
    write_checkpoint(found / "tall", tall, CONFIG | {"num_hidden_layers": 5})
    return found


def source(folder: Path, model: str, first: int, end: int, **parameters: Any) -> dict[str, Any]:
    own = {"parameters": parameters} if parameters else {}
    return {"model": str(folder / model), "layer_range": [first, end]} | own


def sliced(method: str, slices: Sequence[Mapping[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"merge_method": method, "dtype": "float32", "slices": list(slices)} | fields


def write(data: Mapping[str, Any], out: Path, **options: Any) -> str:
    return write_model(parse_any_recipe(data, PLACE), out, "test.yaml", device=CPU, **options)


def read(folder: Path) -> Tensors:
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def pair(folder: Path, first: int, end: int, **own: Any) -> list[dict[str, Any]]:
    return [source(folder, "base", first, end), source(folder, "a", first, end, **own)]


def experts(folder: Path, first: int, end: int, *own: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = zip("abc", own, strict=True)
    return [source(folder, "base", first, end)] + [
        source(folder, name, first, end, **one) for name, one in named
    ]
