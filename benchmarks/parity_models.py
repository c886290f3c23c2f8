"""The models of benchmarks/parity.py: those of tests/families.py, with tokenizers and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from parity_recipes import Row

from tests.architectures import byte_level_tokenizer
from tests.families import FAMILIES, Family, build, save, write_models
from tests.tiny_adapters import factors, write_adapter

NAMES = ("base", "a", "b", "base+lora", "a+lora")
_WORD = ("base", "source")  # where `base` is no name: it says whose tokenizer
_ENGLISH = "the cat saw the dog and the dog saw the cat; then they sat on the mat. " * 3
_MIXED = "il gatto vide the cane e il cane vide il gatto; poi the mat, the cat. " * 3
_ADAPTED = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (40, 32)}


def write_row_models(row: Row, root: Path) -> Path:
    """Write the models of a row below a folder, once for all rows of theirs; returns where."""
    family = FAMILIES[row.family]
    spoken = row.kind == "tokens"
    folder = root / f"{row.family.replace(' ', '_').replace(',', '')}{'_spoken' * spoken}"
    if not folder.exists():
        if spoken:
            _write_spoken(folder, family)
        else:
            write_models(folder, family)
            _write_adapter(folder)
    return folder


def placed(data: Any, folder: Path, key: str = "") -> Any:
    """Return a recipe with the paths of its models for their names."""
    if isinstance(data, Mapping):
        return {name: placed(one, folder, name) for name, one in data.items()}
    if isinstance(data, list):
        return [placed(one, folder, key) for one in data]
    if key in ("model", "base_model", "source") and data in NAMES and (data, key) != _WORD:
        return "+".join(str(folder / name) for name in data.split("+"))
    return data


def _write_adapter(folder: Path) -> None:
    modules = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(3)
        for name, shape in _ADAPTED.items()
    }
    targets = [name.rpartition(".")[2] for name in _ADAPTED]
    config = {"target_modules": targets, "task_type": "CAUSAL_LM"}
    scaled = {name: one * 0.1 for name, one in factors(modules).items()}
    write_adapter(folder / "lora", scaled, base_model_name_or_path=str(folder / "a"), **config)


def _write_spoken(folder: Path, family: Family) -> None:
    """Write models with vocabularies of their own.

    `a` has one more special token than the base, and rows that no token has; `b` has other words.
    """
    tokenizers = {name: byte_level_tokenizer(_ENGLISH) for name in ("base", "a")}
    tokenizers["b"] = byte_level_tokenizer(_MIXED, 290)
    tokenizers["a"].add_special_tokens({"additional_special_tokens": ["<tool>"]})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        start: dict[str, torch.Tensor] = {}
        for name, tokenizer in tokenizers.items():
            config = family.config()
            config.vocab_size = len(tokenizer) + (9 if name == "a" else 0)
            model: Any = build(family, config)
            for key, one in model.named_parameters():
                one.add_(0.3 * torch.randn_like(one))
                if key in start and start[key].shape == one.shape:
                    one.copy_(start[key] + 0.02 * torch.randn_like(one))
            start = start or {key: one.clone() for key, one in model.named_parameters()}
            save(model, folder / name, family)
            tokenizer.save_pretrained(folder / name)
