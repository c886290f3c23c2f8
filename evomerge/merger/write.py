"""Writes a merged model as a Hugging Face folder, shard by shard, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from evomerge.checkpoints import (
    FLOATING,
    INDEX,
    SINGLE,
    Checkpoint,
    open_checkpoint,
)
from evomerge.compatibility import check_alike
from evomerge.errors import CheckpointError, Place
from evomerge.files import whole_folder, write_json, write_text
from evomerge.merger import Merger, Progress, tensor_digest, weights_digest
from evomerge.recipe import Recipe, resolve

SHARD_BYTES = 4 * 10**9
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_CARRIED = (  # of the donor: what from_pretrained reads beside config and weights
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def write_model(
    recipe: Recipe,
    out_dir: Path,
    source: str,
    *,
    device: torch.device,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda text, done, total: None,
) -> str:
    """Merge a recipe and write it to `out_dir`, which must not exist; returns the weights' hash.

    The inputs are read one shard's tensors at a time. Raises CheckpointError where the inputs do
    not fit each other, RecipeError and CandidateError where the recipe cannot be merged.
    """
    place = Place(source, CheckpointError)
    donor, *others = list(dict.fromkeys([recipe.donor, *recipe.inputs]))
    opened = [open_checkpoint(ref, place) for ref in (donor, *others)]
    names = check_alike(opened)
    resolve(recipe, [name for name in names if opened[0].tensors[name].floating])
    shards = _shards(opened[0], names, recipe.result_dtype, shard_bytes)
    with whole_folder(out_dir, CheckpointError) as folder:
        digest = _write_shards(recipe, opened, shards, folder, device, progress)
        _write_config(opened[0], recipe.result_dtype, folder)
        for name in _CARRIED:
            if (opened[0].folder / name).is_file():
                shutil.copyfile(opened[0].folder / name, folder / name)
        write_text(folder / "README.md", _model_card(recipe, out_dir.name))
    return digest


def _shards(
    checkpoint: Checkpoint, names: Sequence[str], dtype: str | None, most: int
) -> list[list[str]]:
    widths = {name: _SIZES[code] for code, name in FLOATING.items()}
    shards: list[list[str]] = []
    size = 0
    for name in names:
        info = checkpoint.tensors[name]
        width = widths[dtype] if dtype and info.floating else _SIZES.get(info.dtype, 8)
        needed = int(torch.Size(info.shape).numel()) * width
        if not shards or size + needed > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    return shards


def _write_shards(
    recipe: Recipe,
    opened: Sequence[Checkpoint],
    shards: Sequence[Sequence[str]],
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> str:
    digests: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, names in enumerate(shards, start=1):
        progress("merging", number - 1, len(shards))
        merger = Merger(opened, result_dtype=recipe.result_dtype, names=names, device=device)
        tensors = {
            name: tensor.cpu().contiguous() for name, tensor in merger.materialize(recipe).items()
        }
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"expected finite numbers, got NaN or infinity in merged {name}"
                )
            digests[name] = tensor_digest(tensor)
            total_bytes += tensor.nbytes
        file = (
            SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        weight_map.update(dict.fromkeys(tensors, file))
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
        except Exception as problem:  # the library wraps a full disk in errors of its own
            raise CheckpointError(f"cannot write {file} of {folder.name}: {problem}") from None
    progress("merging", len(shards), len(shards))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_json(folder / INDEX, index)
    return weights_digest(digests)


def _write_config(donor: Checkpoint, dtype: str | None, folder: Path) -> None:
    config = dict(donor.config)
    if dtype:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = dtype
    write_json(folder / "config.json", config)


def _model_card(recipe: Recipe, title: str) -> str:
    inputs = "\n".join(f"- `{ref}`" for ref in recipe.inputs)
    return (
        "---\nlibrary_name: transformers\ntags:\n- merge\n- evomerge\n---\n"
        f"# {title}\n\nA merge by the method `{recipe.merge_method}` "
        f"({recipe.method.paper}) of\n\n{inputs}\n\nmade by evomerge from this recipe:\n\n"
        f"```yaml\n{recipe.to_yaml()}```\n"
    )
