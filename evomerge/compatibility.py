"""Whether checkpoints can be merged with each other: names, shapes, ties, quantization."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError
from evomerge.module_groups import tensor_names_by_layer

# Buffers that older versions of transformers stored in the layers: the same in every model.
CONSTANTS = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
# What may be tied to the embeddings; BERT and RoBERTa store a copy of the bias too.
_HEADS = re.compile(
    r"(^|\.)(lm_head|embed_out|proj_out|output_projection)\.weight$"
    r"|(cls\.predictions|lm_head)\.decoder\.(weight|bias)$"
)
_SHARED = re.compile(r"(.*?)(en|de)coder\.embed_tokens\.weight")  # with shared.weight, its copies


def check_alike(checkpoints: Sequence[Checkpoint]) -> tuple[str, ...]:
    """Return the names of the tensors to merge: those of the first checkpoint.

    A tensor that is tied to the embeddings is left to the tie, even where some of the inputs store
    it. Outside the layers, models may lack tensors or have more of them (a value head, a
    projector); `differences` says which. Raises CheckpointError naming both sides where the layers
    or the shapes differ, and for quantized weights.
    """
    first, *others = checkpoints
    for checkpoint in checkpoints:
        _refuse_quantized(checkpoint)
    left_out = tied_copies(checkpoints)
    names = [name for name in first.tensors if name not in left_out]
    for other in others:
        shared = set(names) & set(other.tensors)
        for missing in sorted((set(first.tensors) ^ set(other.tensors)) - left_out):
            holder, lacker = (first, other) if missing in first.tensors else (other, first)
            if not shared or _shapes_the_layers(missing, holder):
                raise CheckpointError(
                    f"expected the same tensors in every model, got {missing} in {holder.ref} "
                    f"and not in {lacker.ref}; models to merge must share one architecture"
                )
        for name in names:
            if name in shared:
                _check_tensor(name, first, other)
    return tuple(names)


def differences(checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Return a sentence for each input that has other tensors than the first.

    `checkpoints` have passed `check_alike`.
    """
    first, *others = checkpoints
    names = set(check_alike(checkpoints))
    copies = tied_copies(checkpoints)
    found = []
    for other in others:
        lacking = [name for name in sorted(names - set(other.tensors)) if _merged(name, first)]
        more = [
            name
            for name in sorted(set(other.tensors) - set(first.tensors))
            if _merged(name, other) and name not in copies
        ]
        if lacking:
            found.append(
                f"{other.ref} lacks {_listed(lacking)}: merged from the models that have it"
            )
        if more:
            found.append(f"{other.ref} has {_listed(more)}, which {first.ref} lacks: left out")
    return found


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _merged(name: str, checkpoint: Checkpoint) -> bool:
    return checkpoint.tensors[name].floating and not name.endswith(CONSTANTS)


def _shapes_the_layers(name: str, checkpoint: Checkpoint) -> bool:
    """Return whether a tensor is part of the layers, by its name, and no constant."""
    return tensor_names_by_layer([name])[name] is not None and _merged(name, checkpoint)


def _check_tensor(name: str, first: Checkpoint, other: Checkpoint) -> None:
    mine, its = first.tensors[name], other.tensors[name]
    if mine.floating != its.floating:
        raise CheckpointError(
            f"expected floating-point numbers for {name} in both or in neither, "
            f"got {mine.dtype} in {first.ref} and {its.dtype} in {other.ref}; merge the "
            "unquantized models"
        )
    if mine.floating and mine.shape != its.shape:
        outside = tensor_names_by_layer([name])[name] is None
        rows = outside and mine.shape[1:] == its.shape[1:] != ()
        hint = (
            "for vocabularies that differ, say tokenizer_source in a recipe, or for a study see "
            "what `evomerge init` says of these models"
            if rows
            else "models to merge must share one architecture"
        )
        raise CheckpointError(
            f"expected one shape for {name}, got {list(mine.shape)} in {first.ref} "
            f"and {list(its.shape)} in {other.ref}; {hint}"
        )


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    found = "quantization_config" if checkpoint.config.get("quantization_config") else None
    for name, info in checkpoint.tensors.items():
        if info.dtype.startswith(("F", "C")) and not info.floating:
            found = f"{info.dtype} for {name}"
            break
    if found:
        raise CheckpointError(
            f"expected float32, float16 or bfloat16 weights, got {found} in {checkpoint.ref}; "
            "merge the unquantized models"
        )


def tied_copies(checkpoints: Sequence[Checkpoint]) -> frozenset[str]:
    """Return the stored tensors that are embeddings by another name, to be left to the tie.

    Raises CheckpointError where some of the models tie the output head and others do not. A
    configuration that does not say so is read by what the checkpoint stores: without a head there
    must be a tie, with one it is as in the others.
    """
    stored = {name for checkpoint in checkpoints for name in checkpoint.tensors}
    shared = {
        name
        for name in stored
        if (found := _SHARED.fullmatch(name)) and f"{found[1]}shared.weight" in stored
    }
    heads = {name for name in stored if _HEADS.search(name)}
    if not heads:
        return frozenset(shared)
    said: dict[bool, Checkpoint] = {}
    for checkpoint in checkpoints:
        tied = checkpoint.config.get("tie_word_embeddings")
        if isinstance(tied, bool):
            said[tied] = checkpoint
        elif not heads & set(checkpoint.tensors):
            said[True] = checkpoint
    if len(said) == 2:
        raise CheckpointError(
            f"expected {min(heads)} tied to the embeddings in every model or in none, got a tie in "
            f"{said[True].ref} and none in {said[False].ref}; models to merge must share one "
            "architecture"
        )
    return frozenset(shared | heads if True in said else shared)
