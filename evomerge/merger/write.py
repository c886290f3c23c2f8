"""Writes a merged model as a Hugging Face folder, shard by shard, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.assembly import Part, assemble
from evomerge.checkpoints import (
    FLOATING,
    INDEX,
    SINGLE,
    Checkpoint,
    open_checkpoint,
)
from evomerge.compatibility import check_alike, differences
from evomerge.errors import CheckpointError, Place
from evomerge.files import whole_folder, write_json, write_text
from evomerge.layer_config import assembled_config
from evomerge.merger import Merger, Progress, tensor_digest, weights_digest
from evomerge.merger.shards import Entry, distribute, write_shard
from evomerge.recipe import Recipe, resolve
from evomerge.slices import SlicedRecipe

SHARD_BYTES = 4 * 10**9
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
    recipe: Recipe | SlicedRecipe,
    out_dir: Path,
    source: str,
    *,
    device: torch.device,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda text, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> str:
    """Merge a recipe and write it to `out_dir`, which must not exist; returns the weights' hash.

    The inputs stay on disk; one tensor at a time is merged and written. Raises CheckpointError
    where the inputs do not fit each other, RecipeError and CandidateError where the recipe cannot
    be merged.
    """
    place = Place(source, CheckpointError)
    donor, *others = list(dict.fromkeys([recipe.donor, *recipe.inputs]))
    opened = [open_checkpoint(ref, place) for ref in (donor, *others)]
    parts, config = _parts(recipe, opened)
    for sentence in dict.fromkeys(one for part in parts for one in differences(part.checkpoints)):
        note(sentence)
    entries = [entry for part in parts for entry in _entries(part, recipe.result_dtype)]
    shards = distribute(entries, shard_bytes)
    with whole_folder(out_dir, CheckpointError) as folder:
        digest = _write_shards(parts, shards, folder, device, progress)
        _write_config(config, recipe.result_dtype, folder)
        for name in _CARRIED:
            if (opened[0].folder / name).is_file():
                shutil.copyfile(opened[0].folder / name, folder / name)
        write_text(folder / "README.md", _model_card(recipe, out_dir.name))
    return digest


def _parts(
    recipe: Recipe | SlicedRecipe, opened: Sequence[Checkpoint]
) -> tuple[list[Part], dict[str, Any]]:
    """Return the merges to make, whose settings all resolve, and the result's configuration."""
    if isinstance(recipe, SlicedRecipe):
        return assemble(recipe, opened), assembled_config(recipe, opened)
    names = check_alike(opened)
    resolve(recipe, [name for name in names if opened[0].tensors[name].floating])
    return [Part(recipe, tuple(opened), names)], opened[0].config


def _entries(part: Part, dtype: str | None) -> list[Entry]:
    """Return what the headers of the merged model say of a part's tensors, in order."""
    codes = {name: code for code, name in FLOATING.items()}
    infos = {name: part.checkpoints[0].tensors[name] for name in sorted(part.names)}
    return [
        Entry(name, codes[dtype] if dtype and info.floating else info.dtype, info.shape)
        for name, info in infos.items()
    ]


def _write_shards(
    parts: Sequence[Part],
    shards: Sequence[Sequence[Entry]],
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> str:
    digests: dict[str, str] = {}
    total = sum(map(len, shards))

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for part in parts:
            for name, tensor in _merged(part, device, progress):
                progress("merging", len(digests), total)
                digests[name] = tensor_digest(tensor)
                yield name, tensor

    stream = tensors()
    for number, entries in enumerate(shards, start=1):
        try:
            write_shard(folder / _file(number, len(shards)), entries, stream)
        except OSError as problem:
            what = problem.strerror or problem
            file = _file(number, len(shards))
            raise CheckpointError(f"cannot write {file} of {folder.name}: {what}") from None
    progress("merging", total, total)
    if len(shards) > 1:
        _write_index(folder, shards)
    return weights_digest(digests)


def _merged(
    part: Part, device: torch.device, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        merger = Merger(
            part.checkpoints,
            result_dtype=part.recipe.result_dtype,
            device=device,
            memory="disk",
            progress=progress,
        )
        yield from merger.stream(part.recipe)
    except CheckpointError as problem:
        if not part.renamed:
            raise
        hint = "its name in the model is in what evomerge check --explain says of the recipe"
        raise CheckpointError(f"{problem} (as the result names it; {hint})") from None


def _file(number: int, count: int) -> str:
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_index(folder: Path, shards: Sequence[Sequence[Entry]]) -> None:
    weight_map = {
        entry.name: _file(number, len(shards))
        for number, entries in enumerate(shards, start=1)
        for entry in entries
    }
    total = sum(entry.nbytes for entries in shards for entry in entries)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / INDEX, index)


def _write_config(config: Mapping[str, Any], dtype: str | None, folder: Path) -> None:
    config = dict(config)
    if dtype:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = dtype
    write_json(folder / "config.json", config)


def _model_card(recipe: Recipe | SlicedRecipe, title: str) -> str:
    inputs = "\n".join(f"- `{ref}`" for ref in recipe.inputs)
    return (
        "---\nlibrary_name: transformers\ntags:\n- merge\n- evomerge\n---\n"
        f"# {title}\n\nA merge by the method `{recipe.merge_method}` "
        f"({recipe.method.paper}) of\n\n{inputs}\n\nmade by evomerge from this recipe:\n\n"
        f"```yaml\n{recipe.to_yaml()}```\n"
    )
