"""Writes a merged model as a Hugging Face folder, shard by shard, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge import __version__
from evomerge.adapter_reader import CONFIG as ADAPTER_CONFIG
from evomerge.assembly import Part, assemble
from evomerge.checkpoints import (
    FLOATING,
    INDEX,
    SINGLE,
    Checkpoint,
)
from evomerge.compatibility import check_alike, differences
from evomerge.devices import best_device
from evomerge.errors import CheckpointError
from evomerge.files import write_bytes
from evomerge.layer_config import assembled_config
from evomerge.merger import Merger, Progress
from evomerge.merger.card import model_card, recipe_history
from evomerge.merger.digests import tensor_digest, weights_digest
from evomerge.merger.shards import Entry, distribute, write_shard
from evomerge.merger.side_files import carry, side_files
from evomerge.merger.unfinished import Unfinished, unfinished
from evomerge.recipe import Recipe, resolve
from evomerge.recipe_inputs import RecipeInputs, open_inputs
from evomerge.sizes import as_size
from evomerge.slices import SlicedRecipe, load_any_recipe

SHARD_BYTES = 4 * 10**9
_STEPS = 300  # some hundredths of a second
_FEW = 500_000_000  # elements; to merge fewer once takes less time than to compile a kernel


def merge_file(
    file: Path,
    out_dir: Path,
    device: str | None,
    shard_bytes: int,
    resume: bool,
    trust: bool,
    progress: Progress,
    note: Callable[[str], None],
) -> str:
    """Merge a recipe file as `write_model` does, on a device of some name."""
    return write_model(
        load_any_recipe(file),
        out_dir,
        str(file),
        device=best_device(device),
        shard_bytes=shard_bytes,
        resume=resume,
        trust=trust,
        history=recipe_history(file),
        progress=progress,
        note=note,
    )


def write_model(
    recipe: Recipe | SlicedRecipe,
    out_dir: Path,
    source: str,
    *,
    device: torch.device,
    shard_bytes: int = SHARD_BYTES,
    resume: bool = False,
    trust: bool = False,
    history: Sequence[str] = (),
    progress: Progress = lambda text, done, total: None,
    note: Callable[[str], None] = lambda text: None,
) -> str:
    """Merge a recipe and write it to `out_dir`, which must not exist; returns the weights' hash.

    The inputs stay on disk; one tensor at a time is merged and written. With `resume`, what a kill
    has left of the same merge is gone on from. A tokenizer's own code may run where `trust` is set.
    `history` are lines of Markdown for the model card: where the recipe is from. Raises
    CheckpointError where the inputs do not fit each other or the folder cannot be written,
    RecipeError and CandidateError where the recipe cannot be merged.
    """
    inputs = open_inputs(recipe, source, trust=trust)
    parts, config = _parts(recipe, inputs.checkpoints)
    notes = [one for part in parts for one in differences(part.checkpoints)]
    for sentence in dict.fromkeys([*inputs.notes, *notes]):
        note(sentence)
    entries = [entry for part in parts for entry in _entries(part, recipe.result_dtype)]
    shards = _named(distribute(entries, shard_bytes))
    with unfinished(out_dir, _origin(recipe, inputs, device, shard_bytes), resume) as work:
        if not work.done:
            work.check(shards, note)
            _check_space(work, shards)
            _write_shards(parts, shards, work, device, progress)
            config = _in_dtype(inputs.in_vocabulary(config), recipe.result_dtype)
            _write_json(config, work.model / "config.json")
            carry(inputs, work.model)
            tokenizer = any(work.model.glob("tokenizer*"))
            card = model_card(recipe, out_dir.name, config, tokenizer, history)
            write_bytes(work.model / "README.md", card.encode("utf-8", "replace"))
    return weights_digest({k: v for one in work.finished.values() for k, v in one.items()})


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


def _named(shards: Sequence[list[Entry]]) -> dict[str, list[Entry]]:
    """Return what goes into which file."""
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": entries
        for number, entries in enumerate(shards, start=1)
    }


def _origin(
    recipe: Recipe | SlicedRecipe, inputs: RecipeInputs, device: torch.device, shard_bytes: int
) -> dict[str, Any]:
    """Return all that the bytes of the result depend on, as plain data."""
    folders = [one.folder for one in inputs.checkpoints]
    if inputs.tokenizer and inputs.tokenizer.origin:
        folders.append(inputs.tokenizer.origin)
    files = {folder / name for folder in folders for name in ("config.json", *side_files(folder))}
    for one in inputs.checkpoints:
        files |= {info.file for info in one.tensors.values()}
        if one.adapter:
            own = {info.file for info in one.adapter.tensors.values()}
            files |= own | {file.parent / ADAPTER_CONFIG for file in own}
    found = {str(file): file.stat() for file in sorted(files)}
    return {
        "recipe": recipe.to_yaml(),
        "files": {name: [one.st_size, one.st_mtime_ns] for name, one in found.items()},
        "shard size": shard_bytes,
        "device": device.type,
        "evomerge": __version__,
        "torch": torch.__version__,
    }


def _check_space(work: Unfinished, shards: Mapping[str, Sequence[Entry]]) -> None:
    """Raise CheckpointError where the disk has no room for what is missing."""
    missing = [one for name, entries in shards.items() if name not in work.finished
               for one in entries]  # fmt: skip
    needed = sum(entry.nbytes for entry in missing)
    disk = shutil.disk_usage(work.model)
    if disk.total and disk.free < needed:  # some network file systems say nothing of themselves
        raise CheckpointError(
            f"expected {as_size(needed)} free for {work.target}, got {as_size(disk.free)}; free "
            "some, or write it to another disk"
        )


def _write_shards(
    parts: Sequence[Part],
    shards: Mapping[str, Sequence[Entry]],
    work: Unfinished,
    device: torch.device,
    progress: Progress,
) -> None:
    """Write the shards that are not finished yet, each under its name only when it is whole."""
    total = sum(map(len, shards.values()))
    missing = {file: entries for file, entries in shards.items() if file not in work.finished}
    names = {entry.name for entries in missing.values() for entry in entries}
    digests: dict[str, str] = {}
    eager = _once(shards, device)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for part in parts:
            for name, tensor in _merged(part, names, device, eager, progress):
                progress("merging", total - len(names) + len(digests), total)
                digests[name] = tensor_digest(tensor)
                yield name, tensor

    stream = tensors()
    with _threads(eager):
        for file, entries in missing.items():
            partial = work.model / f".{file}"
            write_shard(partial, entries, stream)
            os.replace(partial, work.model / file)
            work.finish(file, {entry.name: digests[entry.name] for entry in entries})
    progress("merging", total, total)
    if len(shards) > 1:
        _write_json(_index(shards), work.model / INDEX)


def _once(shards: Mapping[str, Sequence[Entry]], device: torch.device) -> bool:
    """Return whether a kernel that is used once is better not compiled: on a CPU, for few numbers.

    There the eager kernel gives the same bits.
    """
    elements = sum(math.prod(one.shape) for entries in shards.values() for one in entries)
    return device.type == "cpu" and elements < _FEW


@contextlib.contextmanager
def _threads(eager: bool) -> Iterator[None]:
    """Use one thread for an eager kernel where more would be slower at its many small steps.

    They wait for each other at the end of each, so that where the machine does other work too they
    can take many times as long. Both are tried on steps of that size.
    """
    before = torch.get_num_threads()
    if eager and before > 1:
        taken = {threads: _small_steps(threads) for threads in (before, 1)}
        torch.set_num_threads(min(taken, key=lambda threads: taken[threads]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _small_steps(threads: int) -> float:
    """Return the seconds that steps like those of an eager kernel take on some threads."""
    torch.set_num_threads(threads)
    numbers = torch.ones(threads << 16)
    started = time.perf_counter()
    for _ in range(_STEPS):
        numbers.mul_(1.0).abs_()
    return (time.perf_counter() - started) / threads  # the numbers are as many as the threads


def _merged(
    part: Part, names: Container[str], device: torch.device, eager: bool, progress: Progress
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield those tensors of a part that have one of the names."""
    if not any(name in names for name in part.names):
        return
    try:
        merger = Merger(
            part.checkpoints,
            result_dtype=part.recipe.result_dtype,
            device=device,
            memory="disk",
            kernel="eager" if eager else "auto",
            once=True,
            progress=progress,
        )
        yield from merger.stream(part.recipe, names)
    except CheckpointError as problem:
        if not part.renamed:
            raise
        hint = "its name in the model is in what evomerge check --explain says of the recipe"
        raise CheckpointError(f"{problem} (as the result names it; {hint})") from None


def _index(shards: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    weight_map = {entry.name: file for file, entries in shards.items() for entry in entries}
    total = sum(entry.nbytes for entries in shards.values() for entry in entries)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _in_dtype(config: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """Return a configuration that says what dtype the weights have."""
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    return {**config, key: dtype} if dtype else dict(config)


def _write_json(data: Mapping[str, Any], path: Path) -> None:
    write_bytes(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())
