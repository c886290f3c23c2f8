"""LoRA adapters of a few kilobytes in PEFT's format, and what they do by hand in float64."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.tiny_models import Tensors

PREFIX = "base_model.model."
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "bias": "none"}


def factors(
    modules: Mapping[str, Sequence[int]], rank: int = 3, seed: int = 0, dora: bool = False
) -> Tensors:
    """Random A and B for modules of shape (out, in), by the names that PEFT gives them."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in modules.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, columns, generator=draw)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(rows, rank, generator=draw)
        if dora:
            lengths = 1 + torch.rand(rows, generator=draw)
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = lengths
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def by_hand(
    weight: torch.Tensor, tensors: Mapping[str, torch.Tensor], module: str, scale: float
) -> torch.Tensor:
    """W + scale · B·A of a linear layer [out, in], float64, column by column of the rank."""
    a = tensors[f"{PREFIX}{module}.lora_A.weight"].double()
    b = tensors[f"{PREFIX}{module}.lora_B.weight"].double()
    found = weight.double().clone()
    for number in range(len(a)):
        found += scale * b[:, number, None] * a[None, number]
    lengths = tensors.get(f"{PREFIX}{module}.lora_magnitude_vector")
    if lengths is not None:
        found *= (lengths.double() / (found**2).sum(dim=1).sqrt())[:, None]
    return found
